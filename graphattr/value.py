"""Value: a tensor of the graph, with Python's operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

import numpy as np

from .contents import Dim
from .errors import BuildError
from .infer import Shape

if TYPE_CHECKING:
    from .graph import Graph

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Attr: TypeAlias = Any  # int, float, str, list of these, array, Graph, or a raw AttributeProto kept as it came
FLOATS = {"float16", "bfloat16", "float32", "float64"}
Operand: TypeAlias = "Value | Array | float | int | bool | Sequence[int] | Sequence[float] | None"


class Stored(Protocol):
    """A tensor that is read only when somebody looks at it (external data, initialisers in the file)."""

    def array(self) -> Array: ...


class Emit(Protocol):
    """`g.Conv`: emit one node; its output, or a tuple of them when `n_outputs` is given."""

    @overload
    def __call__(self, *inputs: Operand, n_outputs: Literal[1] = 1, out_shape: Shape | None = None, **attrs: Attr) -> Value: ...
    @overload
    def __call__(self, *inputs: Operand, n_outputs: int, out_shape: Shape | None = None, **attrs: Attr) -> tuple[Value, ...]: ...


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Value:
    """A tensor of the graph: a node's output, a graph input, or a constant (then `data` is not None)."""

    name: str
    dtype: np.dtype[Any] | None
    shape: Shape | None
    graph: Graph
    stored: Array | Stored | None = None
    content: tuple[Dim, ...] | int | str | None = None  # of small int64 tensors: their elements, as far as known

    @property
    def data(self) -> Array | None:
        stored = self.stored
        return stored if stored is None or isinstance(stored, np.ndarray) else stored.array()

    @property
    def is_const(self) -> bool:
        return self.stored is not None

    @property
    def is_float(self) -> bool:
        return self.dtype is not None and self.dtype.name in FLOATS  # not float8: those are levels, without arithmetic

    @property
    def rank(self) -> int:
        if self.shape is None:
            raise BuildError(
                f"the rank of {self.name!r} is unknown, and this step needs it; "
                "run onnx.shape_inference on the model, or give its inputs a shape"
            )
        return len(self.shape)

    def dim(self, axis: int) -> int:
        """The static size of an axis; BuildError where it is symbolic."""
        size = self.shape[axis] if self.shape is not None else None
        if not isinstance(size, int):
            raise BuildError(
                f"axis {axis} of {self.name!r} must have a static size here, but is {size!r}; "
                "export the model with this axis fixed"
            )
        return size

    def __repr__(self) -> str:
        return f"Value({self.name!r}, {self.dtype}, {self.shape})"

    def __bool__(self) -> bool:
        raise TypeError("a graph value has no truth value; use g.Where(condition, a, b)")

    __array_ufunc__ = None  # array + value is a node, not an array of nodes

    def _with(self, op: str, other: Operand) -> Value:
        """op(self, other), in the inner one of their graphs: a body may read what encloses it, not the other way round."""
        g = other.graph if isinstance(other, Value) and other.graph.depth > self.graph.depth else self.graph
        return g.emit(op, self, other)

    def __add__(self, other: Operand) -> Value:
        return self._with("Add", other)

    def __radd__(self, other: Operand) -> Value:
        return self.graph.emit("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self._with("Sub", other)

    def __rsub__(self, other: Operand) -> Value:
        return self.graph.emit("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self._with("Mul", other)

    def __rmul__(self, other: Operand) -> Value:
        return self.graph.emit("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self._with("Div", other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.graph.emit("Div", other, self)

    def __neg__(self) -> Value:
        return self.graph.emit("Neg", self)

    def __gt__(self, other: Operand) -> Value:
        return self._with("Greater", other)

    def __lt__(self, other: Operand) -> Value:
        return self._with("Less", other)

    def __ge__(self, other: Operand) -> Value:
        return self._with("GreaterOrEqual", other)

    def __le__(self, other: Operand) -> Value:
        return self._with("LessOrEqual", other)
