"""Plain derivatives, one short function per operator; a closed set (see `registry`)."""

from . import elementwise, index, linear, norm, pool, quantisation, reduce, resize, shape  # noqa: F401  (registration)
from .norm import FROZEN
from .registry import CONSTANT, VJPS, depends, fit, has_vjp, is_constant, pull, pullback, total, vjp

__all__ = ["CONSTANT", "FROZEN", "VJPS", "depends", "fit", "has_vjp", "is_constant", "pull", "pullback", "total", "vjp"]
