"""RadioML VGG10: the network of the RadioML quantisation challenge, built in code, weights random and seeded.

7 x [Conv1d(k=3, pad=1, no bias) -> BatchNorm -> ReLU -> MaxPool(2)], then Flatten,
2 x [Linear(128, no bias) -> BatchNorm -> ReLU], Linear(24). Input float32 [batch, 2, 1024], output [batch, 24].
F=64 filters is the challenge's network (12.9 million multiply-accumulates per inference), F=32 the smaller
one of the FINN examples (3.3 million): every result says which.

Random weights serve for time and energy, not for accuracy. INT8 is static quantisation (per-channel int8
weights, uint8 activations, QDQ form) of the graph with its BatchNorms folded into the weights: ONNX Runtime
leaves a BatchNorm behind a Gemm where it is and would quantise it badly. Calibration uses the I/Q frames of
``radioml``, those of another seed than the ones it is run with.

Source: Xilinx/brevitas-radioml-challenge-21 (topology); Xilinx/finn-examples, vgg10-radioml (F=32).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.networks import ModelSource
from joulewatch_harness.networks.radioml import CLASSES, FRAME_LENGTH, make_frames

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

logger = logging.getLogger(__name__)

BUILDER_VERSION: Final = 1
"""Part of the cached file's name: raise it when the graph, the weights or the calibration change."""
FILTERS: Final = (64, 32)
DENSE: Final = 128
CONVOLUTIONS: Final = 7
OPSET: Final = 17
CALIBRATION_FRAMES: Final = 96
INPUT_SEED: Final = 0
INPUT_FRAMES: Final = 1024
CALIBRATION_SEED: Final = 1
_WEIGHT_SEED: Final = 0
_EPSILON: Final = 1e-5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with weights: a convolution or a fully connected one."""

    name: str
    weight: Floats
    """[out, in, 3] or [out, in]."""
    bias: Floats | None
    norm: tuple[Floats, Floats, Floats, Floats] | None
    """BatchNorm's gamma, beta, mean and variance."""

    @property
    def is_convolution(self) -> bool:
        return self.weight.ndim == 3

    def folded(self) -> Layer:
        """The same function with the BatchNorm inside weight and bias."""
        if self.norm is None:
            return self
        gamma, beta, mean, variance = self.norm
        scale = gamma / np.sqrt(variance + np.float32(_EPSILON))
        shape = (-1, *[1] * (self.weight.ndim - 1))
        return Layer(self.name, self.weight * scale.reshape(shape), beta - mean * scale, None)


def source(precision: str, options: Mapping[str, str]) -> ModelSource:
    """The model file, out of the cache or built now, with its inputs and its reference.

    Raises:
        ConfigError: an unknown option, or a cache folder that cannot be written.
    """
    for key in options:
        if key != "filters":
            raise ConfigError(f"radioml-vgg10: {unknown('option', key, ('filters',))}")
    text = options.get("filters", str(FILTERS[0]))
    if text not in map(str, FILTERS):
        raise ConfigError(f"radioml-vgg10: filters is {' or '.join(map(str, FILTERS))}, not {text!r}")
    filters = int(text)
    network = layers(filters)
    return ModelSource(
        path=model_file(filters, precision),
        make_inputs=_make_inputs,
        reference=lambda inputs: forward(network, np.asarray(inputs["input"], dtype=np.float32)),
        details={"filters": text, "parameters": str(parameters(network)), "macs": str(macs(network))},
    )


def layers(filters: int) -> tuple[Layer, ...]:
    """The network's weights; BatchNorm near a trained one's, so that activations stay in range over ten layers."""
    rng = np.random.default_rng(_WEIGHT_SEED)

    def norm(size: int) -> tuple[Floats, Floats, Floats, Floats]:
        return (
            rng.uniform(0.8, 1.2, size).astype(np.float32),
            rng.normal(0.0, 0.1, size).astype(np.float32),
            rng.normal(0.0, 0.1, size).astype(np.float32),
            rng.uniform(0.5, 1.5, size).astype(np.float32),
        )

    found: list[Layer] = []
    channels = 2
    for number in range(1, CONVOLUTIONS + 1):
        weight = rng.normal(0.0, np.sqrt(2.0 / (channels * 3)), (filters, channels, 3)).astype(np.float32)
        found.append(Layer(f"conv{number}", weight, None, norm(filters)))
        channels = filters
    sizes = (filters * (FRAME_LENGTH >> CONVOLUTIONS), DENSE, DENSE, len(CLASSES))
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes), start=1):
        weight = rng.normal(0.0, np.sqrt(2.0 / inner), (outer, inner)).astype(np.float32)
        last = number == len(sizes) - 1
        bias = rng.normal(0.0, 0.1, outer).astype(np.float32) if last else None
        found.append(Layer(f"fc{number}", weight, bias, None if last else norm(outer)))
    return tuple(found)


def parameters(network: tuple[Layer, ...]) -> int:
    """Trainable parameters: weights, biases, and BatchNorm's gamma and beta."""
    total = 0
    for layer in network:
        total += layer.weight.size
        total += 0 if layer.bias is None else layer.bias.size
        total += 0 if layer.norm is None else 2 * len(layer.norm[0])
    return total


def macs(network: tuple[Layer, ...]) -> int:
    """Multiply-accumulates of one inference."""
    total, length = 0, FRAME_LENGTH
    for layer in network:
        total += layer.weight.size * (length if layer.is_convolution else 1)
        length //= 2 if layer.is_convolution else 1
    return total


def forward(network: tuple[Layer, ...], frames: Floats) -> Floats:
    """The network in plain numpy, float32: what any runtime's output is compared with.

    Args:
        network: From ``layers``.
        frames: [n, 2, 1024].

    Returns:
        Logits, [n, 24].
    """
    x = frames
    for layer in (item.folded() for item in network):
        bias = np.zeros(len(layer.weight), dtype=np.float32) if layer.bias is None else layer.bias
        if layer.is_convolution:
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
            taps = (layer.weight[:, :, k] @ padded[:, :, k : k + x.shape[2]] for k in range(3))
            x = np.maximum(sum(taps) + bias[:, None], 0.0)
            x = x.reshape(*x.shape[:2], -1, 2).max(axis=3)
        else:
            x = x.reshape(len(x), -1) @ layer.weight.T + bias
            if layer.name != "fc3":
                x = np.maximum(x, 0.0)
    return np.asarray(x, dtype=np.float32)


def model_file(filters: int, precision: str) -> Path:
    """The ONNX file in the cache (``$XDG_CACHE_HOME/joulewatch/models``); built when it is not there yet.

    Its name holds everything it depends on, and it appears by rename, so that two processes may build at once.
    """
    import onnx
    import onnxruntime

    stamp = f"{BUILDER_VERSION} {filters} {precision} {onnx.__version__} {onnxruntime.__version__} {np.__version__}"
    key = hashlib.sha256(stamp.encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch" / "models"
    path = folder / f"radioml-vgg10-f{filters}-{precision}-{key}.onnx"
    if path.is_file():
        return path
    logger.info("building %s", path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
            built = Path(scratch) / "model.onnx"
            if precision == "int8":
                folded = Path(scratch) / "folded.onnx"
                onnx.save(graph(filters, folded=True), folded)
                _quantize(folded, built)
            else:
                onnx.save(graph(filters, folded=False), built)
            built.replace(path)
    except OSError as error:
        raise ConfigError(
            f"the model cache {folder} cannot be written ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error
    return path


def graph(filters: int, *, folded: bool) -> Any:
    """The network as an ``onnx.ModelProto`` with a dynamic batch axis."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []

    def const(name: str, array: Floats) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    x, flat = "input", False
    for layer in layers(filters):
        part = layer.folded() if folded else layer
        if not part.is_convolution and not flat:
            x, flat = node("Flatten", [x], "flatten", axis=1), True
        inputs = [x, const(f"{part.name}.weight", part.weight)]
        if part.bias is not None:
            inputs.append(const(f"{part.name}.bias", part.bias))
        if part.is_convolution:
            x = node("Conv", inputs, part.name, kernel_shape=[3], pads=[1, 1], strides=[1])
        else:
            x = node("Gemm", inputs, part.name, transB=1)
        if part.norm is not None:
            fields = zip(("gamma", "beta", "mean", "variance"), part.norm, strict=True)
            names = [const(f"{part.name}.{field}", array) for field, array in fields]
            x = node("BatchNormalization", [x, *names], f"{part.name}.norm", epsilon=_EPSILON)
        if part.name != "fc3":
            x = node("Relu", [x], f"{part.name}.relu")
        if part.is_convolution:
            x = node("MaxPool", [x], f"{part.name}.pool", kernel_shape=[2], strides=[2])
    nodes[-1].output[0] = "output"
    body = helper.make_graph(
        nodes,
        "radioml_vgg10",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, FRAME_LENGTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        weights,
    )
    # IR version 10 is what the oldest ONNX Runtime of our range still reads.
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Calibration:
    """Feeds the calibrator one frame at a time."""

    def __init__(self) -> None:
        self._frames: Iterator[Floats] = iter(make_frames(CALIBRATION_FRAMES, seed=CALIBRATION_SEED).iq[:, None])

    def get_next(self) -> dict[str, Floats] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"input": frame}


def _quantize(folded: Path, built: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folded.with_name("prepared.onnx")
    with _quiet():
        quant_pre_process(folded, prepared)
        quantize_static(
            prepared,
            built,
            _Calibration(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger as it works; none of it is for our users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@functools.lru_cache(maxsize=1)
def _frames() -> Floats:
    """The frames of every batch: made once (half a second), for a run prepares a batch before each window."""
    return make_frames(INPUT_FRAMES, seed=INPUT_SEED).iq


def _make_inputs(batch: int) -> Arrays:
    """The first frames of the pool; a batch larger than the pool repeats them."""
    return {"input": np.resize(_frames(), (batch, 2, FRAME_LENGTH))}
