"""Boxes as people have them: COCO's JSON, and Pascal VOC's XML, one file per picture. Files are not trusted.

Coordinates count from the picture's edge: x = 0 is the left side of the first pixel, x = 1 its right one. COCO writes them
like this; VOC numbers pixels from 1 and counts both ends (Everingham et al. 2010), so xmin - 1 and xmax are the sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ..errors import RunError
from ..fit.labels import ByName

DEEPEST = 32  # tags in one another; annotations have 4


@dataclass(frozen=True)
class Box:
    """x0 <= x <= x1, y0 <= y <= y1; `name` and `id` of its category, where the file says so."""

    x0: float
    y0: float
    x1: float
    y1: float
    name: str = ""
    id: int | None = None


@dataclass
class Annotation:
    """The boxes of one picture, and its (width, height) where the file says so."""

    size: tuple[int, int] | None = None
    boxes: list[Box] = field(default_factory=list)


@dataclass(frozen=True)
class Annotations:
    """Those of all pictures, by the name of the picture, and of VOC by the name of the annotation without its ending."""

    by_name: ByName[Annotation]
    by_stem: ByName[Annotation]

    def of(self, file: Path, roots: Sequence[Path]) -> Annotation | None:
        found = self.by_stem.of(file.with_suffix(""), roots)
        return self.by_name.of(file, roots) if found is None else found

    @property
    def names(self) -> list[str]:
        return [*self.by_name.entries, *self.by_stem.entries]


def read_annotations(path: Path) -> Annotations:
    """A COCO .json, a VOC .xml, or a folder of VOC's .xml (and folders of these). RunError says what is wrong, and where."""
    if not path.exists():
        raise RunError(f"no such file or folder of boxes: {path}")
    files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    if not files:
        raise RunError(f"{path} holds no .xml: boxes are a COCO .json, a Pascal VOC .xml, or a folder of the latter")
    if path.suffix.lower() == ".json":
        return Annotations(ByName(_coco(path)), ByName({}))
    stems: dict[str, Annotation] = {}
    named: dict[str, Annotation] = {}
    twice: set[str] = set()
    for file in files:
        name, annotation = _voc(file)
        stems[(file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("").as_posix()] = annotation
        twice |= {name} & set(named)
        named[name] = annotation
    return Annotations(ByName({k: v for k, v in named.items() if k and k not in twice}), ByName(stems))


def _box(edges: Sequence[float], name: str, index: int | None, where: str) -> Box:
    x0, y0, x1, y1 = edges
    if not all(map(math.isfinite, edges)):
        raise RunError(f"{where} has a box with an edge that is no finite number")
    if x1 < x0 or y1 < y0:
        raise RunError(f"{where} has a box that ends before it begins")
    return Box(x0, y0, x1, y1, name, index)


# -- COCO ---------------------------------------------------------------------------------------------------------
def _coco(path: Path) -> dict[str, Annotation]:
    try:
        held = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise RunError(f"cannot read the boxes in {path}: {e}") from e
    if not isinstance(held, dict) or not all(isinstance(held.get(k), list) for k in ("images", "annotations")):
        raise RunError(f"{path} is no COCO file: it has no lists `images` and `annotations`")
    names = {_get(c, "id", int, f"{path}: category {i}"): _get(c, "name", str, f"{path}: category {i}")
             for i, c in enumerate(held.get("categories") or [])}
    found: dict[str, Annotation] = {}
    by_id: dict[Any, Annotation] = {}
    for i, image in enumerate(held["images"]):
        where = f"{path}: image {i}"
        name, key = _get(image, "file_name", str, where), _get(image, "id", (int, str), where)
        if name in found or key in by_id:
            raise RunError(f"{where} ({name!r}, id {key!r}) is there twice")
        size = (image.get("width"), image.get("height"))
        found[name] = by_id[key] = Annotation(size if all(type(s) is int and s > 0 for s in size) else None)
    strangers = 0
    for i, annotation in enumerate(held["annotations"]):
        where = f"{path}: annotation {i}"
        bbox, index = _get(annotation, "bbox", list, where), annotation.get("category_id")
        if len(bbox) != 4 or not all(type(b) in (int, float) for b in bbox) or (index is not None and type(index) is not int):
            raise RunError(f"{where} is no box: bbox is [x, y, width, height], category_id a whole number")
        image = by_id.get(_get(annotation, "image_id", (int, str), where))
        strangers += image is None
        if image is not None:
            x, y, w, h = map(_float, bbox)
            image.boxes.append(_box((x, y, x + w, y + h), names.get(index, ""), index, where))
    if strangers and strangers == len(held["annotations"]):
        raise RunError(f"{path}: none of its {strangers} annotations has the image_id of one of its images")
    return found


def _get(record: Any, key: str, kind: Any, where: str) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RunError(f"{where} has no {key!r} that could be read (found {str(value)[:60]!r})")
    return value


def _float(text: Any) -> float:
    """A number, NaN for what is none or is too large."""
    try:
        return float(text)
    except (ValueError, OverflowError):
        return math.nan


# -- Pascal VOC ---------------------------------------------------------------------------------------------------
EDGES = ("xmin", "ymin", "xmax", "ymax")


class _Voc:
    """The few elements of an annotation that count, gathered while the file is parsed; nothing else is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at: list[str] = []
        self.text: list[str] = []
        self.about: dict[str, str] = {}
        self.objects: list[dict[str, str]] = []

    def start(self, tag: str, attributes: Any) -> None:
        if not self.at and tag != "annotation":
            raise RunError(f"{self.path} is no Pascal VOC annotation: its root is <{tag[:40]}>")
        self.at.append(tag)
        if len(self.at) > DEEPEST:
            raise RunError(f"{self.path} is no Pascal VOC annotation: its elements lie deeper than {DEEPEST} in one another")
        if self.at == ["annotation", "object"]:
            self.objects.append({})
        self.text.clear()

    def data(self, text: str) -> None:
        self.text.append(text)

    def end(self, tag: str) -> None:
        text, where = "".join(self.text).strip(), "/".join(self.at[1:])
        if where in ("filename", "size/width", "size/height"):
            self.about[where] = text
        elif where == "object/name" or (where.startswith("object/bndbox/") and tag in EDGES):
            self.objects[-1][tag] = text
        self.text.clear()
        self.at.pop()

    def refuse(self, *about: Any) -> None:
        raise RunError(f"{self.path} declares a document type, which annotations have no use for and which is not read")


def _voc(path: Path) -> tuple[str, Annotation]:
    """(the name of the picture, its boxes)."""
    found, parser = _Voc(path), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = found.start, found.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = found.data, found.refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (OSError, ValueError, LookupError, expat.ExpatError) as e:
        raise RunError(f"cannot read the boxes in {path}: {e}") from e
    made = Annotation()
    for i, held in enumerate(found.objects):
        where = f"{path}: object {i}"
        missing = [k for k in EDGES if k not in held]
        if missing:
            raise RunError(f"{where} has no bndbox/{missing[0]}")
        x0, y0, x1, y1 = (_float(held[k]) for k in EDGES)
        made.boxes.append(_box((x0 - 1, y0 - 1, x1, y1), held.get("name", ""), None, where))
    width, height = (_float(found.about.get(f"size/{k}", 0)) for k in ("width", "height"))
    if width >= 1 and height >= 1:
        made.size = int(width), int(height)
    return found.about.get("filename", ""), made
