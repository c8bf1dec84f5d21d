"""A picture reaches the disk whole or not at all."""

import os
import tempfile
from pathlib import Path

from PIL import Image

from graphattr.errors import WriteError


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write beside the target, then move over it; missing folders are made."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}.", suffix=".png", delete=False) as file:
            temporary = Path(file.name)
            image.save(file, "PNG")
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as e:
        raise WriteError(f"cannot write the picture {path}: {e}") from e
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
