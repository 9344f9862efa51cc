"""Count the multiply-accumulates of single ONNX operators, also of those of ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.networks.graphs import STANDARD, Shape, attribute

CONV: Final = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger", "DeformConv", "QLinearConv"})
_MATMUL: Final = frozenset(
    {
        "MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "QLinearMatMul",
    }
)  # fmt: skip
_GEMM: Final = frozenset({"Gemm", "FusedGemm", "QGemm"})
_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
MAC_OPS: Final = (
    CONV
    | _MATMUL
    | _GEMM
    | _RECURRENT
    | {"ConvTranspose", "QLinearConvTranspose", "MatMulNBits", "Einsum"}
    | {"Attention", "MultiHeadAttention", "QAttention"}
)
"""Operators whose multiply-accumulates are counted."""
UNCOUNTABLE: Final[Mapping[str, str]] = {
    "If": "the branch taken depends on the input",
    "Loop": "the number of iterations depends on the input",
    "Scan": "its body is not analysed",
    "SequenceMap": "the number of iterations depends on the input",
    "DFT": "its cost depends on the algorithm",
    "STFT": "its cost depends on the algorithm",
    "Det": "its cost depends on the algorithm",
}
_OTHER_FREE: Final = frozenset(
    {
        "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearConcat",
        "QLinearAveragePool", "QLinearGlobalAveragePool", "QuantizeLinear", "DequantizeLinear",
        "DynamicQuantizeLinear", "FastGelu", "Gelu", "QuickGelu", "BiasGelu", "BiasAdd", "BiasSoftmax",
        "BiasSplitGelu", "SkipLayerNormalization", "EmbedLayerNormalization", "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization", "NhwcMaxPool", "RotaryEmbedding", "GatherBlockQuantized", "ReorderInput",
        "ReorderOutput", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample", "Pad", "Trilu",
        "GroupNorm", "NhwcUpsample", "Quant", "BipolarQuant", "IntQuant", "FloatQuant", "Trunc",
    }
)  # fmt: skip
"""Operators outside the ONNX domains that have no multiply-accumulates."""


def node_macs(node: Any, shapes: Mapping[str, Shape]) -> int | None:
    """Return the multiply-accumulates of one node for the whole batch; None if a shape or the variant is unknown.

    Layouts do not matter: weights have the same sizes whether activations are NCHW, NHWC or blocked.
    """
    op = node.op_type
    input_shapes = [shapes.get(name) for name in node.input]
    output = shapes.get(node.output[0]) if node.output else None

    def size(number: int) -> Shape | None:
        return input_shapes[number] if number < len(input_shapes) and node.input[number] else None

    if op in _RECURRENT:
        x, w, r = size(0), size(1), size(2)
        return None if x is None or w is None or r is None else x[0] * x[1] * (math.prod(w) + math.prod(r))
    if op == "Einsum":
        return _einsum_macs(attribute(node, "equation", ""), input_shapes)
    if op in ("Attention", "MultiHeadAttention", "QAttention"):
        return _attention_macs(node, size)
    if op in ("ConvTranspose", "QLinearConvTranspose"):
        x, w = size(0), size(3 if op.startswith("QLinear") else 1)
        return None if x is None or w is None else math.prod(x) * math.prod(w[1:])
    if output is None:
        return None
    if op in CONV:
        w = size(3 if op == "QLinearConv" else 1)
        return None if w is None else math.prod(output) * math.prod(w[1:])
    if op == "MatMulNBits":
        inner = attribute(node, "K", 0)
        return math.prod(output) * inner if inner else None
    a = size(0)
    if a is None:
        return None
    if op in _GEMM:
        return math.prod(output) * (math.prod(a) // output[0]) if output[0] else 0
    if op in _MATMUL:
        transposed = len(a) > 1 and (attribute(node, "transA", 0) or op == "TransposeMatMul")
        return math.prod(output) * a[-2 if transposed else -1]
    return None


def uncounted(node: Any) -> str:
    """Return why the cost of an operator outside ``MAC_OPS`` is unknown; empty if it has no multiply-accumulates."""
    if node.domain in STANDARD or node.domain == "ai.onnx.ml":
        return UNCOUNTABLE.get(node.op_type, "")
    return "" if node.op_type in _OTHER_FREE else "unknown operator"


def _einsum_macs(equation: str, shapes: Sequence[Shape | None]) -> int | None:
    """Return the product of all index sizes, for two operands; with more, the cost depends on the order."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or len(shapes) != 2 or "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if shape is None or len(term) != len(shape):
            return None
        sizes |= {letter: max(size, sizes.get(letter, 1)) for letter, size in zip(term, shape, strict=True)}
    return math.prod(sizes.values())


def _attention_macs(node: Any, size: Any) -> int | None:
    q, k, v = size(0), size(1), size(2)
    if q is None or k is None:
        return None
    if node.domain in STANDARD:  # queries, keys, values; its only products are the scores and the weighted sum
        if v is None:
            return None
        past = size(4)
        past_tokens = past[-2] if past is not None else 0
        if len(q) == len(k) == len(v) == 4:
            return int(q[0] * q[1] * q[2] * (k[2] + past_tokens) * (k[3] + v[3]))
        heads, groups = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
        if not (heads and groups and len(q) == len(k) == len(v) == 3):
            return None
        return int(q[0] * q[1] * (k[1] + past_tokens) * heads * (k[2] // groups + v[2] // groups))
    if node.op_type == "MultiHeadAttention":
        plain = v is not None and len(q) == len(k) == len(v) == 3
        return int(q[0] * q[1] * k[1] * (k[2] + v[2])) if plain else None
    if len(q) != 3 or len(k) != 2:  # Attention, QAttention: the input, and the weights of all three projections
        return None
    return int(q[0] * q[1] * math.prod(k) + 2 * q[0] * q[1] * q[1] * (k[1] // 3))
