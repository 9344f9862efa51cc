"""ONNX Runtime: any ``.onnx`` file, and the built-in networks.

Inputs and outputs are bound once per batch size in the memory of the provider: host memory, or that of a GPU
(``copies=true`` makes the copies a part of each batch). Other providers copy when they need to: their copies are part
of ``execute``.
The precision is read from the graph that ONNX Runtime has optimised, never from the request: a quantised file may fall
back to float, a provider to the CPU, single operators to another provider, float32 to TF32, all without a message.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from joulewatch_exporter.text import count_of
from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.networks import graphs
from joulewatch_harness.networks.macs import MAC_OPS
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.onnxruntime import tracing as onnxruntime_trace
from joulewatch_harness.runtimes.onnxruntime.options import CUDA, DEFAULT_PROVIDER, DEVICE_OF, TENSORRT, Options
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.model_files import find_source, fingerprint
from joulewatch_harness.runtimes.shared.native_log import captured
from joulewatch_harness.runtimes.shared.options import ANY_PRECISION
from joulewatch_harness.runtimes.shared.outputs import check_outputs
from joulewatch_harness.runtimes.shared.signature import Input, broken, check_types
from joulewatch_harness.traces import Trace, write_trace

logger = logging.getLogger(__name__)

ERROR: Final = 3
FATAL: Final = 4
"""Severities of ONNX Runtime's log."""
TF32_SWITCH: Final = "NVIDIA_TF32_OVERRIDE"
"""Environment variable: with 0, NVIDIA's libraries do not use TF32; the TensorRT provider has no other switch."""
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
"""For larger files the optimised graph is not written and read; the file itself is."""


def open_network(network: str, precision: str, options: Mapping[str, str]) -> OnnxRuntimeNetwork:
    """Return the network; the entry point of the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file does not exist.
    """
    # A file stores float32, also for TF32.
    stored = "fp32" if precision == "tf32" else precision
    source, rest = find_source("onnxruntime", network, stored, options, Options.keys())
    return OnnxRuntimeNetwork(source, precision, Options.parse(rest))


class OnnxRuntimeNetwork:
    """A model file in an ONNX Runtime session (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, source: networks.ModelSource, precision: str, options: Options) -> None:
        self._source = source
        self._requested = precision
        self._options = options
        self._tf32 = options.tf32 if options.tf32 is not None else precision == "tf32"
        self._session: Any = None
        self._binding: Any = None
        self._texts: tuple[str, ...] = ()
        """Outputs that are text."""
        self._precision = ""
        self._integer_ops = ""
        self._elsewhere = ""
        self._uploads: list[tuple[Any, Any]] = []
        """Each input on the device, and the array that is copied to it."""
        self._sha256 = ""
        self._cost: Mapping[str, str] = {}
        self._batch = 0
        self._batches = Batches(source=source)
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""

    def describe(self) -> Mapping[str, Any]:
        """Return the actual provider and precision; before ``load``, only what is known of the file."""
        description: dict[str, Any] = {
            "runtime": "onnxruntime",
            "runtime_version": onnxruntime.__version__,
            "model_file": self._source.path.name,
            "optimization": self._options.optimization,
            "spinning": str(self._options.spinning).lower(),
            **self._source.details,
            **self._checked,
            **self._cost,
        }
        if self._session is not None:
            provider = self._session.get_providers()[0]
            description |= {
                "provider": provider,
                "device": self._device(provider),
                "precision": self._precision,
                "integer_ops": self._integer_ops,
                "threads": self._threads,
                "model_sha256": self._sha256,
                **self._batches.describe(),
                "outputs": " ".join(item.text() for item in map(_input, self._session.get_outputs())),
            }
            if provider != DEFAULT_PROVIDER:
                description["nodes_elsewhere"] = self._elsewhere
                description["copies"] = "included" if self._options.copies or provider not in DEVICE_OF else "excluded"
            if provider in DEVICE_OF:
                description["tf32"] = str(self._tf32).lower()
        return description

    def load(self) -> None:
        """Create the session, and read back its precision, provider and threads.

        Raises:
            ConfigError: the file is missing or broken, the provider is unknown, the type of an input is not supported,
                or TensorRT would compute float32 in TF32.
            NetworkError: ONNX Runtime fell back to another provider for all or some operators, or started fewer
                threads than requested.
        """
        path, options = self._source.path, self._options
        available = onnxruntime.get_available_providers()
        if options.provider not in available:
            raise ConfigError(f"onnxruntime: {unknown('provider', options.provider, available)}")
        self._sha256 = fingerprint(path)
        size = path.stat().st_size
        before = _threads_of_process()
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            optimized = Path(scratch) / "optimized.onnx" if size <= _LARGEST_REREAD_BYTES else None
            with _library_log() as messages:
                try:
                    self._session = self._open(optimized)
                except Exception as error:
                    # A provider that compiles parts of the graph cannot write them: read the file instead.
                    if optimized is None or options.provider == DEFAULT_PROVIDER:
                        raise broken(path, error) from error
                    try:
                        self._session, optimized = self._open(None), None
                    except Exception as second:
                        raise broken(path, second) from second
            graph = optimized if optimized is not None and optimized.is_file() else path
            self._precision, self._integer_ops = actual_precision(graph)
            self._read_back_tensorrt(graph)
        active = self._session.get_providers()[0]
        if active != options.provider:
            self.close()
            raise NetworkError(
                f"{path.name}: provider {options.provider} was requested, but ONNX Runtime fell back to {active}; "
                "its libraries are missing or found no device" + "".join(f": {text}" for text in messages[:1])
            )
        self._check_assignment()
        self._read_back_threads(len(_threads_of_process() - before))
        self._texts = tuple(item.name for item in self._session.get_outputs() if item.type == "tensor(string)")
        if self._texts and options.copies:
            raise ConfigError(f"{path.name}: copies=true does not support output {self._texts[0]!r}, which is text")
        inputs = tuple(map(_input, self._session.get_inputs()))
        check_types(inputs, f"model file {path}")
        self._batches = options.batches(path.name, inputs, self._source)
        if "macs_per_inference" not in self._source.details:
            self._cost = self._batches.cost_details(path)

    def prepare(self, batch: int) -> None:
        """Make, check and bind the inputs of one batch.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size.
            ConfigError: a symbolic dimension has no size; the text contains the option that sets it.
        """
        self._batches.check_size(batch)
        self._binding, self._uploads = self._bound(self._session, batch)
        self._batch = batch

    def run(self, batches: int, phases: Phases) -> None:
        """Run the bound batch ``batches`` times; without the option ``copies``, ``execute`` is the only phase.

        Each run of a session ends when its device has finished.
        """
        if self._options.copies:
            self._run_with_copies(batches, phases)
        else:
            phases.repeat(batches, functools.partial(self._session.run_with_iobinding, self._binding))
        if self._options.provider in DEVICE_OF:
            self._binding.synchronize_outputs()

    def _run_with_copies(self, batches: int, phases: Phases) -> None:
        session_run, binding, uploads = self._session.run_with_iobinding, self._binding, self._uploads
        for _ in range(batches):
            with phases("copy_in"):
                for value, array in uploads:
                    value.update_inplace(array)
            with phases("execute"):
                session_run(binding)
            with phases("copy_out"):
                binding.copy_outputs_to_cpu()
            phases.batch()

    def check(self, batch: int | None = None) -> bool:
        """Run a batch, a small one by default, and check its outputs; it stays prepared.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        batch = batch or self._batches.size_for_check()
        self.prepare(batch)
        self.run(1, Phases())
        self._checked = check_outputs(
            self._source, self._batches.arrays(batch), self._outputs(), self._precision, compare_file=False
        )
        return True

    def trace(self, path: Path) -> None:
        """Write the time of each operator of the prepared batch, from ONNX Runtime's profile in a separate session.

        Raises:
            NetworkError: no batch is prepared, or the provider's profile does not contain the time of kernels.
        """
        provider = self._session.get_providers()[0] if self._session is not None else ""
        if self._binding is None or not self._batch:
            raise NetworkError(f"{self._source.path.name}: trace() comes after load() and prepare()")
        if provider != DEFAULT_PROVIDER:
            raise NetworkError(
                f"onnxruntime: the profile of {provider} contains the time to launch operators, not to compute them: "
                f"only {DEFAULT_PROVIDER} can be traced"
            )
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            folder = Path(scratch)
            model, optimized = tracing.name_nodes(self._source.path, folder), folder / "optimized.onnx"
            small = self._source.path.stat().st_size <= _LARGEST_REREAD_BYTES
            session = self._open(optimized if small else None, model, folder / "profile")
            binding, _ = self._bound(session, self._batch)

            def traced(batches: int) -> None:
                for _ in range(batches):
                    session.run_with_iobinding(binding)

            turns = tracing.in_turns(
                tracing.timed(lambda batches: self.run(batches, MarksOnly())),
                tracing.timed(traced),
                events_per_batch=onnxruntime_trace.count_nodes(optimized if small else model),
            )
            profile = onnxruntime_trace.file_of(folder, "profile", session.end_profiling())
            measured, macs = onnxruntime_trace.read_profile(
                profile, optimized, model, self._batch, warmup=tracing.WARMUP, batches=self._batches
            )
        write_trace(
            Trace(
                runtime="onnxruntime",
                source=f"profile of ONNX Runtime {onnxruntime.__version__}",
                batch_size=self._batch,
                batches=measured.batches,
                time_ns=measured.time_ns,
                operators=measured.operators,
                plain_time_ns=turns.plain_ns,
                macs=macs,
                overlapping=(self._options.inter_threads or 1) > 1,
            ),
            path,
        )

    def close(self) -> None:
        """Release the session."""
        self._binding = None
        self._session = None

    # Read back

    def _device(self, provider: str) -> str:
        if provider == DEFAULT_PROVIDER:
            return "cpu"
        if provider not in DEVICE_OF:
            return provider.removesuffix("ExecutionProvider").lower()
        return f"{DEVICE_OF[provider]}:{self._options.device_id or 0}"

    def _read_back_tensorrt(self, graph: Path) -> None:
        """Correct the precision for providers that compile the graph: TF32, and quantised operators in TensorRT."""
        options, name = self._options, self._source.path.name
        if options.provider not in DEVICE_OF:
            return
        if options.provider == TENSORRT and self._precision == "fp32":
            if any(node.op_type == "DequantizeLinear" for node in graphs.read_model(graph).graph.node):
                # TensorRT fuses them into integer operators if it can, and does not report it.
                self._precision = self._integer_ops = ""
                return
            forced_off = os.environ.get(TF32_SWITCH) == "0"
            if not self._tf32 and not forced_off and self._requested in ("fp32", NATIVE) and not options.any_precision:
                raise ConfigError(
                    f"{name}: TensorRT computes float32 in TF32 unless the environment has {TF32_SWITCH}=0: set it "
                    f"before the start, request the precision tf32, or set {ANY_PRECISION}=true"
                )
            self._tf32 = not forced_off
        if self._tf32 and self._precision == "fp32":
            self._precision = "tf32"

    def _check_assignment(self) -> None:
        """Note which operators run on another provider than the requested one.

        Raises:
            NetworkError: a matrix product or convolution does, and the option ``any_provider`` is not set.
        """
        provider, name = self._options.provider, self._source.path.name
        if provider == DEFAULT_PROVIDER:
            return
        ask = getattr(self._session, "get_provider_graph_assignment_info", None)
        if ask is None:
            self._elsewhere = f"not reported by ONNX Runtime {onnxruntime.__version__}; 1.24 and newer report it"
            return
        assigned = [(part.ep_name, node.op_type) for part in ask() for node in part.get_nodes()]
        self._elsewhere = elsewhere(assigned, provider)
        computing = sorted({op for other, op in assigned if other != provider and op in MAC_OPS})
        if computing and not self._options.any_provider:
            self.close()
            raise NetworkError(
                f"{name}: {provider} does not run all operators ({self._elsewhere}), including {', '.join(computing)}: "
                "set any_provider=true to accept that"
            )

    def _open(self, optimized: Path | None, model: Path | None = None, profile: Path | None = None) -> Any:
        """Return a session; it writes its graph to ``optimized``, its profile to files that begin with ``profile``."""
        options = self._options
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = FATAL  # errors are exceptions, and have the same text
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
        if options.provider != DEFAULT_PROVIDER:
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        file = os.fspath(model or self._source.path)
        return onnxruntime.InferenceSession(file, settings, providers=self._providers())

    def _read_back_threads(self, started: int) -> None:
        """Count the threads that compute an operator: the caller's, and those that the session started.

        ONNX Runtime does not report the number. Other parts of the program may have started threads meanwhile, so the
        count may be too high, never too low.
        """
        requested, others = self._options.threads, max((self._options.inter_threads or 1) - 1, 0)
        count = 1 + max(started - others, 0)
        if requested is not None and count < requested:
            self.close()
            threads = count_of(requested, "thread was", "threads were")
            raise NetworkError(f"{self._source.path.name}: {threads} requested, but ONNX Runtime has started {count}")
        self._threads = requested or count

    def _providers(self) -> list[Any]:
        """Return the provider with its options; for TensorRT also CUDA, so that other operators stay on the GPU."""
        provider = self._options.provider
        if provider not in (CUDA, TENSORRT):
            return [provider]
        where = {"device_id": str(self._options.device_id or 0)}
        cuda = (CUDA, {**where, "use_tf32": "1" if self._tf32 else "0"})
        if provider == CUDA:
            return [cuda]
        narrow = {f"trt_{name}_enable": "1" for name in ("fp16", "bf16", "int8") if name == self._requested}
        return [(TENSORRT, {**where, **narrow}), cuda]

    def _bound(self, session: Any, batch: int) -> tuple[Any, list[tuple[Any, Any]]]:
        """Bind inputs and outputs in the memory of the provider; return the binding, and the inputs on the device."""
        binding = session.io_binding()
        where = (DEVICE_OF.get(self._options.provider, "cpu"), self._options.device_id or 0)
        held = []
        for name, array in self._batches.arrays(batch).items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, *where)
            binding.bind_ortvalue_input(name, value)
            held.append((value, array))
        for output in session.get_outputs():
            binding.bind_output(output.name, *(("cpu", 0) if output.name in self._texts else where))
        return binding, held

    def _outputs(self) -> dict[str, Any]:
        """Return the outputs of the last batch on the host."""
        names = [output.name for output in self._session.get_outputs()]
        if not self._texts:
            return dict(zip(names, map(np.asarray, self._binding.copy_outputs_to_cpu()), strict=True))
        # A copy of all outputs ends the process (1.32) if one of them is text.
        values = zip(names, self._binding.get_outputs(), strict=True)
        return {name: np.asarray(value.numpy()) for name, value in values if value.is_tensor()}


@contextlib.contextmanager
def _library_log() -> Iterator[list[str]]:
    """Collect the errors that ONNX Runtime only logs, such as a library of a provider that is missing."""
    with captured() as messages:
        onnxruntime.set_default_logger_severity(ERROR)
        try:
            yield messages
        finally:
            onnxruntime.set_default_logger_severity(FATAL)


def elsewhere(assigned: Sequence[tuple[str, str]], provider: str) -> str:
    """Return how many operators run on other providers, and which: ``3 of 40: CPU Gather 2, Shape 1``.

    Args:
        assigned: Provider and kind of each operator.
        provider: The requested provider.
    """
    others: dict[str, Counter[str]] = {}
    for other, op in assigned:
        if other != provider:
            others.setdefault(other.removesuffix("ExecutionProvider"), Counter())[op] += 1
    count = sum(item.total() for item in others.values())
    if not count:
        return f"0 of {len(assigned)}"
    listed = "; ".join(
        f"{name} " + ", ".join(f"{op} {number}" for op, number in sorted(ops.items())) for name, ops in others.items()
    )
    return f"{count} of {len(assigned)}: {listed}"[:400]


def actual_precision(path: Path) -> tuple[str, str]:
    """Return the precision that a graph computes in, from its operators and weights.

    Args:
        path: An .onnx file, preferably the one that ONNX Runtime wrote after optimisation.

    Returns:
        The precision of most weights in computation (``int8``, ``fp32``, ``fp16``, ``bf16``, ``fp64``), and how many
        of the operators with weights compute in integers (``10 of 10``).
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
        # Weights of few bits that are dequantised; with accuracy level 4 the activations are int8 too.
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
    """Return the initializer of an input, also through a cast or dequantisation, and its type in the computation.

    A runtime without half precision casts the weights: the computation is in the cast's type.
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


def _threads_of_process() -> set[str]:
    """Return the threads of this process."""
    return {task.name for task in Path("/proc/self/task").iterdir()}
