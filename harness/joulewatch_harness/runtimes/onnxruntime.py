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
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.graph import cost_details
from joulewatch_harness.names import refuse_unknown, unknown
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes import ANY_PRECISION, flag, onnxruntime_trace
from joulewatch_harness.runtimes.inputs import (
    Batches,
    Input,
    broken,
    check_types,
    parse_count,
    parse_dims,
    read_npz,
)
from joulewatch_harness.runtimes.outputs import TOLERANCES, check_close, check_finite
from joulewatch_harness.traces import Trace, write_trace

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays

logger = logging.getLogger(__name__)

DEFAULT_PROVIDER: Final = "CPUExecutionProvider"
LEVELS: Final = ("disabled", "basic", "extended", "all")
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
TRACE_S: Final = 1.0
TRACE_WARMUP: Final = 3
TRACE_BLOCKS: Final = 4
TRACE_PAUSE_S: Final = 0.02
TRACE_EVENTS: Final = 12_000
"""An event takes a kilobyte."""
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
        refuse_unknown("onnxruntime", "option", words, known)
        optimization = words.get("optimization", "all")
        if optimization not in LEVELS:
            raise ConfigError(f"onnxruntime: {unknown('optimization', optimization, LEVELS)}")
        return cls(
            threads=parse_count("onnxruntime", words, "threads", least=1),
            inter_threads=parse_count("onnxruntime", words, "inter_threads", least=1),
            spinning=flag(words, "spinning", True),
            provider=words.get("provider", DEFAULT_PROVIDER),
            optimization=optimization,
            inputs=Path(words["inputs"]) if "inputs" in words else None,
            dims=parse_dims("onnxruntime", words.get("dims")),
            seed=parse_count("onnxruntime", words, "seed", least=0) or 0,
            any_precision=flag(words, ANY_PRECISION),
        )


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
        self._cost: Mapping[str, str] = {}
        self._batch = 0
        self._batches = Batches("", (), source, {})

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
            **self._cost,
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
                    raise broken(path, error) from error
                try:
                    self._session, optimized = self._open(None), None
                except Exception as second:
                    raise broken(path, second) from second
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
        check_types(self._inputs, f"model file {path}")
        self._batches = Batches(
            path.name,
            self._inputs,
            self._source,
            options.dims or {},
            options.seed,
            None if options.inputs is None else read_npz(options.inputs, self._inputs),
        )
        if "macs_per_inference" not in self._source.details:
            self._cost = cost_details(path, self._sizes())

    def prepare(self, batch: int) -> None:
        """Make, check and bind the inputs of one batch.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size.
            ConfigError: a symbolic dimension has no size; the text says how to give it one.
        """
        self._batches.check_size(batch)
        self._binding = _bound(self._session, self._arrays(batch))
        self._batch = batch

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
        self.prepare(self._batches.size_for_check())
        self.run(1, Phases())
        outputs = [np.asarray(array) for array in self._binding.copy_outputs_to_cpu()]
        names = [output.name for output in self._session.get_outputs()]
        check_finite(self._source.path.name, dict(zip(names, outputs, strict=True)))
        if self._source.reference is not None:
            wanted = self._source.reference(self._arrays(len(outputs[0])))
            # A file of few bits has its rounding in it, also where the runtime computes in more.
            looser = max(self._precision, self._source.precision, key=lambda name: TOLERANCES.get(name, 0.0))
            check_close(self._source.path.name, "the reference", outputs[0], wanted, looser)
        return True

    def trace(self, path: Path) -> None:
        """Time per operator of the batch that is prepared, from ONNX Runtime's profile in a session of its own.

        Raises:
            NetworkError: no batch is prepared, or the provider's profile tells no times of computing.
        """
        provider = self._session.get_providers()[0] if self._session is not None else ""
        if self._binding is None or not self._batch:
            raise NetworkError(f"{self._source.path.name}: trace() comes after load() and prepare()")
        if provider != DEFAULT_PROVIDER:
            raise NetworkError(
                f"onnxruntime: its profile of {provider} tells how long operators take to launch, not to compute: "
                f"only {DEFAULT_PROVIDER} can be traced"
            )
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            folder = Path(scratch)
            model, optimized = onnxruntime_trace.name_nodes(self._source.path, folder), folder / "optimized.onnx"
            small = self._source.path.stat().st_size <= _LARGEST_REREAD_BYTES
            session = self._open(optimized if small else None, model, folder / "profile")
            plain, traced = (self._session, self._binding), (session, _bound(session, self._arrays(self._batch)))
            batch_s = float("inf")
            for one, binding in (plain, traced):
                for _ in range(TRACE_WARMUP):
                    start_ns = time.perf_counter_ns()
                    one.run_with_iobinding(binding)
                    batch_s = min(batch_s, (time.perf_counter_ns() - start_ns) * 1e-9)
            count = onnxruntime_trace.batches_for(
                batch_s,
                onnxruntime_trace.count_nodes(optimized if small else model),
                aim_s=TRACE_S,
                most_events=TRACE_EVENTS,
            )
            plain_ns = 0
            # In turn, so that a machine that changes its speed changes it for both; after a pause, for the threads of
            # the other session spin on for a while.
            for number in range(TRACE_BLOCKS):
                block = range(number, count, TRACE_BLOCKS)
                time.sleep(TRACE_PAUSE_S)
                for _ in block:
                    start_ns = time.perf_counter_ns()
                    self._session.run_with_iobinding(self._binding)
                    plain_ns += time.perf_counter_ns() - start_ns
                time.sleep(TRACE_PAUSE_S)
                for _ in block:
                    session.run_with_iobinding(traced[1])
            profile = onnxruntime_trace.file_of(folder, "profile", session.end_profiling())
            found, macs = onnxruntime_trace.read_profile(
                profile, optimized, model, self._batch, warmup=TRACE_WARMUP, dims=self._sizes()
            )
        write_trace(
            Trace(
                runtime="onnxruntime",
                source=f"profile of ONNX Runtime {onnxruntime.__version__}",
                batch_size=self._batch,
                batches=found.batches,
                time_ns=found.time_ns,
                operators=found.operators,
                plain_time_ns=plain_ns,
                macs=macs,
                overlapping=(self._options.inter_threads or 1) > 1,
            ),
            path,
        )

    def close(self) -> None:
        """Let the session go."""
        self._binding = None
        self._session = None

    def _sizes(self) -> dict[str, int]:
        """Sizes of the symbolic dimensions that the inputs have, by place."""
        sizes = dict(self._options.dims or {})
        for item in self._inputs:
            array = (self._batches.file_arrays or {}).get(item.name)
            if array is not None:
                sizes |= {f"{item.name}.{axis}": size for axis, size in enumerate(array.shape) if axis}
        return sizes

    def _open(self, optimized: Path | None, model: Path | None = None, profile: Path | None = None) -> Any:
        """A session; ``optimized`` is where its graph goes, ``profile`` the beginning of its profile's name."""
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
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = os.fspath(profile)
        file = os.fspath(model or self._source.path)
        return onnxruntime.InferenceSession(file, settings, providers=[options.provider])

    def _arrays(self, batch: int) -> Arrays:
        return self._batches.arrays(batch)


def _bound(session: Any, arrays: Arrays) -> Any:
    """The inputs bound from host memory, the outputs to it."""
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return binding


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
        raise broken(path, error) from error
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
        count = max((int(np.prod(item.dims)) for item, _ in held), default=1)
        if in_integers:
            integer += 1
            name = "int8"
        else:
            kinds = [_FLOAT_NAMES[kind] for _, kind in held if kind in _FLOAT_NAMES]
            name = kinds[0] if kinds else _input_precision(graph)
        sizes[name] = sizes.get(name, 0) + count
    if not sizes:
        return _input_precision(graph), "0 of 0"
    return max(sizes, key=lambda name: sizes[name]), f"{integer} of {total}"


def _weight(name: str, weights: Mapping[str, Any], made_by: Mapping[str, Any]) -> Any:
    """The initializer behind an input, also behind a cast or a dequantisation of it, and the type it comes in.

    A runtime without half precision casts weights on their way: then they are computed with in the cast's type.
    """
    kind = 0
    while name not in weights:
        node = made_by.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            return None
        if node.op_type == "Cast" and not kind:
            kind = next((item.i for item in node.attribute if item.name == "to"), 0)
        name = node.input[0]
    return weights[name], kind or weights[name].data_type


def _input_precision(graph: Any) -> str:
    for item in graph.input:
        kind = _FLOAT_NAMES.get(item.type.tensor_type.elem_type)
        if kind is not None:
            return kind
    return "int8" if any(item.type.tensor_type.elem_type in (2, 3) for item in graph.input) else "fp32"


def _input(argument: Any) -> Input:
    return Input(argument.name, _DTYPES.get(argument.type, argument.type), tuple(argument.shape))


def _parse_all(options: Mapping[str, str], own: tuple[str, ...]) -> Options:
    for key in options:
        if key not in Options.__dataclass_fields__ and key not in own:
            raise ConfigError(unknown("option", key, (*Options.__dataclass_fields__, *own)))
    return Options.parse({key: value for key, value in options.items() if key not in own})
