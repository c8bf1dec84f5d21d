"""What an audit of EfficientNet-Lite0 costs, in a process of its own: `python audits.py '{"methods": [...], ...}'` prints JSON.

One thread and its CPU time, because the machine is shared. Rows are samples times passes: those that an explanation ran, and
those that the model alone ran.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from worker import peak

import graphattr
from graphattr.audit import Profile, load_profile
from graphattr.audit.measures import MEASURES, Asked
from graphattr.demo.efficientnet import build
from graphattr.measure import Scorer
from graphattr.runtime import Explainer
from graphattr.session import Device

SPENT: dict[str, Counter[str]] = {}
PLACE = ["other"]


def photos(count: int) -> np.ndarray[Any, Any]:
    """(count, 3, 224, 224): squares cut from scikit-image's photos, as EfficientNet-Lite takes them."""
    from skimage import data
    from skimage.transform import resize

    names, found = ("chelsea", "coffee", "astronaut", "rocket"), []
    for i in range(count):
        photo = getattr(data, names[i % len(names)])()[..., :3]
        side, place = min(photo.shape[:2]) - 8 * (i // len(names)), 6 * (i // len(names))
        square = photo[place : place + side, place : place + side]
        found.append((resize(square, (224, 224), preserve_range=True) - 127) / 128)
    return np.stack(found).transpose(0, 3, 1, 2).astype(np.float32)


def counted(cls: type, name: str) -> None:
    """Every call of the class counts the rows of its feeds as `name`."""
    run = cls.__call__  # type: ignore[operator]

    def calling(self: Any, feeds: Any, *args: Any) -> Any:
        rows = len(next(iter(feeds.values())) if isinstance(feeds, dict) else feeds)
        SPENT.setdefault(PLACE[-1], Counter())[name] += rows
        return run(self, feeds, *args)

    cls.__call__ = calling  # type: ignore[operator]


def timed(place: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def running(*args: Any, **settings: Any) -> Any:
        PLACE.append(place)
        start = time.thread_time()
        try:
            return run(*args, **settings)
        finally:
            SPENT.setdefault(place, Counter())["ms"] += round(1e3 * (time.thread_time() - start))
            PLACE.pop()

    running.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    return running


def main(methods: list[str], samples: int, measures: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Milliseconds and rows by measure, and the peak of memory over what was there before the audit, in MB."""
    counted(Explainer, "explained")
    counted(Scorer, "scored")
    for name, asked in list(MEASURES.items()):
        MEASURES[name] = Asked(timed(name, asked.run), asked.metrics)
    run = import_module("graphattr.audit.run")
    run._maps = timed("maps", run._maps)  # type: ignore[attr-defined]
    standard = load_profile("standard")
    asked = Profile("bench", samples, measures=standard.measures if measures is None else measures)
    x, net = photos(samples), build()
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        timed("all", graphattr.audit)(net, x, methods, asked, folder, batch_size=8, providers=Device("cpu", threads=1))
    return {"spent": SPENT, "peak": peak() - before}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
