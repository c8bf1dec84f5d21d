"""Where ONNX Runtime's CUDA provider will place each node of a model, as far as its table of kernels says so.

A node that has no kernel there runs on the CPU, and its inputs and outputs travel. `cuda_kernels.txt` is the table of one
release, made by `tests/bench/without_gpu.py`. What it cannot say stands in `_REFUSED`: conditions on attributes under which the
provider turns nodes down. Nodes that compute shapes are on the CPU by intention, ONNX Runtime's as well as ours, and are counted
apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from .infer import schema_of
from .rewrite import Book

RELEASE = "1.31"
EVERY = frozenset(["bf16", "bool", "f16", "f32", "f64", *(f"{sign}{bits}" for sign in "iu" for bits in (8, 16, 32, 64))])
SHORT = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool", "string": "str"}
SMALL = frozenset(["bool", "i32", "i64"])  # what shapes are computed in
SHAPES, CONSTANT = {"Shape", "Size"}, {"Constant"}
MAKERS = {"ConstantOfShape", "Expand", "OneHot", "EyeLike", "Tile"}  # of large tensors, out of shapes
EXPANDED = {"CastLike"}  # functions of ONNX that ONNX Runtime knows by their bodies alone


@dataclass(frozen=True)
class Kernel:
    """Serves a definition since `first`, or since any version up to `last`, with these element types."""

    first: int
    last: int
    types: Mapping[str, frozenset[str]]


@functools.cache
def kernels() -> Mapping[str, list[Kernel]]:
    """Operator (with its domain, unless that is ai.onnx) -> its kernels on CUDA."""
    found: dict[str, list[Kernel]] = {}
    for line in files(__package__).joinpath("cuda_kernels.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, versions, *types = line.split(" ")
        first, _, last = versions.rstrip("+").partition("-")
        table = {k: EVERY if v == "all" else frozenset(v.split(",")) for k, _, v in (t.partition("=") for t in types)}
        found.setdefault(name, []).append(Kernel(int(first), int(last or first), table))
    return found


@dataclass
class Walk:
    """What was seen of one model: counts, and what is left to the CPU."""

    opsets: Mapping[str, int]
    types: Mapping[str, str]
    shapes: int = 0
    cuda: int = 0
    left: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def graph(self, g: GraphProto, outer: frozenset[str]) -> None:
        """`outer`: tensors around g that hold shapes or constants."""
        light = {*outer, *(t.name for t in g.initializer), ""}
        for node in g.node:
            for a in node.attribute:
                if a.type == AttributeProto.GRAPH:
                    self.graph(a.g, frozenset(light))
            if node.op_type in SHAPES or (
                node.op_type not in MAKERS
                and all(i in light for i in node.input)
                and all(self.types.get(o) in SMALL for o in node.output if o)
            ):
                light.update(node.output)
                self.shapes += 1
                continue
            if node.op_type in CONSTANT:
                light.update(node.output)
                continue
            why = self.refusal(node)
            if why is None:
                self.cuda += 1
            else:
                self.left.setdefault((node.op_type, why), []).append(node.name)

    def refusal(self, node: NodeProto) -> str | None:
        """Why the node has no kernel on CUDA, or None."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type in EXPANDED and not domain:
            return None
        held = kernels().get(f"{domain}.{node.op_type}" if domain else node.op_type)
        if held is None:
            return "no kernel"
        said = _REFUSED[node.op_type](node) if node.op_type in _REFUSED else None
        if said:
            return said
        schema = schema_of(node.op_type, domain, self.opsets.get(domain, 1))
        if schema is None:
            return None  # a domain that ONNX does not know
        since = schema.since_version
        serving = [k for k in held if k.first <= since <= k.last]
        if not serving:
            return f"no kernel for its definition of opset {since}"
        used = self.used(node, schema)
        if any(all(v in k.types[t] for t, v in used.items() if t in k.types) for k in serving):
            return None
        return f"no kernel for {', '.join(f'{t} = {v}' for t, v in used.items())}"

    def used(self, node: NodeProto, schema: Any) -> dict[str, str]:
        """Type parameter -> the element type that it has here, where known."""
        found: dict[str, str] = {}
        for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for i, name in enumerate(names):
                one = formal[min(i, len(formal) - 1)]
                if name in self.types and one.is_homogeneous:
                    found.setdefault(one.type_str, self.types[name])
        return found


def placement(model: onnx.ModelProto) -> dict[str, Any]:
    """What `graphattr.placement` gives: counts, and the nodes left to the CPU grouped by operator and reason."""
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    types = {name: _short(number) for name, (number, _) in Book(model).types.items() if number}
    walk = Walk(opsets, types)
    walk.graph(model.graph, frozenset())
    left = [{"op": op, "why": why, "count": len(names), "nodes": names} for (op, why), names in walk.left.items()]
    return {"onnxruntime": RELEASE, "opset": opsets.get("", 1), "cuda": walk.cuda, "shapes": walk.shapes, "cpu": left}


def _short(number: int) -> str:
    name = str(TensorProto.DataType.Name(number)).lower()
    return SHORT.get(name, name.replace("uint", "u").replace("int", "i"))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != AttributeProto.GRAPH}


def _uneven(node: NodeProto) -> str | None:
    """The padding of a ConvTranspose that is not the same at both ends, or may turn out so."""
    a = _attributes(node)
    pads = a.get("pads") or []
    if list(pads[: len(pads) // 2]) != list(pads[len(pads) // 2 :]):
        return "pads differ between the two ends"
    found_out = a.get("output_shape") or b"SAME" in a.get("auto_pad", b"")
    return "its padding follows from output_shape or auto_pad" if found_out else None


def _last_index(node: NodeProto) -> str | None:
    return "select_last_index" if _attributes(node).get("select_last_index") else None


_REFUSED: Mapping[str, Callable[[NodeProto], str | None]] = {
    "ConvTranspose": _uneven,
    "ArgMax": _last_index,
    "ArgMin": _last_index,
}
