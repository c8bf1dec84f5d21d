"""Plain derivatives, one short function per operator; a closed set (see `registry`)."""

from . import (  # noqa: F401  (registration)
    columns,
    coordinates,
    deform,
    elementwise,
    index,
    linear,
    norm,
    pool,
    products,
    quantisation,
    reduce,
    resize,
    roi,
    sample,
    scatter,
    shape,
    spectral,
)
from .control import data_inside, pull_control, scanned_inside
from .norm import FROZEN
from .registry import (
    CONSTANT,
    CONTROL,
    VJPS,
    data_outputs,
    depends,
    fit,
    has_vjp,
    is_constant,
    is_control,
    pull,
    pullback,
    total,
    vjp,
)

__all__ = [
    "CONSTANT",
    "CONTROL",
    "FROZEN",
    "VJPS",
    "data_inside",
    "data_outputs",
    "depends",
    "fit",
    "has_vjp",
    "is_constant",
    "is_control",
    "pull",
    "pull_control",
    "pullback",
    "scanned_inside",
    "total",
    "vjp",
]
