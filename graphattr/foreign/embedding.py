"""com.microsoft EmbedLayerNormalization, plain and quantised: embeddings of words, positions, segments, added and normalised."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, attribute
from .heads import index_range, ints, padded, size
from .quantised import dequantised


def embed_layer_norm(pen: Pen, n: NodeProto) -> None:
    words, segments, word, position, segment, gamma, beta, mask, places = padded(n.input, 9)
    _embedded(pen, n, (words, places, segments), (word, position, segment), (gamma, beta), mask)


def qembed_layer_norm(pen: Pen, n: NodeProto) -> None:
    """The same with dequantised tables, scale and shift."""
    words, segments, *tables = padded(n.input, 18)
    levels, mask, scales, zeros = tables[:5], tables[5], tables[6:11], tables[11:]
    word, position, segment, gamma, beta = (dequantised(pen, x, s, z) if x else "" for x, s, z in zip(levels, scales, zeros))
    _embedded(pen, n, (words, "", segments), (word, position, segment), (gamma, beta), mask)


def _embedded(pen: Pen, n: NodeProto, ids: tuple[str, str, str], tables: tuple[str, str, str], norm: tuple[str, str],
              mask: str) -> None:
    """The second output counts the ones of the mask, and is 0 without a mask; the third is the sum that is normalised."""
    (words, places, segments), (word, position, segment), outputs = ids, tables, padded(n.output, 3)
    rows = pen("Gather", position, places or index_range(pen, ints(pen, [0], "zero"), size(pen, words, 1)), axis=0)
    total = pen("Gather", word, words, axis=0)
    if segment:
        total = pen("Add", total, pen("Gather", segment, segments, axis=0))
    total = pen("Add", total, rows, out=outputs[2] or None)
    pen("LayerNormalization", total, *norm, out=outputs[0], axis=-1, epsilon=attribute(n, "epsilon", 1e-12))
    if outputs[1]:
        free = pen("Equal", mask, pen.const(1, "one", np.int32)) if mask else pen("Less", words, words)
        count = pen.reduce("ReduceSum", pen("Cast", free, to=TensorProto.INT64), [1], 0)
        pen("Cast", count, out=outputs[1], to=TensorProto.INT32)


EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", "EmbedLayerNormalization"): embed_layer_norm,
                                      ("com.microsoft", "QEmbedLayerNormalization"): qembed_layer_norm}
