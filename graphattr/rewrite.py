"""Replace nodes of an ONNX model one by one: new names that clash with none, and types where they can be known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .errors import ModelError
from .tensors import Array, array_of, elements, external
from .wellformed import bodies_of, tensors_of

Dims: TypeAlias = tuple[int | None, ...]
Edit: TypeAlias = Callable[["Pen", NodeProto], None]
SMALL = 256
"""Elements up to which a constant travels along for shape inference."""


class Stay(Exception):
    """A rewrite leaves its node as it is; the text says why, should the node lie on the path."""


class Book:
    """What is known about a model while it is edited: names in use, types, constants."""

    def __init__(self, model: ModelProto, floats: dict[str, str] | None = None) -> None:
        self.model = model
        self.floats: dict[str, str] = {} if floats is None else floats      # integer tensor -> a float one of equal values
        self.taken: set[str] = set()
        for nodes, graph in scopes(model):
            self.taken.update(*([n.name, *n.input, *n.output] for n in nodes))
            if graph is not None:
                self.taken.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))

    def fresh(self, name: str) -> str:
        new, i = name, 1
        while new in self.taken:
            new, i = f"{name}_{i}", i + 1
        self.taken.add(new)
        return new

    @cached_property
    def inferred(self) -> ModelProto:
        """The model without its weights, with the types that ONNX infers."""
        try:
            return onnx.shape_inference.infer_shapes(without_weights(self.model))
        except Exception:       # a model that inference cannot follow: every edit has a way without types
            return self.model

    @cached_property
    def types(self) -> dict[str, tuple[int, Dims | None]]:
        """Tensor -> (element type, dims or None), as far as ONNX infers them without the weights."""
        found = {t.name: (t.data_type, tuple(t.dims)) for t in tensors_of(self.model.graph)}
        table: dict[str, tuple[int, Dims | None]] = {**found}
        for _, graph in scopes(self.inferred):
            for v in (*graph.input, *graph.output, *graph.value_info) if graph is not None else ():
                if v.type.HasField("tensor_type"):
                    table.setdefault(v.name, (v.type.tensor_type.elem_type, _dims(v)))
        return table

    @cached_property
    def read(self) -> set[str]:
        """Every tensor that some node reads or some graph gives out."""
        found = {i for nodes, _ in scopes(self.model) for n in nodes for i in n.input}
        return found.union(*({v.name for v in g.output} for _, g in scopes(self.model) if g is not None))

    @cached_property
    def levels(self) -> set[str]:
        """Activations held as 8-bit levels; an edit adds those that it writes."""
        return {n.output[0] for nodes, _ in scopes(self.model) for n in nodes
                if n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")}

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        """Tensor -> the node that made it, as the model was when the edit began."""
        return {o: n for nodes, _ in scopes(self.model) for n in nodes for o in n.output}

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """The main graph's initialisers and Constant nodes."""
        graph = self.model.graph
        table = {t.name: t for t in graph.initializer}
        for n in graph.node:
            if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value":
                table[n.output[0]] = n.attribute[0].t
        return table

    def dtype(self, name: str) -> int:
        return self.types.get(name, (0, None))[0]

    def dims(self, name: str) -> Dims | None:
        return self.types.get(name, (0, None))[1]

    def constant(self, name: str) -> Array | None:
        """The array behind a name, when it is a constant that lies in the model itself."""
        tensor = self.constants.get(name)
        return None if tensor is None or external(tensor) else array_of(tensor)


class Pen:
    """Writes the nodes that replace one node: call it with an operator, its inputs and attributes."""

    def __init__(self, book: Book, node: NodeProto, to: int) -> None:
        self.book, self.node, self.to = book, node, to
        self.stem = node.name or next((o for o in node.output if o), node.op_type)
        self.nodes: list[NodeProto] = []

    def __call__(self, op: str, *inputs: str, out: str | Sequence[str] | None = None, domain: str = "", **attrs: Any) -> str:
        """Emit a node; the name of its first output. The one that writes the replaced node's output inherits its name."""
        outputs = [self.book.fresh(f"{self.stem}_{op}")] if out is None else [out] if isinstance(out, str) else list(out)
        heir = bool(outputs and self.node.output and outputs[0] == self.node.output[0])
        name = self.node.name if heir else outputs[0] if self.node.name else ""
        new = helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attrs)
        if heir:
            new.doc_string = self.node.doc_string
        self.nodes.append(new)
        return outputs[0]

    def const(self, value: Any, what: str, dtype: Any = None) -> str:
        """A Constant node: it works in bodies and functions too, and at every IR version."""
        array = np.asarray(value, dtype)
        name = self.book.fresh(f"{self.stem}_{what}")
        return self("Constant", out=name, value=numpy_helper.from_array(array, name))

    def like(self, value: float, what: str, model: str) -> str:
        """A scalar of the element type of `model`, by CastLike where that type is not known."""
        kind = self.book.dtype(model)
        if kind:
            with np.errstate(over="ignore"):        # float32's lowest as a bound of float16 is -inf
                return self.const(value, what, helper.tensor_dtype_to_np_dtype(kind))
        return self("CastLike", self.const(value, what, np.float32), model)

    def reduce(self, op: str, x: str, axes: Sequence[int] | None, keepdims: int = 1) -> str:
        """A reduction, its axes an input from opset 18 on (ReduceSum: 13)."""
        if axes is None:
            return self(op, x, keepdims=keepdims)
        if self.to >= 18 or op == "ReduceSum":
            return self(op, x, self.const(axes, "axes", np.int64), keepdims=keepdims)
        return self(op, x, axes=list(axes), keepdims=keepdims)

    def keep(self) -> None:
        self.nodes.append(self.node)


def edit(field: Any, change: Callable[[NodeProto], list[NodeProto]]) -> None:
    """Replace each node of a `node` field, those in its bodies first, by what `change` makes of it. In place."""
    for node in field:
        for body in bodies_of(node):
            edit(body.node, change)
    refill(field, [new for node in field for new in _changed(node, change)])


def _changed(node: NodeProto, change: Callable[[NodeProto], list[NodeProto]]) -> list[NodeProto]:
    try:
        return change(node)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise ModelError(f"{node.op_type} {node.name or ', '.join(node.output)!r}: its inputs or attributes do not fit the "
                         f"operator ({type(e).__name__}: {e}); check the file with onnx.checker or export it again") from e


def refill(field: Any, items: Iterable[Any]) -> None:
    """Replace what a repeated field holds."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def scopes(model: ModelProto) -> Iterable[tuple[Sequence[NodeProto], GraphProto | None]]:
    """(nodes, graph) of the main graph, of every function (None) and of every body."""
    def below(nodes: Sequence[NodeProto], graph: GraphProto | None) -> Iterable[tuple[Sequence[NodeProto], GraphProto | None]]:
        yield nodes, graph
        for n in nodes:
            for body in bodies_of(n):
                yield from below(body.node, body)

    yield from below(model.graph.node, model.graph)
    for f in model.functions:
        yield from below(f.node, None)


def without_weights(model: ModelProto) -> ModelProto:
    """A copy in which large initialisers are inputs, for inference that should not serialise gigabytes."""
    graph = model.graph
    thin = ModelProto(ir_version=max(model.ir_version, 4))
    thin.opset_import.extend(model.opset_import)
    thin.functions.extend(model.functions)
    thin.graph.name = graph.name or "g"
    thin.graph.node.extend(graph.node)
    weights = {t.name for t in graph.initializer}
    thin.graph.input.extend(v for v in graph.input if v.name not in weights)
    thin.graph.output.extend(graph.output)
    thin.graph.value_info.extend(graph.value_info)
    for t in graph.initializer:
        if elements(t) <= SMALL and not external(t):
            thin.graph.initializer.append(t)
        else:
            thin.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return thin


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The attribute's value; ModelError when it refers to a parameter of the enclosing function."""
    for a in node.attribute:
        if a.name == name:
            if a.ref_attr_name:
                raise ModelError(f"{node.op_type} {node.name!r}: attribute {name!r} is a parameter of its function and cannot "
                                 "become an input; inline the model's functions first (onnx.inliner.inline_local_functions)")
            value = helper.get_attribute_value(a)
            return value.decode() if isinstance(value, bytes) else value
    return default


def drop(node: NodeProto, *names: str) -> None:
    refill(node.attribute, [a for a in node.attribute if a.name not in names])


def put(node: NodeProto, **attrs: Any) -> None:
    """Set attributes, in place of those of the same name."""
    kept = [a for a in node.attribute if a.name not in attrs]
    refill(node.attribute, kept + [helper.make_attribute(k, v) for k, v in attrs.items()])


def set_inputs(node: NodeProto, *inputs: str) -> None:
    """New inputs; empty ones at the end are left out."""
    names = list(inputs)
    while names and names[-1] == "":
        names.pop()
    refill(node.input, names)


def _dims(v: ValueInfoProto) -> Dims | None:
    t = v.type.tensor_type
    if not t.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in t.shape.dim)
