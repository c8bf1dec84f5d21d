"""The operating table: a model whose nodes and tensors are linked, so that passes can cut and join.

The only user of onnx_graphsurgeon. That loses metadata, raw attributes and sequence types; the protos are kept beside it,
and nothing above `folding.py` and `canonical.py` sees it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .errors import ModelError
from .foreign import standardise
from .graph import Array
from .rewrite import scopes
from .sequences import resolve
from .source import Source, array_of
from .tensors import dense
from .upgrade import upgrade


@dataclass
class Table:
    """The model on the operating table. `removed` maps each tensor that a pass took away to its successor."""

    surgeon: Any
    model: onnx.ModelProto
    source: Source
    protos: dict[int, onnx.NodeProto]
    pinned: set[str]  # tensors that somebody asks for by name: graph outputs, and what bodies of If, Loop and Scan read
    names: set[str]
    removed: dict[str, str] = field(default_factory=dict)
    _ranks: dict[str, int] | None = None

    @property
    def opset(self) -> int:
        return next(int(o.version) for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    @property
    def nodes(self) -> list[Any]:
        """The nodes still on the table, in the file's order."""
        return [n for n in self.surgeon.nodes if n.outputs]

    # -- looking --------------------------------------------------------------------------------------------------
    def array(self, tensor: Any) -> Array | None:
        """The elements of an initialiser or of a Constant node's output; None for a variable."""
        values = getattr(tensor, "_values", None)
        if isinstance(values, np.ndarray):
            return values
        proto = getattr(values, "tensor", None) if values is not None else self._constant_node(tensor)
        return array_of(proto, self.source.folder) if isinstance(proto, onnx.TensorProto) else None

    def _constant_node(self, tensor: Any) -> onnx.TensorProto | None:
        node = maker(tensor)
        proto = self.protos.get(id(node)) if node is not None and node.op == "Constant" and not node.domain else None
        held: list[onnx.TensorProto] = [] if proto is None else [a.t for a in proto.attribute if a.name == "value"]
        return held[0] if held else None

    def rank(self, tensor: Any) -> int | None:
        """Number of axes: as the file says, else by ONNX's inference over the whole model without its weights."""
        if tensor.shape is None and self._ranks is None:
            self._ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in _inferred(self.model).graph.value_info}
        return len(tensor.shape) if tensor.shape is not None else (self._ranks or {}).get(tensor.name)

    def sole(self, tensor: Any) -> bool:
        """Read by exactly one node, and by nobody who asks for it by name."""
        return len(tensor.outputs) == 1 and tensor.name not in self.pinned

    def constant_operand(self, node: Any) -> int | None:
        """Which of a node's two inputs is the constant; None unless exactly one is."""
        found = [i for i, t in enumerate(node.inputs) if self.array(t) is not None]
        return found[0] if len(found) == 1 and len(node.inputs) == 2 else None

    # -- cutting --------------------------------------------------------------------------------------------------
    def bypass(self, node: Any) -> None:
        """Let the node's readers read its input instead."""
        before, after = node.inputs[0], node.outputs[0]
        for reader in list(after.outputs):
            reader.inputs = [before if t is after else t for t in reader.inputs]
        self.removed[after.name] = before.name
        self.discard(node)

    def absorb(self, keeper: Any, node: Any) -> None:
        """`keeper` takes over the name and the output of the node that was folded into it."""
        before, after = keeper.outputs[0], node.outputs[0]
        self.removed[before.name] = after.name
        self.discard(node)
        keeper.outputs = [after]
        keeper.name = node.name or keeper.name

    def discard(self, node: Any) -> None:
        node.inputs.clear()
        node.outputs.clear()

    def rewrite(self, node: Any, op: str, inputs: list[Any]) -> None:
        """Make the node another one, without attributes, that keeps its name and output."""
        node.op, node.attrs, node.inputs = op, {}, inputs
        self.protos.pop(id(node), None)

    def set_attributes(self, node: Any, **attrs: Any) -> None:
        """Change attributes of a node; None takes one away."""
        node.attrs.update(attrs)
        for name in [k for k, v in attrs.items() if v is None]:
            del node.attrs[name]
        self.protos.pop(id(node), None)

    def set_constant(self, node: Any, index: int, array: Array) -> None:
        """Give the node a new constant input; the old one may have other readers and stays as it is."""
        import onnx_graphsurgeon as gs

        known = node.inputs[index].name if index < len(node.inputs) else ""
        base = known.removesuffix("/folded") or f"{node.name or node.outputs[0].name}.bias"
        name = next(n for i in itertools.count() if (n := f"{base}/folded" + (f"_{i}" if i else "")) not in self.names)
        self.names.add(name)
        tensor = gs.Constant(name, np.asarray(array, order="C"))
        node.inputs = [*node.inputs[:index], tensor, *node.inputs[index + 1 :]]


def maker(tensor: Any) -> Any:
    """The node that makes the tensor, or None."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def load(source: Source) -> Table:
    """Lay the model on the table: local functions inlined, opset >= 17, no foreign operators or sequences, weights unread."""
    import onnx_graphsurgeon as gs
    from onnx.inliner import inline_local_functions

    model = _without_sparse(source.model, source.folder)
    if len(model.functions):
        model = inline_local_functions(model, convert_version=False)
    own = source.path is not None  # read here: nobody else holds it, and the weights need no second copy
    model = resolve(standardise(upgrade(model, in_place=own)))
    with warnings.catch_warnings(), gs.logger.G_LOGGER.suppress():  # it prints to stdout
        warnings.simplefilter("ignore")
        try:
            surgeon = gs.import_onnx(model)
        except Exception as e:
            raise ModelError(f"onnx-graphsurgeon cannot import this graph: {type(e).__name__}: {e}") from e
    protos = {id(s): p for s, p in zip(surgeon.nodes, model.graph.node, strict=True)}
    pinned = {o.name for o in model.graph.output} | {name for p in model.graph.node for name in captured(p)}
    names = {t.name for t in model.graph.initializer} | {o for n in model.graph.node for o in n.output}
    return Table(surgeon, model, source, protos, pinned, names | {i.name for i in model.graph.input})


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred types; large weights are left out, as inputs of their shape."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    for part in ("node", "input", "output"):
        getattr(bare.graph, part).extend(getattr(model.graph, part))
    given = {i.name for i in model.graph.input}
    for t in model.graph.initializer:
        if int(np.prod(t.dims, dtype=np.int64)) <= 64:
            bare.graph.initializer.append(t)
        elif t.name not in given:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return onnx.shape_inference.infer_shapes(bare)


def _without_sparse(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """The model with sparse initialisers and constants written out; the very object given when there are none."""
    def sparse(nodes: Iterable[onnx.NodeProto]) -> list[onnx.AttributeProto]:
        return [a for n in nodes if n.op_type == "Constant" for a in n.attribute if a.name == "sparse_value"]

    if not any(sparse(nodes) or (g is not None and g.sparse_initializer) for nodes, g in scopes(model)):
        return model
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for nodes, graph in scopes(out):
        for a in sparse(nodes):
            a.CopyFrom(onnx.helper.make_attribute("value", dense(a.sparse_tensor, folder)))
        if graph is not None:
            graph.initializer.extend(dense(t, folder) for t in graph.sparse_initializer)
            del graph.sparse_initializer[:]
    return out


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names of outer tensors that the bodies of If, Loop and Scan may read."""
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs):
            yield from (o.name for o in body.output)
            for inner in body.node:
                yield from inner.input
                yield from captured(inner)
