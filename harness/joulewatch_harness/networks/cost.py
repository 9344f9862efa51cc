"""Count what one inference of an ONNX graph costs: multiply-accumulates, parameters, bytes. Needs only onnx.

The costs are counted from the file, not from the graph that a runtime optimises, so they are the same on every runtime:

- **MACs**: of convolutions, matrix products, attention and recurrent layers, per inference (if the file fixes the batch
  size, the count is divided by it). By convention, pooling, activations, normalisation and data movement have none.
- **Parameters**: elements of the learned constants. Excluded: means and variances of a BatchNorm, scales and zero
  points, shapes, scalars such as the 1/sqrt(d) of attention.
- **Weight bytes**: the size of the parameters in the type in which they are stored; after a ``QuantizeLinear`` or a
  QONNX ``Quant``, in the number of bits that it produces.
- **Depthwise MACs**, **layers**, **activation elements**, **input pixels**: for predictions. With BatchNorms folded,
  they agree with the published figures of MobileNets within 1 %.
- **Activation bytes**: the bytes that each operator reads and writes. An elementwise operator works in place if it is
  the only reader of its input (BatchNorm and ReLU after a convolution, the addition of a residual). Views (Reshape,
  Flatten) move nothing. A tensor between ``QuantizeLinear`` and ``DequantizeLinear`` counts in its narrow type. Caches
  are not modelled.

What cannot be counted (loops, branches, operators of unknown domains, unknown shapes) is listed, never guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from onnx import TensorProto, numpy_helper

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks.graphs import (
    STANDARD,
    Shape,
    Sizes,
    attribute,
    inlined,
    read_model,
    real_inputs,
    shapes_and_types,
    sizes_in_file,
)
from joulewatch_harness.networks.macs import CONV, MAC_OPS, UNCOUNTABLE, node_macs, uncounted

_VIEWS: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
_QUANTIZERS: Final = frozenset({"QuantizeLinear", "Quant", "BipolarQuant", "IntQuant"})
_DEQUANTIZERS: Final = frozenset({"DequantizeLinear"})
_SELECTING: Final = frozenset({"MaxPool", "GlobalMaxPool", "Transpose", "Slice", "DepthToSpace", "SpaceToDepth"})
"""Operators whose output values are a subset of their input values, so that the output needs no more bits."""
_SHAPE_OPS: Final = frozenset({"Shape", "Size", "ConstantOfShape"})
IN_PLACE: Final = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "BiasGelu", "Cast", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp",
        "FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg",
        "PRelu", "Pow", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign",
        "Sqrt", "Sub", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
_ARGUMENTS: Final[Mapping[str, frozenset[int]]] = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearConvTranspose"), frozenset({1, 2, 4, 5, 6, 7})),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), frozenset({1, 2, 4, 5, 6, 7})),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), frozenset({2, 3})),
    **dict.fromkeys(("Quant", "IntQuant", "FloatQuant"), frozenset({1, 2, 3})),
    "MatMulNBits": frozenset({2, 3, 4}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "BatchNormalization": frozenset({3, 4}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "Clip": frozenset({1, 2}),
    "Pow": frozenset({1}),
    **dict.fromkeys(("Pad", "Resize"), frozenset({1, 2, 3})),
    **dict.fromkeys(("Dropout", "OneHot", "Slice"), frozenset({1, 2, 3, 4})),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Upsample", "TopK", "Split", "CumSum"), frozenset({1})),
    **dict.fromkeys(("Range", "ConstantOfShape", "BipolarQuant"), frozenset({0, 1, 2})),
    **dict.fromkeys(
        ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool"),
        frozenset({1, 2, 3, 4}),
    ),
}
"""Operator -> inputs that are settings, not weights, even where they are float constants."""
_NEVER_LEARNED: Final = frozenset({TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, TensorProto.UINT64})
_BITS: Final[Mapping[int, int]] = {
    kind: bits
    for names, bits in (
        (("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
        (("FLOAT", "INT32", "UINT32"), 32),
        (("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
        (("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
        (("INT4", "UINT4", "FLOAT4E2M1"), 4),
        (("INT2", "UINT2"), 2),
    )
    for kind in (getattr(TensorProto, name, None) for name in names)
    if kind is not None
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCost:
    """One operator of the graph, per inference."""

    name: str
    """Name of the node, or ``Conv_3`` if it has none."""
    op: str
    shape: Shape | None
    """Shape of the first output, with the batch axis; None if unknown."""
    macs: int
    depthwise: bool
    """Whether it is a convolution with one input channel per filter."""
    parameters: int
    weight_bytes: int
    read_bytes: int
    """Activation bytes read."""
    written_bytes: int
    in_place: bool
    """Whether it works in place on its input, or is a view, so that it adds no pass over memory."""

    @property
    def is_layer(self) -> bool:
        """Whether it is a pass over memory, or joins two tensors in place, such as the addition of a residual."""
        return not self.in_place or self.read_bytes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """The costs of a whole graph, per inference."""

    batch: int
    """The batch size of the shapes: 1, or the size that the file fixes."""
    nodes: tuple[NodeCost, ...]
    """In the order of the file; nodes computed from constants alone are excluded."""
    not_counted: Mapping[str, str] = field(default_factory=dict)
    """Operator -> why its multiply-accumulates are not counted."""
    input_elements: int = 0
    """Elements of the inputs, per inference."""
    input_pixels: int = 0
    """Positions of the largest input (height × width, or the length of a sequence), per inference."""

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def macs_depthwise(self) -> int:
        """The part of ``macs`` in depthwise convolutions, which runtimes compute with other kernels."""
        return sum(node.macs for node in self.nodes if node.depthwise)

    @property
    def layers(self) -> int:
        """Number of operators that produce a new tensor; activation functions and normalisations do not."""
        return sum(node.is_layer for node in self.nodes)

    @property
    def activation_elements(self) -> int:
        """Elements of the inputs and of the outputs of all layers, in any type."""
        outputs = sum(math.prod(node.shape or ()) for node in self.nodes if node.is_layer)
        return self.input_elements + outputs // self.batch

    @property
    def operator_types(self) -> tuple[str, ...]:
        return tuple(sorted({node.op for node in self.nodes}))

    @property
    def parameters(self) -> int:
        return sum(node.parameters for node in self.nodes)

    @property
    def weight_bytes(self) -> int:
        return sum(node.weight_bytes for node in self.nodes)

    @property
    def activation_bytes(self) -> int:
        return sum(node.read_bytes + node.written_bytes for node in self.nodes)

    @property
    def operators(self) -> int:
        """Number of passes over memory: nodes that are neither views nor in place."""
        return sum(not node.in_place for node in self.nodes)

    def to_details(self) -> dict[str, str]:
        """Return the costs as stored with a run."""
        details = {
            "macs_per_inference": str(self.macs),
            "parameters": str(self.parameters),
            "weight_bytes": str(self.weight_bytes),
            "activation_bytes": str(self.activation_bytes),
            "operators": str(self.operators),
            "macs_depthwise": str(self.macs_depthwise),
            "activation_elements": str(self.activation_elements),
            "layers": str(self.layers),
            "input_pixels": str(self.input_pixels),
            "operator_types": " ".join(self.operator_types),
        }
        if self.not_counted:
            text = "; ".join(f"{op}: {why}" for op, why in sorted(self.not_counted.items()))
            details["not_counted"] = text if len(text) <= 400 else f"{text[:397]}..."
        return details


def cost_details(path: Path, sizes: Sizes | None = None) -> dict[str, str]:
    """Return the costs of a model file, or the reason why they are unknown; a network can be measured without them.

    Raises:
        ConfigError: The file cannot be read.
    """
    model = read_model(path)
    try:
        return cost_of(model, sizes).to_details()
    except ConfigError as error:
        return {"not_counted": str(error)[:400]}


def cost_of(model: Any, sizes: Sizes | None = None) -> GraphCost:
    """Return the cost of a model.

    Args:
        model: An ``onnx.ModelProto``; it is not modified.
        sizes: Sizes of its inputs. None: as in the file, and 1 for open first axes.

    Raises:
        ConfigError: A symbolic dimension has no size, or the shapes contradict each other.
    """
    return _Count(inlined(model), sizes_in_file(model) if sizes is None else sizes).cost()


@dataclass(frozen=True, slots=True)
class _Constant:
    """A tensor that is the same in every inference."""

    roots: tuple[str, ...]
    """The stored constants from which it is computed."""
    bits: int | None = None
    """Bits per element, if a quantiser reduced them; None: as stored."""


class _Count:
    """The count of one graph without functions."""

    def __init__(self, model: Any, sizes: Sizes) -> None:
        self._graph = model.graph
        self._nodes = list(self._graph.node)
        self._names = _unique_names(self._nodes)
        self._stored = {item.name: item for item in self._graph.initializer}
        for item in self._graph.sparse_initializer:
            self._stored[item.values.name] = item.values
        for node in self._nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t
        self._batch = sizes.batch
        self._shapes, self._types = shapes_and_types(model, sizes.shapes)
        self._constants = {name: _Constant((name,)) for name in self._stored}
        self._active = [node for node in self._nodes if not self._is_constant(node)]
        self._outputs = {item.name for item in self._graph.output}
        self._producer = {name: node for node in self._active for name in node.output if name}
        self._alias: dict[str, str] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in self._active:
            if node.op_type in _VIEWS:
                self._alias[node.output[0]] = self._root(node.input[0])
                if node.output[0] in self._outputs:
                    self._outputs.add(self._root(node.input[0]))
            else:
                for name in self._activations(node):
                    self._readers.setdefault(name, []).append(node)

    def cost(self) -> GraphCost:
        counted: set[str] = set()
        missing: dict[str, str] = {}
        written: dict[str, tuple[int, int]] = {}
        """Tensor -> index of its writer in ``costs``, and its bytes; subtracted if the reader works in place."""
        costs: list[NodeCost] = []
        for node in self._active:
            parameters, weight_bytes = self._weights(node, counted)
            read, out, in_place = self._traffic(node, written, costs)
            name = self._names[id(node)]
            macs = self._macs(node, missing)
            if node.output and node.output[0] not in self._shapes:
                missing[f"bytes of {node.op_type}"] = "the shape of its output is unknown"
            for tensor in node.output:
                written[tensor] = (len(costs), self._bytes(tensor))
            costs.append(
                NodeCost(
                    name=name, op=node.op_type, shape=self._shapes.get(node.output[0]) if node.output else None,
                    macs=macs, depthwise=self._is_depthwise(node),
                    parameters=parameters, weight_bytes=weight_bytes, read_bytes=read, written_bytes=out,
                    in_place=in_place,
                )
            )  # fmt: skip
        inputs = [item.name for item in real_inputs(self._graph)]
        return GraphCost(
            batch=self._batch,
            nodes=tuple(map(self._per_inference, costs)),
            not_counted=missing,
            input_elements=sum(math.prod(self._shapes[name]) for name in inputs) // self._batch,
            input_pixels=max((_positions(self._shapes[name], self._types.get(name, 0)) for name in inputs), default=0),
        )

    def _is_depthwise(self, node: Any) -> bool:
        if node.op_type not in CONV:
            return False
        weights = self._shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1])
        return weights is not None and len(weights) > 2 and weights[1] == 1 and attribute(node, "group", 1) > 1

    def _per_inference(self, cost: NodeCost) -> NodeCost:
        if self._batch == 1:
            return cost
        batch = self._batch
        return dataclasses.replace(
            cost,
            macs=cost.macs // batch,
            read_bytes=cost.read_bytes // batch,
            written_bytes=cost.written_bytes // batch,
        )

    def _macs(self, node: Any, missing: dict[str, str]) -> int:
        op = node.op_type
        if op in MAC_OPS:
            macs = node_macs(node, self._shapes)
            if macs is None:
                missing[op] = "some have unknown shapes or an unsupported form"
            return macs or 0
        why = uncounted(node)
        if why:
            missing[op if node.domain in STANDARD else f"{node.domain}.{op}"] = why
        return 0

    # Constants

    def _is_constant(self, node: Any) -> bool:
        """Return whether a node is computed from constants alone; if so, record its outputs as constants."""
        if node.op_type in UNCOUNTABLE or (node.op_type.startswith("Random") and node.domain in STANDARD):
            return False
        inputs = [name for name in node.input if name]
        if any(name not in self._constants for name in inputs):
            return False
        settings = _ARGUMENTS.get(node.op_type, frozenset())
        sources = [
            self._constants[name]
            for number, name in enumerate(node.input)
            if name and (number not in settings or number == 0)
        ]
        roots = tuple(dict.fromkeys(root for source in sources for root in source.roots))
        bits = sources[0].bits if sources else None
        if node.op_type in _QUANTIZERS:
            bits = self._quantizer_bits(node)
        for name in node.output:
            self._constants.setdefault(name, _Constant(roots, bits))
        return True

    def _quantizer_bits(self, node: Any) -> int:
        if node.op_type == "QuantizeLinear":
            zero = node.input[2] if len(node.input) > 2 else ""
            kind = self._types.get(zero) or self._types.get(node.output[0]) or TensorProto.UINT8
            return _BITS.get(kind, 8)
        if node.op_type == "BipolarQuant":
            return 1
        item = self._stored.get(node.input[3]) if len(node.input) > 3 else None
        value = None if item is None else numpy_helper.to_array(item).ravel()
        return math.ceil(float(value.max())) if value is not None and value.size else 32

    def _weights(self, node: Any, counted: set[str]) -> tuple[int, int]:
        """Return the number and bytes of the parameters that no earlier node has used."""
        settings = _ARGUMENTS.get(node.op_type, frozenset())
        parameters = bits = 0
        for number, name in enumerate(node.input):
            constant = self._constants.get(name)
            if constant is None or number in settings:
                continue
            for root in constant.roots:
                item = self._stored[root]
                elements = math.prod(item.dims)
                if root in counted or item.data_type in _NEVER_LEARNED:
                    continue
                if elements <= 1 and node.op_type in IN_PLACE:
                    continue
                counted.add(root)
                stored = elements * (constant.bits or _BITS.get(item.data_type, 32))
                if node.op_type == "MatMulNBits" and number == 1:  # several weights packed in each byte
                    elements = attribute(node, "K", 0) * attribute(node, "N", 0)
                parameters += elements
                bits += stored
        return parameters, math.ceil(bits / 8)

    # Activations

    def _root(self, name: str) -> str:
        return self._alias.get(name, name)

    def _activations(self, node: Any) -> list[str]:
        """Return the tensors that a node reads, each once; a view is replaced by the tensor under it."""
        names = [name for name in node.input if name and name not in self._constants]
        if node.op_type in _SHAPE_OPS:
            return []
        return list(dict.fromkeys(map(self._root, names)))

    def _bits(self, name: str) -> int:
        """Return the bits per element of a tensor in memory, reduced by the quantisers around it."""
        maker = self._producer.get(name)
        if maker is not None and maker.op_type in _DEQUANTIZERS:
            return self._bits(self._root(maker.input[0]))
        if maker is not None and maker.op_type in _QUANTIZERS:
            return self._quantizer_bits(maker)
        if maker is not None and maker.op_type in _SELECTING and (bits := self._few_bits(maker)) is not None:
            return bits
        readers = self._readers.get(name, [])
        if maker is not None and readers and self._only_quantized(name):
            return max(map(self._quantizer_bits, readers))
        return _BITS.get(self._types.get(name, TensorProto.FLOAT), 32)

    def _few_bits(self, node: Any) -> int | None:
        """Return the bits of the QONNX ``Quant`` before a node that only selects values; None if there is none."""
        maker = self._producer.get(self._root(node.input[0]))
        if maker is None or maker.op_type not in _SELECTING | _QUANTIZERS or maker.op_type == "QuantizeLinear":
            return None
        return self._quantizer_bits(maker) if maker.op_type in _QUANTIZERS else self._few_bits(maker)

    def _bytes(self, name: str) -> int:
        shape = self._shapes.get(name)
        return 0 if shape is None or not name else math.ceil(math.prod(shape) * self._bits(name) / 8)

    def _traffic(self, node: Any, written: dict[str, tuple[int, int]], costs: list[NodeCost]) -> tuple[int, int, bool]:
        """Return the bytes read, the bytes written, and whether the node works in place or is a view."""
        op = node.op_type
        if op in _VIEWS or op in _SHAPE_OPS:
            return 0, 0, True
        inputs = self._activations(node)
        out = sum(self._bytes(name) for name in node.output if name)
        if op in _QUANTIZERS or op in _DEQUANTIZERS:
            leaves = op in _DEQUANTIZERS and node.output[0] in self._outputs
            if leaves:
                kind = self._types.get(node.output[0], TensorProto.FLOAT)
                shape = self._shapes.get(node.output[0]) or ()
                return sum(map(self._bytes, inputs)), math.prod(shape) * _BITS.get(kind, 32) // 8, False
            alone = all(name in self._producer and self._only_quantized(name) for name in inputs)
            if op in _DEQUANTIZERS or alone:
                return 0, 0, True
            return sum(map(self._bytes, inputs)), out, False
        if op in IN_PLACE:
            for name in inputs:
                if not self._can_be_overwritten(name, node):
                    continue
                place, before = written[name]
                costs[place] = dataclasses.replace(
                    costs[place], written_bytes=max(costs[place].written_bytes - before, 0)
                )
                return sum(self._bytes(other) for other in inputs if other != name), out, True
        return sum(map(self._bytes, inputs)), out, False

    def _only_quantized(self, name: str) -> bool:
        return name not in self._outputs and all(item.op_type in _QUANTIZERS for item in self._readers.get(name, []))

    def _can_be_overwritten(self, name: str, reader: Any) -> bool:
        """Return whether ``reader`` may work in place on this tensor."""
        maker = self._producer.get(name)
        if maker is None or maker.op_type in _QUANTIZERS | _DEQUANTIZERS | _VIEWS or name in self._outputs:
            return False
        if len(self._readers.get(name, [])) != 1:
            return False
        before, after = self._shapes.get(name), self._shapes.get(reader.output[0])
        return before is not None and after is not None and math.prod(before) == math.prod(after)


def _positions(shape: Shape, kind: int) -> int:
    """Return height × width of an image, the length of a sequence, 1 for a vector; the first axis is the batch."""
    if len(shape) == 2 and kind in (TensorProto.INT64, TensorProto.INT32):  # tokens
        return shape[1]
    if len(shape) > 3 and shape[-1] <= 4 < shape[1]:  # channels last
        return math.prod(shape[1:-1])
    return math.prod(shape[2:]) if len(shape) > 2 else 1


def _unique_names(nodes: Sequence[Any]) -> dict[int, str]:
    """Return a unique name for each node, by the identity of the node."""
    used: dict[str, int] = {}
    names: dict[int, str] = {}
    for number, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{number}"
        used[name] = used.get(name, 0) + 1
        names[id(node)] = name if used[name] == 1 else f"{name}#{used[name]}"
    return names
