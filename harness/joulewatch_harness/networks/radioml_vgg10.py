"""RadioML VGG10: the network of the RadioML quantisation challenge, with random, seeded weights.

7 x [Conv1d(k=3, pad=1, no bias) -> BatchNorm -> ReLU -> MaxPool(2)], then Flatten,
2 x [Linear(128, no bias) -> BatchNorm -> ReLU], Linear(24). Input float32 [batch, 2, 1024], output [batch, 24].
F=64 filters is the challenge's network (12.9 million multiply-accumulates per inference), F=32 the smaller
one of the FINN examples (3.3 million); every result states which.

Random weights are good for time and energy, not for accuracy. INT8 is static quantisation (per-channel int8
weights, uint8 activations, QDQ form) of the graph with its BatchNorms folded into the weights. FP16 is the float
graph in half precision with inputs and outputs in float32. Calibration uses I/Q frames of ``radioml`` with another
seed than the frames of a run.

``w4a4`` and ``w5a5`` are QONNX files for reference: weights and activations have 4 or 5 bits (the published
FPGA build has 5), the input has 8 bits over [-2, 2], and ``Quant`` nodes are where Brevitas puts them. FINN and qonnx
read them; ONNX Runtime does not.

Source: Xilinx/brevitas-radioml-challenge-21 (topology); Xilinx/finn-examples, vgg10-radioml (F=32).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from joulewatch_harness.networks import ModelSource
from joulewatch_harness.networks.building import (
    WEIGHTS,
    Floats,
    GraphBuilder,
    Norm,
    cached,
    fold,
    half,
    quantize,
    random_norm,
)
from joulewatch_harness.networks.numpy_forward import rounded
from joulewatch_harness.networks.radioml import CLASSES, FRAME_LENGTH, make_frames

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

BUILDER_VERSION: Final = 1
"""Part of the cached file's name; increase it when the graph, the weights or the calibration change."""
DENSE: Final = 128
CONVOLUTIONS: Final = 7
CALIBRATION_FRAMES: Final = 96
INPUT_SEED: Final = 0
INPUT_FRAMES: Final = 1024
CALIBRATION_SEED: Final = 1
_WEIGHT_SEED: Final = 0
QONNX_BITS: Final[Mapping[str, int]] = {"w4a4": 4, "w5a5": 5}
"""Precision -> bits of weights and of activations."""
INPUT_BITS: Final = 8
INPUT_RANGE: Final = 2.0
_CLIPPED_SHARE: Final = 0.002
"""Share of activations above the quantiser's range; clipping them gives the others a finer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer with weights: a convolution or a fully connected one."""

    name: str
    weight: Floats
    """Shape: [out, in, 3] or [out, in]."""
    bias: Floats | None
    norm: Norm | None

    @property
    def is_convolution(self) -> bool:
        return self.weight.ndim == 3

    def folded(self) -> Layer:
        """Return an equivalent layer with the BatchNorm folded into weight and bias."""
        if self.norm is None:
            return self
        weight, bias = fold(self.weight, self.norm)
        return Layer(name=self.name, weight=weight, bias=bias, norm=None)


def source(precision: str, filters: int) -> ModelSource:
    """Return the model file, cached or newly built, with its inputs and its reference.

    Raises:
        ConfigError: The cache directory cannot be written.
    """

    def reference(inputs: Arrays) -> Floats:
        frames = np.asarray(inputs["input"], dtype=np.float32)
        if precision in QONNX_BITS:
            return forward_quantised(quantised(filters, QONNX_BITS[precision]), frames)
        network = layers(filters)
        return forward(tuple(map(_half, network)) if precision == "fp16" else network, frames)

    return ModelSource(
        path=model_file(filters, precision),
        make_inputs=_make_inputs,
        reference=reference,
        details={"filters": str(filters), "weights": WEIGHTS},
    )


def layers(filters: int) -> tuple[Layer, ...]:
    """Return the layers."""
    rng = np.random.default_rng(_WEIGHT_SEED)
    network: list[Layer] = []
    channels = 2
    for number in range(1, CONVOLUTIONS + 1):
        weight = rng.normal(0.0, np.sqrt(2.0 / (channels * 3)), (filters, channels, 3)).astype(np.float32)
        network.append(Layer(name=f"conv{number}", weight=weight, bias=None, norm=random_norm(rng, filters)))
        channels = filters
    sizes = (filters * (FRAME_LENGTH >> CONVOLUTIONS), DENSE, DENSE, len(CLASSES))
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes), start=1):
        weight = rng.normal(0.0, np.sqrt(2.0 / inner), (outer, inner)).astype(np.float32)
        last = number == len(sizes) - 1
        bias = rng.normal(0.0, 0.1, outer).astype(np.float32) if last else None
        norm = None if last else random_norm(rng, outer)
        network.append(Layer(name=f"fc{number}", weight=weight, bias=bias, norm=norm))
    return tuple(network)


def parameters(network: tuple[Layer, ...]) -> int:
    """Return the number of trainable parameters: weights, biases, and gamma and beta of BatchNorm."""
    total = 0
    for layer in network:
        total += layer.weight.size
        total += 0 if layer.bias is None else layer.bias.size
        total += 0 if layer.norm is None else 2 * len(layer.norm[0])
    return total


def macs(network: tuple[Layer, ...]) -> int:
    """Return the multiply-accumulates of one inference."""
    total, length = 0, FRAME_LENGTH
    for layer in network:
        total += layer.weight.size * (length if layer.is_convolution else 1)
        length //= 2 if layer.is_convolution else 1
    return total


def forward(network: tuple[Layer, ...], frames: Floats) -> Floats:
    """Compute the network in float32 with numpy: the reference for the outputs of all runtimes.

    Args:
        network: From ``layers``.
        frames: [n, 2, 1024].

    Returns:
        Logits, [n, 24].
    """
    x = frames
    for layer in network:
        x = _linear(layer, x)
        if layer.name != "fc3":
            x = np.maximum(x, 0.0)
        if layer.is_convolution:
            x = x.reshape(*x.shape[:2], -1, 2).max(axis=3)
    return np.asarray(x, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantLayer:
    """A quantised layer: weights, and the quantisation steps of weights and outputs."""

    layer: Layer
    """Its weights are multiples of ``weight_step``; its BatchNorm is not folded and stays float."""
    bits: int
    weight_step: Floats
    """Quantisation step of the weights, per output channel."""
    output_step: float | None
    """Quantisation step of the ReLU's output; None for the last layer, whose output is not quantised."""

    @property
    def shaped_step(self) -> Floats:
        return self.weight_step.reshape(-1, *[1] * (self.layer.weight.ndim - 1))


@functools.lru_cache(maxsize=4)
def quantised(filters: int, bits: int) -> tuple[QuantLayer, ...]:
    """Return the quantised network; the steps of its activations come from calibration frames, layer by layer."""
    top = 2 ** (bits - 1) - 1
    x = _quantised_input(make_frames(len(CLASSES), seed=CALIBRATION_SEED).iq)
    network: list[QuantLayer] = []
    for layer in layers(filters):
        largest: Floats = np.abs(layer.weight).reshape(len(layer.weight), -1).max(axis=1)
        step: Floats = largest / np.float32(top)
        shaped = step.reshape(-1, *[1] * (layer.weight.ndim - 1))
        weight = np.clip(np.rint(layer.weight / shaped), -top, top).astype(np.float32) * shaped
        rounded = Layer(name=layer.name, weight=weight, bias=layer.bias, norm=layer.norm)
        output_step = None
        if layer.norm is not None:
            outputs = np.maximum(_linear(rounded, x), 0.0)
            output_step = float(np.float32(np.quantile(outputs, 1 - _CLIPPED_SHARE) / (2**bits - 1)))
        network.append(
            QuantLayer(layer=rounded, bits=bits, weight_step=step.astype(np.float32), output_step=output_step)
        )
        x = _quantised_layer(network[-1], x)
    return tuple(network)


def forward_quantised(network: tuple[QuantLayer, ...], frames: Floats) -> Floats:
    """Compute the quantised network with numpy: the reference for runtimes of the QONNX file.

    Args:
        network: From ``quantised``.
        frames: [n, 2, 1024].

    Returns:
        Logits, [n, 24].
    """
    x = _quantised_input(frames)
    for item in network:
        x = _quantised_layer(item, x)
    return x


def _quantised_input(frames: Floats) -> Floats:
    top = 2 ** (INPUT_BITS - 1)
    step = np.float32(INPUT_RANGE / top)
    return np.asarray(np.clip(np.rint(frames / step), -top, top - 1) * step, dtype=np.float32)


def _quantised_layer(item: QuantLayer, x: Floats) -> Floats:
    y = _linear(item.layer, x)
    if item.output_step is not None:
        step = np.float32(item.output_step)
        y = np.clip(np.rint(np.maximum(y, 0.0) / step), 0, 2**item.bits - 1) * step
    if item.layer.is_convolution:
        y = y.reshape(*y.shape[:2], -1, 2).max(axis=3)
    return np.asarray(y, dtype=np.float32)


def _half(layer: Layer) -> Layer:
    """Return the layer with its weights rounded to half precision."""
    norm = None if layer.norm is None else tuple(rounded(array) for array in layer.norm)
    bias = None if layer.bias is None else rounded(layer.bias)
    return Layer(name=layer.name, weight=rounded(layer.weight), bias=bias, norm=cast("Norm | None", norm))


def _linear(layer: Layer, x: Floats) -> Floats:
    """Compute one layer with its BatchNorm, without the ReLU."""
    part = layer.folded()
    bias = np.zeros(len(part.weight), dtype=np.float32) if part.bias is None else part.bias
    if not part.is_convolution:
        return np.asarray(x.reshape(len(x), -1) @ part.weight.T + bias, dtype=np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    taps = (part.weight[:, :, k] @ padded[:, :, k : k + x.shape[2]] for k in range(3))
    return np.asarray(sum(taps) + bias[:, None], dtype=np.float32)


def model_file(filters: int, precision: str) -> Path:
    """Return the ONNX file in the cache; build it if it is missing.

    Raises:
        ConfigError: The cache directory cannot be written.
    """

    def build(path: Path) -> None:
        import onnx

        if precision == "int8":
            quantize(graph(filters, folded=True), path, _calibration())
        elif precision in QONNX_BITS:
            onnx.save(qonnx_graph(filters, QONNX_BITS[precision]), path)
        else:
            model = graph(filters, folded=False)
            onnx.save(half(model) if precision == "fp16" else model, path)

    return cached(f"radioml-vgg10-f{filters}", precision, BUILDER_VERSION, build)


def graph(filters: int, *, folded: bool) -> Any:
    """Return the network as an ``onnx.ModelProto`` with a dynamic batch axis."""
    builder = GraphBuilder("radioml_vgg10")
    x = "input"
    for layer in layers(filters):
        part = layer.folded() if folded else layer
        x = _layer_nodes(builder, part, x, builder.constant(f"{part.name}.weight", part.weight))
        if part.name != "fc3":
            x = builder.node("Relu", [x], f"{part.name}.relu")
        if part.is_convolution:
            x = builder.node("MaxPool", [x], f"{part.name}.pool", kernel_shape=[2], strides=[2])
    return _finish(builder)


def qonnx_graph(filters: int, bits: int) -> Any:
    """Return the quantised network as QONNX: an ``onnx.ModelProto`` with ``Quant`` nodes."""
    builder = GraphBuilder(f"radioml_vgg10_w{bits}a{bits}")
    step = np.array(INPUT_RANGE / 2 ** (INPUT_BITS - 1), dtype=np.float32)
    x = builder.quant("input", "input.quant", scale=step, bits=INPUT_BITS, signed=True, narrow=False)
    for item in quantised(filters, bits):
        layer = item.layer
        name = f"{layer.name}.weight"
        weight = builder.quant(
            builder.constant(name, layer.weight),
            f"{name}.quant",
            scale=item.shaped_step,
            bits=bits,
            signed=True,
            narrow=True,
        )
        x = _layer_nodes(builder, layer, x, weight)
        if item.output_step is not None:
            x = builder.node("Relu", [x], f"{layer.name}.relu")
            scale = np.array(item.output_step, dtype=np.float32)
            x = builder.quant(x, f"{layer.name}.quant", scale=scale, bits=bits, signed=False, narrow=False)
        if layer.is_convolution:
            x = builder.node("MaxPool", [x], f"{layer.name}.pool", kernel_shape=[2], strides=[2])
    return _finish(builder)


def _layer_nodes(builder: GraphBuilder, layer: Layer, x: str, weight: str) -> str:
    """Add a convolution or Gemm with its BatchNorm, without the ReLU; return its output."""
    if layer.name == "fc1":
        x = builder.node("Flatten", [x], "flatten", axis=1)
    inputs = [x, weight]
    if layer.bias is not None:
        inputs.append(builder.constant(f"{layer.name}.bias", layer.bias))
    if layer.is_convolution:
        x = builder.node("Conv", inputs, layer.name, kernel_shape=[3], pads=[1, 1], strides=[1])
    else:
        x = builder.node("Gemm", inputs, layer.name, transB=1)
    if layer.norm is not None:
        x = builder.batch_norm(x, layer.name, layer.norm)
    return x


def _finish(builder: GraphBuilder) -> Any:
    from onnx import TensorProto

    return builder.finish({"input": (TensorProto.FLOAT, [2, FRAME_LENGTH])}, [len(CLASSES)])


def _calibration() -> Iterator[Arrays]:
    """Yield the calibration frames as batches of one."""
    for frame in make_frames(CALIBRATION_FRAMES, seed=CALIBRATION_SEED).iq:
        yield {"input": frame[None]}


@functools.lru_cache(maxsize=1)
def _frames() -> Floats:
    """Return the input frames; cached, because they take half a second and each window needs a batch."""
    return make_frames(INPUT_FRAMES, seed=INPUT_SEED).iq


def _make_inputs(batch: int) -> Arrays:
    """Return the first ``batch`` frames of the pool; a larger batch repeats them."""
    return {"input": np.resize(_frames(), (batch, 2, FRAME_LENGTH))}
