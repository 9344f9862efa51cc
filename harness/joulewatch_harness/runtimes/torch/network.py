"""PyTorch: built-in networks and float .onnx files as modules, custom modules, TorchScript and .pt2 files.

Inputs are on the device before ``run``; the host waits for the device once, at the end of ``run``. On a GPU, phases are
measured by events on the stream, which do not stop the device.
Compiling, exporting and capturing a CUDA graph happen in ``prepare``, outside the measured windows.

PyTorch's settings of threads and TF32 apply to the process: each ``prepare``, which precedes each window, sets them.
TF32 is off unless it is requested, also in convolutions, where PyTorch's default is on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from joulewatch_exporter.text import count_of
from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.networks.graphs import read_model
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.shared.failures import as_network_errors
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.model_files import find_source, fingerprint
from joulewatch_harness.runtimes.shared.outputs import check_outputs
from joulewatch_harness.runtimes.shared.signature import check_types
from joulewatch_harness.runtimes.shared.timeline import Timeline, run_on_device
from joulewatch_harness.runtimes.shared.uses import Use
from joulewatch_harness.runtimes.torch.loading import DTYPE_OF, EXPORTED, TORCHSCRIPT, Loaded, load_module
from joulewatch_harness.runtimes.torch.options import Options
from joulewatch_harness.runtimes.torch.uses import uses_of
from joulewatch_harness.traces import Trace, write_trace

logger = logging.getLogger(__name__)

CUDA_GRAPH_MODES: Final = ("reduce-overhead", "max-autotune")
DEFAULT_THREADS: Final = torch.get_num_threads()
RECOMPILES: Final = 1024
"""Number of batch sizes that one module is compiled for; PyTorch's default is 8, and then it stops compiling."""
GRAPH_WARMUPS: Final = 3

_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.qint8: "int8",
    torch.quint8: "int8",
    torch.int8: "int8",
}


def open_network(network: str, precision: str, options: Mapping[str, str]) -> TorchNetwork:
    """Return the network; the entry point of the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file does not exist.
    """
    if precision not in (*DTYPE_OF, NATIVE):
        raise ConfigError(
            f"torch: {unknown('precision', precision, (*DTYPE_OF, NATIVE))}"
            + ("; for INT8 use onnxruntime, openvino or tvm" if precision == "int8" else "")
        )
    suffixes = (".onnx", EXPORTED, *TORCHSCRIPT)
    if options.get("module"):
        parsed = Options.parse(options)
        if Path(network).suffix in suffixes:
            raise ConfigError(f"torch: {network} is a file, and the option module names another network: remove one")
        return TorchNetwork(networks.ModelSource(path=Path(network)), precision, parsed)
    # The float32 file is cast to the other precisions.
    source, rest = find_source("torch", network, "fp32", options, Options.keys(), suffixes)
    parsed = Options.parse(rest)
    if source.path.suffix != ".onnx" and parsed.mode != "eager":
        raise ConfigError(f"torch: mode={parsed.mode} is for modules, but {network} is already compiled: remove it")
    return TorchNetwork(source, precision, parsed)


class TorchNetwork:
    """A PyTorch module (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, source: networks.ModelSource, precision: str, options: Options) -> None:
        self._source = source
        self._requested = precision
        self._options = options
        self._tf32 = options.tf32 if options.tf32 is not None else precision == "tf32"
        self._device: Any = None
        self._threads = 0
        self._module: Any = None
        self._call: Any = None
        """Launches one batch: the module, perhaps compiled or exported, or the replay of a CUDA graph."""
        self._dtypes: tuple[torch.dtype | None, ...] = ()
        self._compiled: Any = None
        self._graph: Any = None
        self._inputs: tuple[Any, ...] = ()
        self._outputs: Any = None
        self._pinned: list[tuple[Any, Any]] = []
        """Device and host tensor of each input."""
        self._received: list[Any] = []
        """Host tensor of each output."""
        self._timeline: Timeline | None = None
        self._precision = ""
        self._prepare_s = 0.0
        self._batch = 0
        """The prepared batch size; 0: none."""
        self._sha256 = ""
        self._batches = Batches(source=source)
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""

    def describe(self) -> Mapping[str, Any]:
        """Return the actual device, precision and settings; before ``load``, only the options."""
        options = self._options
        kind = self._source.path.suffix
        description: dict[str, Any] = {
            "runtime": "torch",
            "runtime_version": torch.__version__,
            "mode": "torchscript" if kind in TORCHSCRIPT else "export" if kind == EXPORTED else options.mode,
            **self._source.details,
            **self._checked,
        }
        if options.mode == "compile":
            description["compile_mode"] = options.compile_mode
        if options.module:
            description["module"] = options.module
        elif kind:
            description["model_file"] = self._source.path.name
        if self._module is None:
            return description
        description |= {
            "device": str(self._device),
            "precision": self._precision,
            "threads": self._threads,
            "channels_last": str(options.channels_last).lower(),
            "model_sha256": self._sha256,
            **self._batches.describe(),
            "last_prepare_s": f"{self._prepare_s:.3g}",
        }
        if self._device.type == "cuda":
            description |= {
                "device_name": torch.cuda.get_device_name(self._device),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "tf32": str(self._tf32).lower(),
                "cuda_graph": str(options.cuda_graph).lower(),
                "copies": "included" if options.copies else "excluded",
            }
        return description

    def load(self) -> None:
        """Read the module, move it to the device, cast it, and read back its precision.

        Raises:
            ConfigError: the file or the code is missing or broken, the device is unknown or missing, the inputs are
                unknown, or an operator of an .onnx file is not supported.
            MemoryError: the device has no memory for it.
        """
        options, name = self._options, self._name()
        self._device = find_device(options.device)
        if self._tf32 and not _has_tf32(self._device) and not options.any_precision:
            raise ConfigError(f"{name}: {self._device} does not compute in TF32 (NVIDIA GPUs from Ampere on do)")
        self._apply_settings()
        self._sha256 = "" if options.module else fingerprint(self._source.path)
        loaded = load_module(self._source.path, options, DTYPE_OF.get(self._requested))
        if not loaded.inputs and self._source.path.suffix != ".onnx":
            raise ConfigError(
                f"{name}: PyTorch does not report the inputs of this network: give them with --option "
                "signature='x:float32[batch,3,224,224]', or give arrays with --option inputs=FILE.npz"
            )
        check_types(loaded.inputs, name)
        if options.channels_last and not any(len(item.shape) == 4 for item in loaded.inputs):
            raise ConfigError(f"{name}: channels_last is for inputs with four axes, and no input has four")
        find_uses = None if self._source.path.suffix == ".onnx" else functools.partial(_uses, loaded)
        self._batches = options.batches(name, loaded.inputs, self._source, find_uses)
        with _errors(f"{name}: cannot be moved to {self._device}"):
            module = loaded.module.to(self._device)
            if options.channels_last:
                module = module.to(memory_format=torch.channels_last)
        self._module = module
        self._precision = actual_precision(module, self._device, DTYPE_OF.get(self._requested))
        dtype = next((key for key, text in _NAMES.items() if text == self._precision), torch.float32)
        if self._precision == "tf32" or not dtype.is_floating_point:
            dtype = torch.float32
        self._dtypes = loaded.dtypes or tuple(dtype for _ in loaded.inputs)
        if options.mode == "compile":
            self._compiled = _compiled(module, options.compile_mode)

    def prepare(self, batch: int) -> None:
        """Put the inputs on the device; compile, export or capture for this batch size; run it once.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size.
            NetworkError: the network cannot run this batch; the text contains the reason.
            MemoryError: the device has no memory for it.
        """
        options, name = self._options, self._name()
        self._batches.check_size(batch)
        arrays = self._batches.arrays(batch)
        self._release_batch()
        self._apply_settings()
        start_s = time.monotonic()
        with _errors(f"{name}: batch {batch} cannot be run"), _compiling(), torch.inference_mode():
            self._inputs, self._pinned = self._uploaded(arrays)
            if options.mode == "export":
                self._call = _exported(self._module, self._inputs)
            else:
                self._call = self._compiled if self._compiled is not None else self._module
            self._outputs = self._call(*self._inputs)
            if self._compiled is not None:
                # The compiled code must be reused: a second compilation would happen in the measured window.
                with torch.compiler.set_stance("fail_on_recompile"):
                    self._outputs = self._call(*self._inputs)
            if options.cuda_graph:
                self._capture()
            if options.copies:
                self._received = [_pinned_like(tensor) for tensor in tensors(self._outputs)]
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
                if options.events and self._timeline is None:
                    self._timeline = Timeline(lambda: torch.cuda.Event(enable_timing=True))
        self._prepare_s = time.monotonic() - start_s
        self._batch = batch

    def run(self, batches: int, phases: Phases) -> None:
        """Run the prepared batch ``batches`` times; the device has finished on return.

        Raises:
            MemoryError: the device has no memory for it.
            NetworkError: PyTorch failed.
        """
        with _errors(f"{self._name()}: a batch failed"), torch.inference_mode():
            if self._device.type == "cpu":
                self._run_on_host(batches, phases)
            else:
                self._run_on_device(batches, phases)

    def check(self, batch: int | None = None) -> bool:
        """Run a batch, a small one by default, and check its outputs; it stays prepared.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        name = self._name()
        batch = batch or self._batches.size_for_check()
        self.prepare(batch)
        self.run(1, Phases())
        outputs = {f"number {n}": _numpy(tensor) for n, tensor in enumerate(tensors(self._outputs))}
        if not outputs:
            raise NetworkError(f"{name}: its outputs contain no tensor")
        self._checked = check_outputs(self._source, self._batches.arrays(batch), outputs, self._precision, name=name)
        return True

    def trace(self, path: Path) -> None:
        """Write the time of each operator of the prepared batch, from PyTorch's profiler.

        The operators of a CUDA graph are traced while they are launched one by one.

        Raises:
            NetworkError: no batch is prepared, or it cannot be traced.
        """
        from joulewatch_harness.runtimes.torch.tracing import Profiler, ranges_of_layers

        name, on_gpu, inputs = self._name(), self._device is not None and self._device.type == "cuda", self._inputs
        if not self._batch:
            raise NetworkError(f"{name}: trace() comes after load() and prepare()")
        with (
            _errors(f"{name}: cannot be traced"),
            _compiling(),
            torch.inference_mode(),
            contextlib.ExitStack() as stack,
        ):
            traced = self._traced()
            if traced is self._module:
                stack.enter_context(ranges_of_layers(traced))
            profiler = Profiler(
                call=lambda: traced(*inputs),
                wait=lambda: torch.cuda.synchronize(self._device) if on_gpu else None,
                on_gpu=on_gpu,
            )
            traced(*inputs)
            turns = tracing.in_turns(
                tracing.timed(lambda batches: self.run(batches, MarksOnly())),
                profiler.block,
                begin=profiler.tally.clear,
                events_per_batch=profiler.count_work(),
            )
        work = tracing.Work()
        if self._source.path.suffix == ".onnx":
            work = tracing.Work.of(read_model(self._source.path), self._batch, self._batches.sizes())
        launched_as_one = self._graph is not None or (on_gpu and self._options.compile_mode in CUDA_GRAPH_MODES)
        write_trace(
            Trace(
                runtime="torch",
                source=f"profile of PyTorch {torch.__version__}",
                batch_size=self._batch,
                batches=turns.batches,
                time_ns=turns.traced_ns,
                operators=profiler.operators(work),
                plain_time_ns=turns.plain_ns,
                macs=work.total,
                notes=("Traced operators were launched one by one, untraced ones as a CUDA graph.",) * launched_as_one,
            ),
            path,
        )

    def close(self) -> None:
        """Release everything."""
        self._release_batch()
        self._module = self._compiled = self._timeline = None
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Loading

    def _name(self) -> str:
        return self._options.module or self._source.path.name

    def _apply_settings(self) -> None:
        """Set what applies to the whole process, because another network may have changed it.

        Raises:
            NetworkError: PyTorch does not use the requested number of threads.
        """
        requested = self._options.threads or DEFAULT_THREADS
        torch.set_num_threads(requested)
        self._threads = torch.get_num_threads()
        if self._threads != requested:
            threads = count_of(requested, "thread was", "threads were")
            raise NetworkError(f"{self._name()}: {threads} requested, but PyTorch uses {self._threads}")
        torch.backends.cuda.matmul.allow_tf32 = self._tf32
        torch.backends.cudnn.allow_tf32 = self._tf32

    def _traced(self) -> Any:
        """Return the module with names for its operators, for tracing."""
        from joulewatch_harness.runtimes.torch.tracing import with_ranges

        if self._compiled is not None:
            return _compiled(self._module, self._options.compile_mode, traced=True)
        module = self._call if self._options.mode == "export" else self._module
        return with_ranges(module) if isinstance(module, torch.fx.GraphModule) else module

    # Preparing

    def _uploaded(self, arrays: networks.Arrays) -> tuple[tuple[Any, ...], list[tuple[Any, Any]]]:
        uploaded, pinned = [], []
        for item, dtype in zip(self._batches.inputs, self._dtypes, strict=True):
            host = torch.from_numpy(np.array(arrays[item.name], order="C"))
            if host.is_floating_point() and dtype is not None:
                host = host.to(dtype)
            if self._options.channels_last and host.dim() == 4:
                host = host.to(memory_format=torch.channels_last)
            device = host.to(self._device)
            uploaded.append(device)
            if self._options.copies:
                pinned.append((device, host.pin_memory()))
        return tuple(uploaded), pinned

    def _capture(self) -> None:
        """Record the launches of one batch as a CUDA graph, which is replayed by one call."""
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARMUPS):
                self._call(*self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._call(*self._inputs)

    def _release_batch(self) -> None:
        self._call = self._graph = self._outputs = None
        self._inputs, self._pinned, self._received = (), [], []
        self._batch = 0

    # Running

    def _run_on_host(self, batches: int, phases: Phases) -> None:
        self._outputs = phases.repeat(batches, functools.partial(self._call, *self._inputs))

    def _run_on_device(self, batches: int, phases: Phases) -> None:
        call, inputs, graph = self._call, self._inputs, self._graph

        def launch() -> None:
            self._outputs = call(*inputs)

        def copy_in() -> None:
            for device, host in self._pinned:
                device.copy_(host, non_blocking=True)

        def copy_out() -> None:
            for host, device in zip(self._received, tensors(self._outputs), strict=True):
                host.copy_(device, non_blocking=True)

        run_on_device(
            batches,
            phases,
            self._timeline,
            launch if graph is None else graph.replay,
            lambda: torch.cuda.synchronize(self._device),
            (copy_in, copy_out) if self._options.copies else None,
        )


def actual_precision(module: Any, device: torch.device, fallback: torch.dtype | None = None) -> str:
    """Return the precision of a module: the type of most weights; TF32 if the process allows it on this device.

    Args:
        module: The module, on the device.
        device: That device.
        fallback: The type of the inputs, for a module without weights.
    """
    sizes: dict[str, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        name = _NAMES.get(tensor.dtype)
        if name is not None:
            sizes[name] = sizes.get(name, 0) + tensor.numel()
    precision = max(sizes, key=lambda name: sizes[name], default=_NAMES[fallback or torch.float32])
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return "tf32" if precision == "fp32" and allowed and _has_tf32(device) else precision


def find_device(text: str) -> torch.device:
    """Return the device of the option.

    Raises:
        ConfigError: the device does not exist or cannot be used; the text contains the fix.
    """
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", text)
    if match is None or (match[1] == "cpu" and match[2]):
        raise ConfigError(f"torch: {unknown('device', text, ('cpu', 'cuda', 'cuda:0', 'cuda:1'))}")
    if match[1] == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise ConfigError(
            f"torch: device {text} was requested, but this build of PyTorch ({torch.__version__}) is for CPUs only: "
            "install one with CUDA (PyTorch's installation page has the command), or set device=cpu"
        )
    with warnings.catch_warnings():
        # PyTorch warns of an old driver, and then finds no GPU.
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError(
            f"torch: device {text} was requested, but PyTorch {torch.__version__} finds no GPU: nvidia-smi must list "
            f"one, with a driver for CUDA {torch.version.cuda}, and CUDA_VISIBLE_DEVICES must not hide it"
        )
    index = int(match[2] or 0)
    if index >= count:
        raise ConfigError(f"torch: the device cuda:{index} does not exist: the last one is cuda:{count - 1}")
    return torch.device("cuda", index)


def _uses(loaded: Loaded, batches: Batches) -> Mapping[str, Use]:
    stored = next((item.dtype for item in loaded.module.parameters() if item.is_floating_point()), torch.float32)
    return uses_of(loaded.module, batches, loaded.dtypes or (stored,) * len(loaded.inputs))


def tensors(outputs: Any) -> list[Any]:
    """Return the tensors in the output of a module: one, or several in a tuple, list, mapping or dataclass."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for item in outputs.values() for tensor in tensors(item)]
    if isinstance(outputs, (tuple, list)):
        return [tensor for item in outputs for tensor in tensors(item)]
    if hasattr(outputs, "__dataclass_fields__"):
        return [tensor for key in outputs.__dataclass_fields__ for tensor in tensors(getattr(outputs, key))]
    return []


def _compiled(module: Any, mode: str, *, traced: bool = False) -> Any:
    """Compile for fixed shapes; ``traced``: kernels report their names to the profiler, and run one by one on a GPU."""
    from torch import _dynamo

    # A module is compiled again for each batch size. The name of the limit depends on the version.
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(_dynamo.config, name):
            setattr(_dynamo.config, name, max(RECOMPILES, getattr(_dynamo.config, name)))
    with _compiling():
        if not traced:
            return torch.compile(module, dynamic=False, mode=mode)
        from torch import _inductor

        settings = {"cpp.enable_kernel_profile": True, "triton.cudagraphs": False}
        return torch.compile(module, dynamic=False, options={**_inductor.list_mode_options(mode), **settings})


def _exported(module: Any, inputs: tuple[Any, ...]) -> Any:
    return torch.export.export(module, inputs).module()


def _has_tf32(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    major: int = torch.cuda.get_device_capability(device)[0]
    return major >= 8


def _pinned_like(tensor: Any) -> Any:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def _numpy(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Ignore warnings about the code of the compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def _errors(prefix: str) -> Iterator[None]:
    """Raise PyTorch's exceptions as ``as_network_errors`` does; a missing compiler is a ConfigError."""
    with as_network_errors(prefix):
        try:
            yield
        except Exception as error:
            if "InvalidCxxCompiler" in f"{type(error).__name__}: {error}":
                raise ConfigError(f"{prefix}: mode=compile needs a C++ compiler: apt-get install g++") from error
            raise
