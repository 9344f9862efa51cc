"""ONNX Runtime: any ``.onnx`` file, and the built-in networks.

Inputs lie in host memory and are bound once per batch size; outputs come back to host memory. On a device
with its own memory the copies are therefore part of ``execute``, as they are part of an inference.
What the session really computes in is read from the graph that ONNX Runtime itself optimised, never from
what was asked for: a quantised file may fall back to float, a provider to the CPU, both without a word.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes import ANY_PRECISION, flag

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

logger = logging.getLogger(__name__)

DEFAULT_PROVIDER: Final = "CPUExecutionProvider"
LEVELS: Final = ("disabled", "basic", "extended", "all")
FP32_TOLERANCE: Final = 1e-3
INT8_TOLERANCE: Final = 0.25
"""Of ``check``: RMS error of the outputs over their standard deviation; random weights quantise to about 0.1."""

_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_INTEGER_OPS: Final = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "QAttention", "NhwcQLinearConv", "QLinearConvTranspose",
    }
)  # fmt: skip
_FLOAT_OPS: Final = frozenset(
    {
        "Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul",
        "FusedMatMul", "FusedMatMulActivation", "MatMulNBits", "Attention", "MultiHeadAttention", "Einsum",
        "LSTM", "GRU", "RNN",
    }
)  # fmt: skip
_FLOAT_NAMES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
_LARGEST_REREAD_BYTES: Final = 1 << 30
"""Above this the optimised graph is not written out to be looked at; the file itself is."""


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set with ``--option KEY=VALUE``, or under ``options`` in a plan."""

    threads: int | None = None
    """Threads inside an operator; None: ONNX Runtime's choice, one per physical core."""
    inter_threads: int | None = None
    """Above 1: operators run side by side."""
    spinning: bool = True
    """Threads wait busily for work: faster, and draws power between batches."""
    provider: str = DEFAULT_PROVIDER
    optimization: str = "all"
    inputs: Path | None = None
    """An .npz with one array per input."""
    dims: Mapping[str, int] | None = None
    """Sizes of symbolic dimensions other than the batch: ``sequence=128,ids.2=16``."""
    seed: int = 0
    any_precision: bool = False

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> Options:
        """Turn strings into options.

        Raises:
            ConfigError: an unknown key or a bad value; the text names it.
        """
        known = cls.__dataclass_fields__
        for key in words:
            if key not in known:
                raise ConfigError(f"onnxruntime: {unknown('option', key, known)}")
        optimization = words.get("optimization", "all")
        if optimization not in LEVELS:
            raise ConfigError(f"onnxruntime: {unknown('optimization', optimization, LEVELS)}")
        return cls(
            threads=_count(words, "threads", least=1),
            inter_threads=_count(words, "inter_threads", least=1),
            spinning=flag(words, "spinning", True),
            provider=words.get("provider", DEFAULT_PROVIDER),
            optimization=optimization,
            inputs=Path(words["inputs"]) if "inputs" in words else None,
            dims=_dims(words.get("dims")),
            seed=_count(words, "seed", least=0) or 0,
            any_precision=flag(words, ANY_PRECISION),
        )


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the model."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def text(self) -> str:
        sizes = ",".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}:{self.dtype}[{sizes}]"


def open_network(network: str, precision: str, options: Mapping[str, str]) -> OnnxRuntimeNetwork:
    """The entry point named in ``runtimes.RUNTIMES``.

    Raises:
        ConfigError: unknown network, option or precision; no such file.
    """
    own: tuple[str, ...] = networks.builtin(network).options if networks.is_builtin(network) else ()
    parsed = _parse_all(options, own)
    if networks.is_builtin(network):
        source = networks.build(network, precision, {key: options[key] for key in own if key in options})
    else:
        source = networks.ModelSource(Path(network))
    if not source.path.is_file():
        raise ConfigError(f"no model file {source.path}")
    return OnnxRuntimeNetwork(source, parsed)


class OnnxRuntimeNetwork:
    """A model file in an ONNX Runtime session (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, source: networks.ModelSource, options: Options) -> None:
        self._source = source
        self._options = options
        self._session: Any = None
        self._binding: Any = None
        self._inputs: tuple[Input, ...] = ()
        self._precision = ""
        self._integer_ops = ""
        self._sha256 = ""
        self._file_arrays: Arrays | None = None

    def describe(self) -> Mapping[str, Any]:
        """Runtime, provider and precision as they are; before ``load`` only the file is known."""
        told: dict[str, Any] = {
            "runtime": "onnxruntime",
            "runtime_version": onnxruntime.__version__,
            "model_file": self._source.path.name,
            "optimization": self._options.optimization,
            "spinning": str(self._options.spinning).lower(),
            "threads": self._options.threads or "default",
            **self._source.details,
        }
        if self._session is not None:
            provider = self._session.get_providers()[0]
            told |= {
                "provider": provider,
                "device": "cpu" if provider == DEFAULT_PROVIDER else provider.removesuffix("ExecutionProvider").lower(),
                "precision": self._precision,
                "integer_ops": self._integer_ops,
                "model_sha256": self._sha256,
                "inputs": " ".join(item.text() for item in self._inputs),
                "outputs": " ".join(item.text() for item in map(_input, self._session.get_outputs())),
            }
        return told

    def load(self) -> None:
        """Create the session, and read back what became of the model.

        Raises:
            ConfigError: the file is missing or broken, the provider unknown, an input of no supported type.
            NetworkError: ONNX Runtime fell back to another provider.
        """
        path, options = self._source.path, self._options
        onnxruntime.set_default_logger_severity(3)
        available = onnxruntime.get_available_providers()
        if options.provider not in available:
            raise ConfigError(f"onnxruntime: {unknown('provider', options.provider, available)}")
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"model file {path}: {error.strerror or error}") from error
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            optimized = Path(scratch) / "optimized.onnx" if size <= _LARGEST_REREAD_BYTES else None
            try:
                self._session = self._open(optimized)
            except Exception as error:
                # A provider that compiles parts of the graph cannot write them out: look at the file instead.
                if optimized is None or options.provider == DEFAULT_PROVIDER:
                    raise _broken(path, error) from error
                try:
                    self._session, optimized = self._open(None), None
                except Exception as second:
                    raise _broken(path, second) from second
            graph = optimized if optimized is not None and optimized.is_file() else path
            self._precision, self._integer_ops = actual_precision(graph)
        active = self._session.get_providers()[0]
        if active != options.provider:
            self.close()
            raise NetworkError(
                f"{path.name}: provider {options.provider} was asked for, but ONNX Runtime fell back to {active}; "
                "its libraries are missing or found no device"
            )
        self._inputs = tuple(map(_input, self._session.get_inputs()))
        for item in self._inputs:
            if item.dtype not in _DTYPES.values():
                raise ConfigError(f"model file {path}: input {item.name!r} is a {item.dtype}, which is not supported")
        if options.inputs is not None:
            self._file_arrays = _read_npz(options.inputs, self._inputs)

    def prepare(self, batch: int) -> None:
        """Make, check and bind the inputs of one batch.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size.
            ConfigError: a symbolic dimension has no size; the text says how to give it one.
        """
        fixed = [item.shape[0] for item in self._inputs if item.shape and isinstance(item.shape[0], int)]
        symbolic = any(item.shape and not isinstance(item.shape[0], int) for item in self._inputs)
        if fixed and not symbolic and batch != fixed[0]:
            raise UnsupportedBatchError(f"{self._source.path.name} has a fixed batch axis of {fixed[0]}, not {batch}")
        arrays = self._arrays(batch)
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        self._binding = binding

    def run(self, batches: int, phases: Phases) -> None:
        """Run the bound batch ``batches`` times; ``execute`` is the whole of it."""
        session_run, binding, mark = self._session.run_with_iobinding, self._binding, phases.batch
        for _ in range(batches):
            with phases("execute"):
                session_run(binding)
            mark()

    def check(self) -> bool:
        """Run a small batch and look at its outputs; leaves that batch prepared.

        Built-in networks are compared with their numpy reference, others must give finite numbers.

        Raises:
            NetworkError: the outputs are wrong; the text says how.
        """
        first = next((item.shape[0] for item in self._inputs if item.shape), 1)
        self.prepare(first if isinstance(first, int) else 8)
        self.run(1, Phases())
        outputs = [np.asarray(array) for array in self._binding.copy_outputs_to_cpu()]
        for output, array in zip(self._session.get_outputs(), outputs, strict=True):
            if np.issubdtype(array.dtype, np.floating) and not np.all(np.isfinite(array)):
                raise NetworkError(f"{self._source.path.name}: output {output.name!r} is not finite")
        if self._source.reference is not None:
            wanted = self._source.reference(self._arrays(len(outputs[0])))
            error = float(np.sqrt(np.mean((outputs[0] - wanted) ** 2)) / np.std(wanted))
            tolerance = INT8_TOLERANCE if self._precision == "int8" else FP32_TOLERANCE
            if error > tolerance:
                raise NetworkError(
                    f"{self._source.path.name}: outputs differ from the reference by {error:.2g} (RMS over the "
                    f"standard deviation; at most {tolerance:g} for {self._precision}): this build computes wrongly"
                )
        return True

    def close(self) -> None:
        """Let the session go."""
        self._binding = None
        self._session = None

    def _open(self, optimized: Path | None) -> Any:
        options = self._options
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # level 2 warns that an optimised file is for this machine only: it is
        settings.graph_optimization_level = {
            "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[options.optimization]
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        if options.inter_threads is not None:
            settings.inter_op_num_threads = options.inter_threads
            if options.inter_threads > 1:
                settings.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        for group in ("intra", "inter"):
            settings.add_session_config_entry(f"session.{group}_op.allow_spinning", "1" if options.spinning else "0")
        if optimized is not None:
            settings.optimized_model_filepath = os.fspath(optimized)
        return onnxruntime.InferenceSession(os.fspath(self._source.path), settings, providers=[options.provider])

    def _arrays(self, batch: int) -> Arrays:
        if self._file_arrays is not None:
            return {name: _rows(array, batch) for name, array in self._file_arrays.items()}
        if self._source.make_inputs is not None:
            return self._source.make_inputs(batch)
        rng = np.random.default_rng(self._options.seed)
        return {item.name: _random(rng, item.dtype, self._shape(item, batch)) for item in self._inputs}

    def _shape(self, item: Input, batch: int) -> tuple[int, ...]:
        """The input's shape with numbers for all symbols; the batch's symbol means the batch on any axis."""
        batch_names = {other.shape[0] for other in self._inputs if other.shape and isinstance(other.shape[0], str)}
        sizes: list[int] = []
        for axis, size in enumerate(item.shape):
            if isinstance(size, int):
                sizes.append(size)
            elif axis == 0 or size in batch_names:
                sizes.append(batch)
            else:
                given = self._options.dims or {}
                key = size if size is not None and size in given else f"{item.name}.{axis}"
                if key not in given:
                    what = f"dimension {size!r}" if size else f"dimension {axis}"
                    raise ConfigError(
                        f"{self._source.path.name}: {what} of input {item.name!r} has no size: "
                        f"give it with --option dims={size or key}=N, or give arrays with --option inputs=FILE.npz"
                    )
                sizes.append(given[key])
        return tuple(sizes)


def actual_precision(path: Path) -> tuple[str, str]:
    """What a graph computes in, from its operators and weights.

    Args:
        path: An .onnx file, best the one that ONNX Runtime wrote after optimising.

    Returns:
        The precision of most weights that are computed with (``int8``, ``fp32``, ``fp16``, ``bf16``, ``fp64``), and
        how many of the operators with weights compute in integers (``10 of 10``).
    """
    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
    except Exception as error:
        raise _broken(path, error) from error
    weights = {item.name: item for item in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    sizes: dict[str, int] = {}
    integer = total = 0
    for node in graph.node:
        # Weights of few bits, dequantised on the way; with accuracy level 4 the activations are int8 as well.
        narrow = any(item.name == "accuracy_level" and item.i == 4 for item in node.attribute)
        in_integers = node.op_type in _INTEGER_OPS or (node.op_type == "MatMulNBits" and narrow)
        if not in_integers and node.op_type not in _FLOAT_OPS:
            continue
        total += 1
        held = [item for item in (_weight(name, weights, made_by) for name in node.input) if item is not None]
        count = max((int(np.prod(item.dims)) for item in held), default=1)
        if in_integers:
            integer += 1
            name = "int8"
        else:
            kinds = [_FLOAT_NAMES[item.data_type] for item in held if item.data_type in _FLOAT_NAMES]
            name = kinds[0] if kinds else _input_precision(graph)
        sizes[name] = sizes.get(name, 0) + count
    if not sizes:
        return _input_precision(graph), "0 of 0"
    return max(sizes, key=lambda name: sizes[name]), f"{integer} of {total}"


def _weight(name: str, weights: Mapping[str, Any], made_by: Mapping[str, Any]) -> Any:
    """The initializer behind an input, also behind a cast or a dequantisation of it."""
    while name not in weights:
        node = made_by.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            return None
        name = node.input[0]
    return weights[name]


def _input_precision(graph: Any) -> str:
    for item in graph.input:
        kind = _FLOAT_NAMES.get(item.type.tensor_type.elem_type)
        if kind is not None:
            return kind
    return "int8" if any(item.type.tensor_type.elem_type in (2, 3) for item in graph.input) else "fp32"


def _input(argument: Any) -> Input:
    return Input(argument.name, _DTYPES.get(argument.type, argument.type), tuple(argument.shape))


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    if kind.itemsize == 1 and kind.kind in "iu":
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    # Wider integers are mostly indices (token ids), of unknown range: 0 and 1 exist in any table.
    return rng.integers(0, 2, shape).astype(kind)


def _read_npz(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[np.generic]] = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ConfigError(f"no input file {path}") from error
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as .npz: {error}") from error
    names = {item.name for item in inputs}
    for name in arrays:
        if name not in names:
            raise ConfigError(f"{path}: {unknown('input', name, names)}")
    for item in inputs:
        if item.name not in arrays:
            raise ConfigError(f"{path} has no array {item.name!r}; the model takes {item.text()}")
        array = arrays[item.name]
        sizes = zip(array.shape[1:], item.shape[1:], strict=False)
        if (
            array.ndim != len(item.shape)
            or str(array.dtype) != item.dtype
            or (array.ndim and not len(array))
            or any(isinstance(wanted, int) and wanted != size for size, wanted in sizes)
        ):
            shape = ",".join(map(str, array.shape))
            raise ConfigError(f"{path}: {item.name} is {array.dtype}[{shape}], but the model takes {item.text()}")
    return {item.name: arrays[item.name] for item in inputs}


def _rows(array: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """The first ``batch`` rows, repeating the array where it has fewer."""
    return array if array.ndim == 0 else np.take(array, np.arange(batch) % len(array), axis=0)


def _parse_all(options: Mapping[str, str], own: tuple[str, ...]) -> Options:
    for key in options:
        if key not in Options.__dataclass_fields__ and key not in own:
            raise ConfigError(unknown("option", key, (*Options.__dataclass_fields__, *own)))
    return Options.parse({key: value for key, value in options.items() if key not in own})


def _count(words: Mapping[str, str], key: str, *, least: int) -> int | None:
    if key not in words:
        return None
    try:
        value = int(words[key])
    except ValueError:
        value = least - 1
    if value < least:
        raise ConfigError(f"onnxruntime: option {key} is a whole number from {least}, not {words[key]!r}")
    return value


def _dims(text: str | None) -> Mapping[str, int] | None:
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, _, value = item.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"onnxruntime: option dims is NAME=SIZE,..., not {text!r}")
        sizes[name.strip()] = int(value)
    return sizes


def _broken(path: Path, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())
    return ConfigError(f"model file {path} cannot be loaded: {said[:300]}")
