"""Shared by the built-in networks: a graph builder, the model cache, quantisation, half precision.

All weights are random and seeded: they are good for time and energy, not for accuracy.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness import files

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

logger = logging.getLogger(__name__)

OPSET: Final = 17
IR_VERSION: Final = 10
"""The newest version that the oldest supported ONNX Runtime reads."""
QONNX_DOMAIN: Final = "qonnx.custom_op.general"
WEIGHTS: Final = "random, seeded: for time and energy, not for accuracy"
"""Description of the weights in the results of every built-in network."""

Floats = NDArray[np.float32]
Norm = tuple[Floats, Floats, Floats, Floats]
"""BatchNorm's gamma, beta, mean and variance."""
_EPSILON: Final = 1e-5
"""Of every BatchNorm."""


class GraphBuilder:
    """Builds a graph node by node; each node has a unique name, by which ``joulewatch layers`` identifies it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def constant(self, name: str, array: NDArray[np.generic] | np.float32) -> str:
        """Add an initializer with the type of ``array`` and return its name; a number becomes a scalar."""
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def batch_norm(self, x: str, name: str, norm: Norm) -> str:
        """Add the BatchNorm of the layer ``name``."""
        fields = zip(("gamma", "beta", "mean", "variance"), norm, strict=True)
        names = [self.constant(f"{name}.{field}", array) for field, array in fields]
        return self.node("BatchNormalization", [x, *names], f"{name}.norm", epsilon=_EPSILON)

    def quant(self, x: str, name: str, *, scale: NDArray[np.float32], bits: int, signed: bool, narrow: bool) -> str:
        """Add a QONNX ``Quant``, which rounds to ``bits`` bits in steps of ``scale``; its output is float."""
        return self.node(
            "Quant",
            [
                x,
                self.constant(f"{name}.scale", np.asarray(scale, dtype=np.float32)),
                self.constant(f"{name}.zero", np.zeros((), dtype=np.float32)),
                self.constant(f"{name}.bits", np.array(bits, dtype=np.float32)),
            ],
            name,
            domain=QONNX_DOMAIN,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode="ROUND",
        )

    def finish(
        self,
        inputs: Mapping[str, tuple[int, Sequence[int]]],
        output: Sequence[int],
    ) -> Any:
        """Return the ``onnx.ModelProto``; the last node's output becomes ``output``.

        Args:
            inputs: Name -> element type and shape without the batch axis, which comes first and is dynamic.
            output: Shape of the output without the batch axis.
        """
        import onnx
        from onnx import TensorProto, helper

        self._nodes[-1].output[0] = "output"
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info(name, kind, ["batch", *sizes]) for name, (kind, sizes) in inputs.items()],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        custom = any(node.domain == QONNX_DOMAIN for node in self._nodes)
        if custom:
            opsets.append(helper.make_opsetid(QONNX_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        # ONNX cannot infer shapes through operators that it does not know.
        onnx.checker.check_model(model, full_check=not custom)
        return model


def random_norm(rng: np.random.Generator, size: int) -> Norm:
    """Return a BatchNorm that resembles a trained one, so that activations stay in range over many layers."""
    return (
        rng.uniform(0.8, 1.2, size).astype(np.float32),
        rng.normal(0.0, 0.1, size).astype(np.float32),
        rng.normal(0.0, 0.1, size).astype(np.float32),
        rng.uniform(0.5, 1.5, size).astype(np.float32),
    )


def fold(weight: Floats, norm: Norm) -> tuple[Floats, Floats]:
    """Return the weight and bias that have the same effect as the weight followed by a BatchNorm."""
    gamma, beta, mean, variance = norm
    deviation: Floats = np.sqrt(variance + np.float32(_EPSILON))
    scale: Floats = gamma / deviation
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), beta - mean * scale


def cached(label: str, precision: str, version: int, build: Callable[[Path], None]) -> Path:
    """Return the model file in the cache (``$XDG_CACHE_HOME/joulewatch/models``); build it if it is missing.

    The file name contains a hash of everything the content depends on. The file is built in a temporary folder and then
    renamed, so two processes may build it at the same time.

    Args:
        label: Start of the file name: the network and its size.
        precision: Precision of the file; ``int8`` also depends on ONNX Runtime, which has the quantiser.
        version: ``BUILDER_VERSION`` of the network's module.
        build: Writes the file at the given path; may write other files to the same folder.

    Raises:
        ConfigError: The folder cannot be written.
    """
    import onnx

    versions = [onnx.__version__, np.__version__]
    if precision == "int8":
        import onnxruntime

        versions.append(onnxruntime.__version__)
    text = " ".join(map(str, (version, label, precision, *versions)))
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch" / "models"
    path = folder / f"{label}-{precision}-{key}.onnx"
    try:
        if path.is_file():
            return path
        logger.info("building %s", path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
            built = Path(scratch) / "model.onnx"
            build(built)
            built.replace(path)
    except OSError as error:
        raise files.write_error(
            f"the model cache {folder} cannot be written ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that can",
            error,
        ) from error
    return path


def quantize(model: Any, built: Path, feeds: Iterable[Arrays]) -> None:
    """Quantise a model to INT8 in QDQ form: static, int8 weights per channel, uint8 activations.

    Args:
        model: The float graph with its BatchNorms folded: ONNX Runtime does not fold a BatchNorm after a Gemm and
            would quantise it badly.
        built: Path of the quantised file; other files are left in its folder.
        feeds: Inputs to calibrate with, one batch each.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Arrays | None:
            return next(self._feeds, None)

    folded, prepared = built.with_name("folded.onnx"), built.with_name("prepared.onnx")
    onnx.save(model, folded)
    with _quiet():
        quant_pre_process(folded, prepared)
        quantize_static(
            prepared,
            built,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the advice that the quantiser writes to the root logger; it does not concern our users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def half(model: Any) -> Any:
    """Return the same graph in half precision; inputs and outputs stay float32.

    Float weights become float16. Each float input is cast to float16 first, and each float output back to float32. So
    the same inputs work for all precisions, and the loaded graph shows whether a runtime really computes in half
    precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    for item in graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    first, last, renamed = [], [], {}
    for item in graph.input:
        if item.type.tensor_type.elem_type == TensorProto.FLOAT:
            renamed[item.name] = f"{item.name}.half"
            first.append(
                helper.make_node("Cast", [item.name], [renamed[item.name]], f"{item.name}.cast", to=TensorProto.FLOAT16)
            )
    for item in graph.output:
        if item.type.tensor_type.elem_type == TensorProto.FLOAT:
            renamed[item.name] = f"{item.name}.half"
            last.append(
                helper.make_node("Cast", [renamed[item.name]], [item.name], f"{item.name}.cast", to=TensorProto.FLOAT)
            )
    for node in graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = renamed.get(name, name)
    nodes = [*first, *graph.node, *last]
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(converted, full_check=True)
    return converted
