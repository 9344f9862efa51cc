"""Built-in networks for comparison, with the shapes of well-known networks and random, seeded weights.

- ``mlp``: fully connected layers with ReLU, 784 inputs, 10 outputs. Mostly weights, with little arithmetic per byte.
- ``mobilenet-like``: MobileNetV2 (inverted residuals, depthwise convolutions); with ``size=224`` and ``width=100``
  it has the published size: 3,504,872 parameters and 300.8 million multiply-accumulates.
- ``resnet-like``: ResNet-18 or 34 (basic blocks); with ``size=224``, depth 18: 11,689,512 parameters, 1.814 billion
  multiply-accumulates.
- ``transformer-encoder``: token and position embeddings, post-norm encoder layers with ReLU, mean over the tokens.

The defaults are small images and short sequences, so that a CPU finishes a sweep in reasonable time. The weights are
good for time and energy, not for accuracy. INT8 is static quantisation with BatchNorms folded, calibrated with inputs
of another seed.

Source: Sandler et al., MobileNetV2, 2018, table 2; He et al., Deep Residual Learning, 2015, table 1; Vaswani et al.,
Attention Is All You Need, 2017, section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from joulewatch_harness.networks import ModelSource, numpy_forward
from joulewatch_harness.networks.building import (
    WEIGHTS,
    Floats,
    GraphBuilder,
    cached,
    fold,
    half,
    quantize,
    random_norm,
)

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

BUILDER_VERSION: Final = 1
"""Part of the cached file's name; increase it when a graph, the weights or the calibration change."""
CALIBRATION_SAMPLES: Final = 24
INPUT_SAMPLES: Final = 64
INPUT_SEED: Final = 0
CALIBRATION_SEED: Final = 1
WEIGHT_SEED: Final = 0
MLP_INPUTS: Final = 784
MLP_OUTPUTS: Final = 10
IMAGE_CLASSES: Final = 1000
VOCABULARY: Final = 1000
TEXT_CLASSES: Final = 10
_MOBILENET_STAGES: Final = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, channels, blocks, stride of the first block."""
_RESNET_BLOCKS: Final[Mapping[int, tuple[int, ...]]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

Inputs = Callable[[int, int], "Arrays"]
"""Number and seed -> arrays."""


class _Layers(GraphBuilder):
    """Builds layers with random weights, drawn in a fixed order, so that all precisions have the same weights."""

    def __init__(self, name: str, *, folded: bool) -> None:
        super().__init__(name)
        self._folded = folded
        self._rng = np.random.default_rng(WEIGHT_SEED)

    def normal(self, name: str, shape: Sequence[int], deviation: float) -> str:
        return self.constant(name, self._rng.normal(0.0, deviation, shape).astype(np.float32))

    def convolution(
        self,
        x: str,
        name: str,
        inner: int,
        outer: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        rectified: bool = True,
    ) -> str:
        """Add a convolution without bias, followed by a BatchNorm.

        ``rectified`` states that ``x`` is the output of a ReLU, which halves its power. With the right gain,
        activations neither vanish nor saturate, so rounding errors stay small over fifty layers, as in a trained
        network.
        """
        fan = inner // groups * kernel * kernel
        deviation = np.sqrt((2.0 if rectified else 1.0) / fan)
        weight = self._rng.normal(0.0, deviation, (outer, inner // groups, kernel, kernel)).astype(np.float32)
        norm = random_norm(self._rng, outer)
        shape = {
            "kernel_shape": [kernel, kernel],
            "pads": [kernel // 2] * 4,
            "strides": [stride, stride],
            "group": groups,
        }
        if self._folded:
            weight, bias = fold(weight, norm)
            inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
            return self.node("Conv", inputs, name, **shape)
        x = self.node("Conv", [x, self.constant(f"{name}.weight", weight)], name, **shape)
        return self.batch_norm(x, name, norm)

    def dense(self, x: str, name: str, inner: int, outer: int) -> str:
        """Add a Gemm with bias."""
        weight = self.normal(f"{name}.weight", (outer, inner), np.sqrt(2.0 / inner))
        return self.node("Gemm", [x, weight, self.normal(f"{name}.bias", (outer,), 0.1)], name, transB=1)

    def projection(self, x: str, name: str, inner: int, outer: int) -> str:
        """Add a MatMul with bias, for tensors with three axes."""
        weight = self.normal(f"{name}.weight", (inner, outer), np.sqrt(1.0 / inner))
        product = self.node("MatMul", [x, weight], name)
        return self.node("Add", [product, self.normal(f"{name}.bias", (outer,), 0.1)], f"{name}.add")

    def layer_norm(self, x: str, name: str, width: int) -> str:
        scale = self.constant(f"{name}.scale", self._rng.uniform(0.8, 1.2, width).astype(np.float32))
        bias = self.normal(f"{name}.bias", (width,), 0.1)
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-5)

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], f"{name}.relu")

    def relu6(self, x: str, name: str) -> str:
        limits = [self.constant("zero", np.float32(0.0)), self.constant("six", np.float32(6.0))]
        return self.node("Clip", [x, *limits], f"{name}.relu6")

    def classifier(self, x: str, inner: int) -> str:
        x = self.node("GlobalAveragePool", [x], "pool")
        return self.dense(self.node("Flatten", [x], "flatten", axis=1), "classifier", inner, IMAGE_CLASSES)

    def images(self, size: int) -> Any:
        """Return the finished image classifier."""
        from onnx import TensorProto

        return self.finish({"input": (TensorProto.FLOAT, [3, size, size])}, [IMAGE_CLASSES])


def mlp(precision: str, width: int, depth: int) -> ModelSource:
    """Return ``mlp``: ``depth`` hidden layers with ``width`` units each.

    Raises:
        ConfigError: The cache directory cannot be written.
    """
    return _source(
        f"mlp-w{width}-d{depth}",
        precision,
        {"width": width, "depth": depth},
        lambda folded: mlp_graph(width, depth),
        functools.partial(_normal_inputs, (MLP_INPUTS,)),
    )


def mlp_graph(width: int, depth: int) -> Any:
    """Return the network as an ``onnx.ModelProto``."""
    from onnx import TensorProto

    net = _Layers("mlp", folded=True)
    x, inner = "input", MLP_INPUTS
    for number in range(1, depth + 1):
        x, inner = net.relu(net.dense(x, f"fc{number}", inner, width), f"fc{number}"), width
    net.dense(x, f"fc{depth + 1}", inner, MLP_OUTPUTS)
    return net.finish({"input": (TensorProto.FLOAT, [MLP_INPUTS])}, [MLP_OUTPUTS])


def mobilenet_like(precision: str, size: int, width: int) -> ModelSource:
    """Return ``mobilenet-like``: images of ``size`` × ``size`` pixels, ``width`` percent of the channels.

    Raises:
        ConfigError: The cache directory cannot be written.
    """
    return _source(
        f"mobilenet-like-s{size}-w{width}",
        precision,
        {"size": size, "width": width},
        lambda folded: mobilenet_graph(size, width, folded=folded),
        functools.partial(_normal_inputs, (3, size, size)),
    )


def mobilenet_graph(size: int, width: int, *, folded: bool) -> Any:
    """Return the network as an ``onnx.ModelProto``."""

    def channels(count: int) -> int:
        """Scale by the width and round to the nearest multiple of 8, but not below 90 %."""
        exact = count * width / 100
        nearest = max(8, int(exact + 4) // 8 * 8)
        return nearest if nearest >= 0.9 * exact else nearest + 8

    net = _Layers("mobilenet_like", folded=folded)
    inner = channels(32)
    x = net.relu6(net.convolution("input", "stem", 3, inner, 3, stride=2, rectified=False), "stem")
    number = 0
    for expansion, count, blocks, first_stride in _MOBILENET_STAGES:
        outer = channels(count)
        for block in range(blocks):
            number += 1
            stride = first_stride if block == 0 else 1
            name, y, hidden = f"block{number}", x, inner * expansion
            if expansion != 1:
                y = net.convolution(y, f"{name}.expand", inner, hidden, 1, rectified=False)
                y = net.relu6(y, f"{name}.expand")
            depthwise = net.convolution(y, f"{name}.depthwise", hidden, hidden, 3, stride=stride, groups=hidden)
            y = net.convolution(net.relu6(depthwise, f"{name}.depthwise"), f"{name}.project", hidden, outer, 1)
            x = net.node("Add", [x, y], f"{name}.add") if stride == 1 and inner == outer else y
            inner = outer
    last = max(1280, channels(1280))
    x = net.relu6(net.convolution(x, "head", inner, last, 1, rectified=False), "head")
    net.classifier(x, last)
    return net.images(size)


def resnet_like(precision: str, size: int, width: int, depth: int) -> ModelSource:
    """Return ``resnet-like``: ``size`` × ``size`` pixels, ``width`` channels in the first stage, ``depth`` layers.

    Raises:
        ConfigError: The cache directory cannot be written.
    """
    return _source(
        f"resnet-like-s{size}-w{width}-d{depth}",
        precision,
        {"size": size, "width": width, "depth": depth},
        lambda folded: resnet_graph(size, width, depth, folded=folded),
        functools.partial(_normal_inputs, (3, size, size)),
    )


def resnet_graph(size: int, width: int, depth: int, *, folded: bool) -> Any:
    """Return the network as an ``onnx.ModelProto``."""
    net = _Layers("resnet_like", folded=folded)
    x = net.relu(net.convolution("input", "stem", 3, width, 7, stride=2, rectified=False), "stem")
    x = net.node("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = width
    for stage, blocks in enumerate(_RESNET_BLOCKS[depth]):
        outer = width << stage
        for block in range(blocks):
            name, stride = f"stage{stage + 1}.{block + 1}", 2 if block == 0 and stage > 0 else 1
            y = net.relu(net.convolution(x, f"{name}.conv1", inner, outer, 3, stride=stride), f"{name}.conv1")
            y = net.convolution(y, f"{name}.conv2", outer, outer, 3)
            if stride != 1 or inner != outer:
                x = net.convolution(x, f"{name}.shortcut", inner, outer, 1, stride=stride)
            x = net.relu(net.node("Add", [y, x], f"{name}.add"), name)
            inner = outer
    net.classifier(x, inner)
    return net.images(size)


def transformer_encoder(precision: str, sequence: int, width: int, depth: int, heads: int) -> ModelSource:
    """Return ``transformer-encoder``: ``depth`` layers of ``width`` with ``heads`` heads over ``sequence`` tokens.

    Raises:
        ConfigError: The cache directory cannot be written.
    """
    return _source(
        f"transformer-encoder-s{sequence}-w{width}-d{depth}-h{heads}",
        precision,
        {"sequence": sequence, "width": width, "depth": depth, "heads": heads},
        lambda folded: transformer_graph(sequence, width, depth, heads),
        functools.partial(_token_inputs, sequence),
    )


def transformer_graph(sequence: int, width: int, depth: int, heads: int) -> Any:
    """Return the network as an ``onnx.ModelProto``; the feed-forward layers are four times as wide as the others."""
    from onnx import TensorProto

    net = _Layers("transformer_encoder", folded=True)
    table = net.normal("embedding.weight", (VOCABULARY, width), 1.0)
    places = net.normal("position.weight", (sequence, width), 0.5)
    x = net.node("Add", [net.node("Gather", [table, "tokens"], "embedding"), places], "position")
    split = net.constant("split", np.array([0, sequence, heads, width // heads], dtype=np.int64))
    joined = net.constant("joined", np.array([0, sequence, width], dtype=np.int64))
    scale = net.constant("scale", np.float32(1 / np.sqrt(width // heads)))

    def head(x: str, name: str, order: list[int]) -> str:
        parts = net.node("Reshape", [net.projection(x, name, width, width), split], f"{name}.split")
        return net.node("Transpose", [parts], f"{name}.heads", perm=order)

    for number in range(1, depth + 1):
        name = f"layer{number}"
        query = head(x, f"{name}.query", [0, 2, 1, 3])
        key = head(x, f"{name}.key", [0, 2, 3, 1])
        value = head(x, f"{name}.value", [0, 2, 1, 3])
        scores = net.node("MatMul", [net.node("Mul", [query, scale], f"{name}.scale"), key], f"{name}.scores")
        y = net.node("MatMul", [net.node("Softmax", [scores], f"{name}.softmax", axis=-1), value], f"{name}.mix")
        y = net.node("Transpose", [y], f"{name}.together", perm=[0, 2, 1, 3])
        y = net.projection(net.node("Reshape", [y, joined], f"{name}.join"), f"{name}.out", width, width)
        x = net.layer_norm(net.node("Add", [x, y], f"{name}.add1"), f"{name}.norm1", width)
        y = net.relu(net.projection(x, f"{name}.up", width, 4 * width), f"{name}.up")
        y = net.projection(y, f"{name}.down", 4 * width, width)
        x = net.layer_norm(net.node("Add", [x, y], f"{name}.add2"), f"{name}.norm2", width)
    x = net.node("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    net.dense(x, "classifier", width, TEXT_CLASSES)
    return net.finish({"tokens": (TensorProto.INT64, [sequence])}, [TEXT_CLASSES])


def _source(
    label: str, precision: str, sizes: Mapping[str, int], graph: Callable[[bool], Any], inputs: Inputs
) -> ModelSource:
    def build(path: Path) -> None:
        import onnx

        if precision == "int8":
            quantize(graph(True), path, _one_by_one(inputs(CALIBRATION_SAMPLES, CALIBRATION_SEED)))
        else:
            model = graph(False)
            onnx.save(half(model) if precision == "fp16" else model, path)

    def make_inputs(batch: int) -> Arrays:
        return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in pool().items()}

    @functools.lru_cache(maxsize=1)
    def pool() -> Arrays:
        """Return the input samples; cached, because each window needs a batch."""
        return inputs(INPUT_SAMPLES, INPUT_SEED)

    def reference(arrays: Arrays) -> Floats:
        # Folding would hide the rounding errors of the BatchNorms in half precision.
        return numpy_forward.forward(graph(precision != "fp16"), arrays, half=precision == "fp16")

    return ModelSource(
        path=cached(label, precision, BUILDER_VERSION, build),
        make_inputs=make_inputs,
        reference=reference,
        details={**{key: str(value) for key, value in sizes.items()}, "weights": WEIGHTS},
    )


def _one_by_one(arrays: Arrays) -> Iterator[Arrays]:
    for number in range(len(next(iter(arrays.values())))):
        yield {name: array[number : number + 1] for name, array in arrays.items()}


def _normal_inputs(shape: tuple[int, ...], count: int, seed: int) -> Arrays:
    """Return random values like those of normalised images: mean 0, standard deviation 1."""
    return {"input": np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)}


def _token_inputs(sequence: int, count: int, seed: int) -> Arrays:
    return {"tokens": np.random.default_rng(seed).integers(0, VOCABULARY, (count, sequence), dtype=np.int64)}
