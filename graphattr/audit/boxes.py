"""Where the objects are that a model should look at: boxes in the pixels of its input, and as masks of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import MethodError, RunError
from ..graph import Array
from ..preprocess import Preprocess, Say, Shape, cut_of, fixed_size, picture_size
from .annotations import Annotation, Box, read_annotations

GREEN = (29, 180, 80)
CLASSES = ("auto", "names", "ids", "all")


@dataclass(frozen=True)
class Boxes:
    """`rows`: the boxes of each sample, in pixels of an input of `height` x `width`. `names`: of the model's classes. Of
    `outside` boxes the model sees nothing, of `cut` a part."""

    rows: Sequence[Sequence[Box]]
    height: int
    width: int
    names: Sequence[str] = ()
    outside: int = 0
    cut: int = 0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(repr((self.rows, self.height, self.width, self.names)).encode()).hexdigest()

    def of_class(self, target: Array, classes: str = "auto") -> tuple[list[list[Box]], str]:
        """(the boxes of each sample that are of its explained class, how that was told).

        names: the category is called like the class (one of its names, where commas part them). ids: category_id is its index.
        all: every box. auto: the first of names and ids by which at least half of the samples that have boxes keep one; else all.
        """
        if classes not in CLASSES:
            raise RunError(f"localisation: classes = {classes!r} is none of {', '.join(CLASSES)}")
        known = indices_of(self.names)
        held = sum(map(bool, self.rows))
        for way in ("names", "ids") if classes == "auto" else () if classes == "all" else (classes,):
            chosen = [[b for b in row if _is(b, int(t), way, known)] for row, t in zip(self.rows, target, strict=True)]
            kept = sum(map(bool, chosen))
            if kept and (2 * kept >= held or classes == way):
                return chosen, way
        if classes in ("names", "ids"):
            raise MethodError(f"no box is of the class that is explained, by the {classes} of the categories")
        return [list(row) for row in self.rows], "all"

    def mask(self, boxes: Sequence[Box], height: int, width: int) -> Array:
        """The pixels (height, width) of a map of the input whose middle lies in one of the boxes, for each box at least one."""
        found = np.zeros((height, width), bool)
        for b in boxes:
            (x0, x1), (y0, y1) = _span(b.x0, b.x1, width / self.width), _span(b.y0, b.y1, height / self.height)
            found[min(y0, height - 1) : y1, min(x0, width - 1) : x1] = True
        return found


def _span(low: float, high: float, scale: float) -> tuple[int, int]:
    """Indices i with low <= (i + 1/2) / scale < high, or the one of the middle."""
    first, last = int(np.ceil(low * scale - 0.5)), int(np.ceil(high * scale - 0.5))
    middle = int((low + high) / 2 * scale)
    return (first, last) if last > first else (middle, middle + 1)


def _is(box: Box, target: int, way: str, known: Mapping[str, set[int]]) -> bool:
    return target in known.get(_plain(box.name), ()) if way == "names" else box.id == target


def indices_of(names: Sequence[str]) -> dict[str, set[int]]:
    """Indices of classes by name; commas part names of one class, and classes may share one."""
    found: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        for each in {name, *name.split(",")}:
            found.setdefault(_plain(each), set()).add(i)
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def place_boxes(
    path: Path, files: Sequence[Path], roots: Sequence[Path], pre: Preprocess, shape: Shape, names: Sequence[str], say: Say
) -> Boxes:
    """The boxes that a file says of these pictures, as the preprocessing moves them; what is cut away is counted and said."""
    held = read_annotations(path)
    found = [held.of(f, roots) for f in files]
    if not any(found):
        raise RunError(f"{path} says nothing of these pictures: it names {_some(held.names)}, the pictures are "
                       f"{_some([f.name for f in files])}")
    rows: list[list[Box]] = []
    outside, partly, frame = 0, 0, (0, 0)
    for file, annotation in zip(files, found, strict=True):
        size = picture_size(file)
        cut = cut_of(*size, pre, fixed_size(pre, shape))
        frame = (cut.height, cut.width)
        _check(annotation, size, file, path)
        rows.append([])
        for b in annotation.boxes if annotation else ():
            x = [min(max(v, 0.0), size[0]) * cut.wide / size[0] - cut.left for v in (b.x0, b.x1)]
            y = [min(max(v, 0.0), size[1]) * cut.tall / size[1] - cut.top for v in (b.y0, b.y1)]
            seen = replace(b, x0=max(x[0], 0.0), y0=max(y[0], 0.0), x1=min(x[1], cut.width), y1=min(y[1], cut.height))
            if seen.x1 <= seen.x0 or seen.y1 <= seen.y0:
                outside += 1
            else:
                rows[-1].append(seen)
                partly += (seen.x0, seen.x1, seen.y0, seen.y1) != (*x, *y)
    total = sum(map(len, rows))
    say(f"boxes: {total} in {sum(map(bool, rows))} of {len(files)} pictures; {outside} lie outside of what the model sees, "
        f"{partly} are cut at its edge")
    return Boxes(rows, *frame, names, outside, partly)


def outlined(photo: Array, boxes: Sequence[Box]) -> Array:
    """The picture (H, W, 3) with green frames around the boxes."""
    drawn, thick = photo.copy(), max(1, max(photo.shape) // 160)
    for b in boxes:
        x0, y0, x1, y1 = (round(v) for v in (b.x0, b.y0, b.x1, b.y1))
        frame = np.zeros(photo.shape[:2], bool)
        frame[y0:y1, x0:x1] = True
        frame[y0 + thick : y1 - thick, x0 + thick : x1 - thick] = False
        drawn[frame] = GREEN
    return drawn


def _check(annotation: Annotation | None, size: tuple[int, int], file: Path, path: Path) -> None:
    if annotation is not None and annotation.size not in (None, size):
        wide, tall = annotation.size or size
        turned = " (once it is turned upright, as its EXIF data ask for)" if (tall, wide) == size else ""
        raise RunError(f"{path}: the boxes of {file.name} are for {wide} x {tall} pixels, the picture has {size[0]} x "
                       f"{size[1]}{turned}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "") if names else "none"
