"""Apache TVM: built-in networks and any ``.onnx`` file, compiled for this processor; untuned kernels are reported.

TVM compiles kernels for one batch size, in ``prepare``, outside the measured windows. Without tuning, the kernels of a
float network are scalar loops on one thread, about fifty times slower than tuned ones: the option ``trials`` tunes
them, which takes minutes for each batch size, and a database keeps the results (``tuning``). Quantised files are
lowered to integer arithmetic by ``integer``, because TVM's importer does not do that.

The precision is read from the IR of the kernels, the number of threads from TVM's pool. Inputs are on the device before
``run``, and the host waits for the device at the end of it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import Phases
from joulewatch_harness.networks.cost import cost_of
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.shared.failures import as_network_errors
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.model_files import find_source, fingerprint
from joulewatch_harness.runtimes.shared.native_log import captured
from joulewatch_harness.runtimes.shared.outputs import check_outputs
from joulewatch_harness.runtimes.shared.signature import Input, check_types, signature
from joulewatch_harness.runtimes.tvm.options import PROCESSORS, Options, default_cost_model

# TVM reads these once, when its threads start. By default it binds them to the first processors of the machine, even if
# the process may not use those; and its pool cannot grow later, so it gets the largest useful size.
os.environ.setdefault("TVM_BIND_THREADS", "0")
_USER_THREADS: Final = os.environ.get("TVM_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
os.environ.setdefault("TVM_NUM_THREADS", str(PROCESSORS))

try:
    import tvm
    import tvm_ffi
    from tvm import relax
except ModuleNotFoundError as missing:
    if missing.name not in ("tvm", "tvm_ffi", "tvm.relax"):
        raise
    raise ConfigError("the runtime tvm needs the package apache-tvm: pip install 'joulewatch[tvm]'") from missing
except ImportError as wrong:
    raise ConfigError(
        "the package tvm that is installed is not Apache TVM (on PyPI that name is a finance library): "
        "pip uninstall tvm; pip install 'joulewatch[tvm]'"
    ) from wrong

from joulewatch_harness.runtimes.tvm import compiling, importing, tracing, tuning, vnni  # noqa: E402

logger = logging.getLogger(__name__)

PRECISIONS: Final = ("fp32", "fp16", "int8")
DEVICES: Final = ("llvm", "cuda")
LARGEST_VERIFIED: Final = 64
"""Largest batch size at which tuned kernels are compared with a reference before they are measured."""
UNTUNED: Final = "UNTUNED (scalar loops on one thread, 20 to 50 times slower; trials=16 tunes the kernels)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The network compiled for one batch size."""

    executable: Any
    machine: Any
    """A Relax virtual machine with it."""
    products: tuple[importing.Product, ...]
    kernels: int
    scheduled: int
    """Number of kernels with a schedule from the database."""
    tuned: tuning.Finished
    compile_s: float


def open_network(network: str, precision: str, options: Mapping[str, str]) -> TvmNetwork:
    """Return the network; the entry point of the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file does not exist.
    """
    if precision not in (*PRECISIONS, NATIVE):
        raise ConfigError(f"tvm: {unknown('precision', precision, (*PRECISIONS, NATIVE))}")
    source, rest = find_source("tvm", network, precision, options, Options.keys())
    return TvmNetwork(source, precision, Options.parse(rest))


class TvmNetwork:
    """A model file compiled by TVM (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, source: networks.ModelSource, precision: str, options: Options) -> None:
        self._source = source
        self._requested = precision
        self._options = options
        self._device: Any = None
        self._target: Any = None
        self._model: Any = None
        self._threads = 0
        self._programs: dict[int, Program] = {}
        """Batch size -> the program compiled for it."""
        self._batch = 0
        self._main: Any = None
        self._inputs: tuple[Any, ...] = ()
        self._host: tuple[Any, ...] = ()
        self._outputs: Any = None
        self._precision = ""
        self._integer_ops = ""
        self._sha256 = ""
        self._cost: Mapping[str, str] = {}
        self._batches = Batches(source=source)
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""

    def describe(self) -> Mapping[str, Any]:
        """Return the actual device, precision, threads and tuning; before ``load``, only what is known of the file."""
        description: dict[str, Any] = {
            "runtime": "tvm",
            "runtime_version": tvm.__version__,
            "model_file": self._source.path.name,
            **self._source.details,
            **self._cost,
            **self._checked,
        }
        if self._model is None:
            return description
        description |= {
            "device": str(self._device).removesuffix(":0"),
            "precision": self._precision,
            "integer_ops": self._integer_ops,
            "threads": self._threads,
            "target": str(self._target),
            "model_sha256": self._sha256,
            **self._batches.describe(),
            "tuning": self._tuning_text(),
        }
        if self._device.dlpack_device_type() != tvm.cpu().dlpack_device_type():
            description["copies"] = "included" if self._options.copies else "excluded"
        program = self._programs.get(self._batch)
        if program is not None:
            description |= {
                "tuned": f"{program.scheduled} of {count_of(program.kernels, 'kernel')}, "
                f"at most {count_of(program.tuned.trials, 'trial')} each",
                "tuning_s": f"{program.tuned.tuning_s:.0f}",
                "cost_model": program.tuned.cost_model or "none",
                "last_compile_s": f"{program.compile_s:.3g}",
            }
        return description

    def load(self) -> None:
        """Read the model, find the device, and read the precision from the IR of one batch size.

        Raises:
            ConfigError: the file is missing or broken, the target is unknown or its device is missing, TVM does not
                import an operator, or the type or size of an input is not supported.
            NetworkError: TVM's pool has fewer threads than requested.
        """
        path, options = self._source.path, self._options
        self._set_threads()
        self._target, self._device = find_target(options.target, self._threads)
        self._sha256 = fingerprint(path)
        inputs = signature(path)
        check_types(inputs, f"model file {path}")
        self._model = importing.read_onnx(path)
        self._batches = options.batches(path.name, inputs, self._source)
        if "macs_per_inference" not in self._source.details:
            self._cost = self._batches.cost_details(path)
        vnni.register()
        try:
            fused = self._fused(self._batches.size_for_check())
        except ConfigError:
            # The graph may be for batch size 1, although its batch axis is open.
            fused = self._fused(1)
        self._precision, self._integer_ops = actual_precision(importing.products(fused), inputs)

    def prepare(self, batch: int) -> None:
        """Tune for this batch size if requested, compile for it, and put its inputs on the device.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size, or its graph does not allow this
                one.
            NetworkError: the model computes in another precision at this batch size; tuning or compiling failed.
            MemoryError: the device has no memory for it.
        """
        self._batches.check_size(batch)
        name, known = f"{self._source.path.name}, batch {batch}", self._programs.get(batch)
        self._prepare(batch, self._options.trials)
        program = self._programs[batch]
        if program is known:
            return
        if not program.scheduled:
            logger.warning("%s: %s", name, UNTUNED)
            return
        if program.scheduled < program.kernels:
            kernels = count_of(program.kernels, "kernel")
            logger.warning("%s: only %d of %s tuned", name, program.scheduled, kernels)
        if batch <= LARGEST_VERIFIED:
            # The search keeps what is fast: check that the kernels are also correct.
            try:
                self._verify()
            except NetworkError:
                del self._programs[batch]
                self._main = None
                raise

    def _prepare(self, batch: int, trials: int) -> None:
        name = f"{self._source.path.name}, batch {batch}"
        self._main, self._inputs, self._host, self._outputs = None, (), (), None
        self._set_threads()
        program = self._programs.get(batch)
        if program is None or trials > program.tuned.trials:
            program = self._programs[batch] = self._compiled(batch, name, trials)
        arrays = self._batches.arrays(batch)
        with as_network_errors(name, last_line=True):
            self._host = tuple(arrays[item.name] for item in self._batches.inputs)
            self._inputs = tuple(tvm.runtime.tensor(array, self._device) for array in self._host)
            main = program.machine["main"]
            self._outputs = main(*self._inputs)
            self._device.sync()
        self._main, self._batch = main, batch

    def run(self, batches: int, phases: Phases) -> None:
        """Run the prepared batch ``batches`` times; the device has finished on return.

        On a GPU without copies the launches overlap with the work: one span covers the call, and no batch has a
        separate end.

        Raises:
            MemoryError: the device has no memory for it.
            NetworkError: TVM failed.
        """
        main, inputs, sync = self._main, self._inputs, self._device.sync
        with as_network_errors(f"{self._source.path.name}, batch {self._batch}", last_line=True):
            if self._options.copies:
                self._run_with_copies(batches, phases)
            elif self._target.kind.name != "llvm":
                with phases("execute"):
                    for _ in range(batches):
                        self._outputs = main(*inputs)
                    sync()
            else:
                self._outputs = phases.repeat(batches, functools.partial(main, *inputs))
                sync()

    def check(self, batch: int | None = None) -> bool:
        """Check the outputs of a batch without new tuning; by default the prepared one, or a small one.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        if batch is not None:
            self._batches.check_size(batch)
        if self._main is None or batch not in (None, self._batch):
            self._prepare(batch or self._batches.size_for_check(), 0)
        self.run(1, Phases())
        self._verify()
        return True

    def _verify(self) -> None:
        """Check the outputs of the last batch.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        outputs = {f"number {n}": np.asarray(tensor.numpy()) for n, tensor in enumerate(tensors(self._outputs))}
        self._checked = check_outputs(self._source, self._batches.arrays(self._batch), outputs, self._precision)

    def trace(self, path: Path) -> None:
        """Write the time of each kernel of the prepared batch.

        Raises:
            NetworkError: no batch is prepared, or the device is a GPU, where calls end before their kernels.
        """
        name = self._source.path.name
        if self._main is None:
            raise NetworkError(f"{name}: trace() comes after load() and prepare()")
        if self._target.kind.name != "llvm":
            raise NetworkError(f"{name}: only kernels on a CPU can be traced: on a GPU a call ends before its kernel")
        program = self._programs[self._batch]
        with as_network_errors(name, last_line=True):
            tracing.write(
                path,
                program.machine,
                relax.VirtualMachine(program.executable, self._device),
                self._inputs,
                self._batch,
                self._macs_by_kernel(program),
                self._macs(),
            )

    def close(self) -> None:
        """Release everything."""
        self._main, self._inputs, self._host, self._outputs = None, (), (), None
        self._programs.clear()
        self._model = None

    # Preparing

    def _set_threads(self) -> None:
        """Set the size of TVM's pool, which belongs to the process: another network may have changed it.

        Raises:
            NetworkError: the pool is smaller than requested.
        """
        requested = self._options.threads or default_threads()
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, requested)
        self._threads = int(tvm_ffi.get_global_func("runtime.NumThreads")())
        if self._threads != requested:
            threads = count_of(requested, "thread was", "threads were")
            raise NetworkError(
                f"{self._source.path.name}: {threads} requested, but TVM's pool has {self._threads}: "
                f"set threads={self._threads}, or TVM_NUM_THREADS={requested} in the environment"
            )

    def _fused(self, batch: int) -> Any:
        shapes = self._batches.shapes(batch)
        with captured():
            return importing.fused(importing.imported(self._source.path, self._model, shapes), self._target)

    def _folder(self, batch: int) -> Path:
        dims = "".join(f"-{name}{size}" for name, size in sorted(self._options.dims.items()))
        axes = "".join(f"-{item.name}{item.axis}" for item in self._options.batch_axis)
        label = re.sub(r"[^A-Za-z0-9]+", "-", f"batch{batch}{dims}{axes}")
        return tuning.folder_of(cpu_name(), self._target, self._sha256, self._requested, label)

    def _compiled(self, batch: int, name: str, trials: int) -> Program:
        options, folder = self._options, self._folder(batch)
        start_s = time.monotonic()
        try:
            module = self._fused(batch)
        except ConfigError as error:
            raise UnsupportedBatchError(str(error)) from error
        products = importing.products(module)
        precision, integer_ops = actual_precision(products, self._batches.inputs)
        options.check_same_precision(self._source.path.name, batch, precision, self._precision)
        self._integer_ops = integer_ops
        tuned = tuning.finished(folder)
        spent_s = time.monotonic() - start_s
        if trials > tuned.trials:
            cost_model = options.cost_model or default_cost_model()
            request = tuning.Request(trials=trials, threads=self._threads, cost_model=cost_model, seed=options.seed)
            tuning.tune(folder, module, self._target, request, name)
            tuned = tuning.finished(folder)
        start_s = time.monotonic() - spent_s
        with as_network_errors(name, last_line=True), captured():
            module, scheduled = compiling.scheduled(module, self._target, tuning.open_database(folder))
            executable = compiling.built(module, self._target)
            machine = relax.VirtualMachine(executable, self._device)
        kernels = len(importing.kernels(module))
        return Program(
            executable=executable,
            machine=machine,
            products=products,
            kernels=kernels,
            scheduled=scheduled,
            tuned=tuned,
            compile_s=time.monotonic() - start_s,
        )

    def _tuning_text(self) -> str:
        """Return the tuning of the prepared batch; without a prepared batch, that in the database."""
        program = self._programs.get(self._batch)
        if program is not None:
            return UNTUNED if not program.scheduled else f"{count_of(program.tuned.trials, 'trial')} for each kernel"
        if self._options.trials:
            return f"{count_of(self._options.trials, 'trial')} for each kernel"
        trials_of = {}
        for folder in self._folder(0).parent.glob(f"{self._requested}-batch*"):
            trials = tuning.finished(folder).trials
            if trials:
                trials_of[folder.name.removeprefix(f"{self._requested}-")] = trials
        tuned = ", ".join(f"{label}: {count_of(trials, 'trial')}" for label, trials in sorted(trials_of.items()))
        return f"{tuned}; otherwise {UNTUNED}" if tuned else UNTUNED

    def _macs_by_kernel(self, program: Program) -> dict[str, int]:
        """Return the multiply-accumulates of one batch in the graph, because kernels pad channels to registers."""
        names = [item.kernel for item in program.products]
        try:
            nodes = [node.macs for node in cost_of(self._model, self._batches.sizes()).nodes if node.macs]
        except ConfigError:
            nodes = []
        if len(nodes) == len(names):
            return {name: macs * self._batch for name, macs in zip(names, nodes, strict=True)}
        return {item.kernel: item.macs for item in program.products}

    def _macs(self) -> int | None:
        """Return the multiply-accumulates of one batch, from the model's graph; None: unknown."""
        details = {**self._source.details, **self._cost}
        if "macs_per_inference" not in details or "not_counted" in details:
            return None
        return int(details["macs_per_inference"]) * self._batch

    # Running

    def _run_with_copies(self, batches: int, phases: Phases) -> None:
        main, sync, pairs = self._main, self._device.sync, tuple(zip(self._inputs, self._host, strict=True))
        for _ in range(batches):
            with phases("copy_in"):
                for tensor, array in pairs:
                    tensor.copyfrom(array)
                sync()
            with phases("execute"):
                self._outputs = main(*self._inputs)
                sync()
            with phases("copy_out"):
                for tensor in tensors(self._outputs):
                    tensor.numpy()
            phases.batch()


def actual_precision(products: Sequence[importing.Product], inputs: Sequence[Input]) -> tuple[str, str]:
    """Return the precision that a network computes in.

    Args:
        products: Kernels that multiply and accumulate.
        inputs: Inputs of the model; a network without such kernels computes in their type.

    Returns:
        The precision of most multiply-accumulates, and how many of the kernels compute in integers (``10 of 10``).
    """
    macs: Counter[str] = Counter()
    for item in products:
        macs[item.precision] += item.macs
    integer = f"{sum(item.precision == 'int8' for item in products)} of {len(products)}"
    if macs:
        return macs.most_common(1)[0][0], integer
    kinds = {"float64": "fp64", "float16": "fp16", "int8": "int8", "uint8": "int8"}
    return next((kinds[item.dtype] for item in inputs if item.dtype in kinds), "fp32"), integer


def find_target(text: str, threads: int) -> tuple[Any, Any]:
    """Return the target of the option, and the device that its code runs on.

    Args:
        text: ``cuda``, ``cuda:N``, a target as JSON, or empty for this processor.
        threads: Number of cores of a target that does not contain it.

    Raises:
        ConfigError: the target is not valid, or the device is missing.
    """
    cuda = re.fullmatch(r"cuda(?::(\d+))?", text)
    if cuda is not None:
        device = tvm.cuda(int(cuda[1] or 0))
        if not device.exist:
            raise ConfigError(
                f"tvm: target {text} was requested, but TVM {tvm.__version__} finds no such GPU: nvidia-smi must list "
                "it, CUDA_VISIBLE_DEVICES must not hide it, and this build of TVM must have CUDA"
            )
        return tvm.target.Target.from_device(device), device
    try:
        settings = json.loads(text) if text else {"kind": "llvm", "mcpu": host_cpu()}
        if settings["kind"] == "llvm":
            settings.setdefault("num-cores", threads)
        target = tvm.target.Target(settings)
    except Exception as error:
        reason = " ".join(str(error).split())[-200:]
        raise ConfigError(
            f'tvm: option target: must be cuda, cuda:N or JSON such as {{"kind": "llvm", "mcpu": "{host_cpu()}"}}, '
            f"got {text!r} ({reason})"
        ) from error
    if target.kind.name not in DEVICES:
        raise ConfigError(f"tvm: option target: {unknown('kind', target.kind.name, DEVICES)}")
    return (target, tvm.cpu()) if target.kind.name == "llvm" else (target, find_target("cuda", threads)[1])


def host_cpu() -> str:
    """Return LLVM's name of this processor."""
    return str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUName")())


def cpu_name() -> str:
    """Return the name of this processor in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def default_threads() -> int:
    """Return the number set in the environment, or one for each core (not hardware thread) that may be used."""
    if _USER_THREADS and _USER_THREADS.isdecimal():
        return max(1, min(int(_USER_THREADS), PROCESSORS))
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").read_text(encoding="utf-8"))
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def tensors(outputs: Any) -> list[Any]:
    """Return the tensors in the output of ``main``: one, or several in a tuple."""
    if hasattr(outputs, "numpy"):
        return [outputs]
    return [tensor for item in outputs for tensor in tensors(item)]
