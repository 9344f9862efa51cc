"""A network in TensorRT (the protocol of ``joulewatch_harness.network``).

Engines are built in ``load`` (for a small batch, which ``check`` runs) and in ``prepare``, outside the measured
windows. Inputs are on the device before ``run``; the host waits for the device once, at the end of ``run``. Phases are
measured by events on the stream, which do not stop the device.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.networks.graphs import read_model
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.model_files import find_source, fingerprint
from joulewatch_harness.runtimes.shared.outputs import check_outputs
from joulewatch_harness.runtimes.shared.signature import check_types, signature
from joulewatch_harness.runtimes.shared.timeline import Timeline, run_on_device
from joulewatch_harness.runtimes.tensorrt import engine as engines
from joulewatch_harness.runtimes.tensorrt import inspector, libraries, profiling, quantised, tensors
from joulewatch_harness.runtimes.tensorrt.device import Cuda, Event, Gpu, Held
from joulewatch_harness.runtimes.tensorrt.engine import SUFFIXES
from joulewatch_harness.runtimes.tensorrt.libraries import Libraries, Messages, made, make_logger
from joulewatch_harness.runtimes.tensorrt.options import FOR_BUILDING, Options, Profile
from joulewatch_harness.runtimes.tensorrt.prepared import PreparedBatch
from joulewatch_harness.traces import Trace, write_trace

logger = logging.getLogger(__name__)


class TensorRtNetwork:
    """An ONNX file built into engines, or an engine file."""

    def __init__(self, libraries: Libraries, source: networks.ModelSource, precision: str, options: Options) -> None:
        self._libraries = libraries
        self._source = source
        self._requested = precision
        self._options = options
        self._is_engine = source.path.suffix in engines.SUFFIXES
        self._tf32 = precision == "tf32"
        self._cuda = Cuda(libraries.cudart)
        self._messages = Messages()
        self._logger: Any = None
        self._gpu: Gpu | None = None
        self._held = Held(self._cuda)
        """Stream and events, for as long as the network is loaded."""
        self._stream: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._engine_batch = 0
        """Batch size the engine was built for; 0 if it accepts several."""
        self._engine_bytes = 0
        self._origin = ""
        self._prepared: PreparedBatch | None = None
        self._timeline: Timeline | None = None
        self._layers = inspector.Layers((), False)
        self._precision = inspector.Precision("", "", "")
        self._content: bytes | None = None
        self._symmetric = False
        self._sha256 = ""
        self._output_names: tuple[str, ...] = ()
        self._batch = 0
        self._prepare_s = 0.0
        self._batches = Batches(source=source)
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""

    def describe(self) -> Mapping[str, Any]:
        """Return the actual device, precision and engine; before ``load``, only the options."""
        options = self._options
        description: dict[str, Any] = {
            "runtime": "tensorrt",
            "runtime_version": self._libraries.version,
            "model_file": self._source.path.name,
            "copies": "included" if options.copies else "excluded",
            "cuda_graph": str(options.cuda_graph).lower(),
            **self._source.details,
            **self._checked,
        }
        if not self._is_engine:
            description["shape"] = options.shape if options.profile is None else f"dynamic {options.profile.text()}"
            description["strongly_typed"] = "true"
            description["tf32"] = "allowed" if self._tf32 else "off"
        if self._gpu is None or self._engine is None:
            return description
        gpu = self._gpu
        description |= {
            "device": f"cuda:{gpu.index}",
            "device_name": gpu.name,
            "gpu_uuid": gpu.uuid,
            "gpu_pci": gpu.pci,
            "compute_capability": gpu.capability,
            "device_memory_bytes": gpu.memory_bytes,
            "driver": gpu.driver,
            "cuda": gpu.cuda,
            "precision": self._precision.name,
            "precision_products": self._precision.products,
            "precision_evidence": self._precision.evidence,
            "engine": self._origin,
            "engine_bytes": self._engine_bytes,
            "activation_memory_bytes": tensors.activation_bytes(self._engine),
            "layers": int(self._engine.num_layers),
            "model_sha256": self._sha256,
            **self._batches.describe(),
            "last_prepare_s": f"{self._prepare_s:.3g}",
        }
        if self._is_engine:
            description |= tensors.fixed_batch(self._engine, self._batches.inputs, self._batches.axes)
        if self._symmetric:
            description["quantisation"] = "rewritten to int8 around zero"
        return description

    def load(self) -> None:
        """Find the GPU, build or read the engine of a small batch, and read back its precision.

        Raises:
            ConfigError: there is no GPU; the file is missing, broken, or built for another GPU or TensorRT; TensorRT
                does not support the quantisation; TF32 on a GPU without it.
            MemoryError: the device has no memory for it.
            NetworkError: TensorRT cannot build it.
        """
        path, options = self._source.path, self._options
        gpu = self._cuda.find_gpu(options.device)
        self._precision = inspector.Precision("", "", "")
        if self._tf32 and not gpu.has_tf32 and not options.any_precision:
            raise ConfigError(
                f"{path.name}: {gpu.name} (compute capability {gpu.capability}) does not compute in TF32, which needs "
                "8.0 or newer"
            )
        self._gpu = gpu
        try:
            self._cuda("cudaSetDevice", gpu.index)
            self._logger = make_logger(self._libraries.trt, self._messages)
            self._runtime = made(self._libraries.trt.Runtime, self._messages, self._logger)
            self._stream = self._held.stream()
            if options.events:
                self._timeline = Timeline(self._event)
            if self._is_engine:
                self._load_engine_file()
            else:
                self._load_model()
        except BaseException:
            self.close()
            raise

    def prepare(self, batch: int) -> None:
        """Select the engine of this batch size, put the inputs on the device, run it once, and capture it if requested.

        Raises:
            UnsupportedBatchError: the model, the engine or its profile does not accept the batch size.
            NetworkError: TensorRT cannot run this batch, or computes it in another precision.
            MemoryError: the device has no memory for it.
        """
        name, gpu = self._source.path.name, self._device()
        self._batches.check_size(batch)
        profile = self._options.profile
        if profile is not None and not profile.least <= batch <= profile.most:
            raise UnsupportedBatchError(f"{name}: the profile {profile.text()} does not contain batch size {batch}")
        self._release_batch()
        start_s = time.monotonic()
        try:
            self._cuda("cudaSetDevice", gpu.index)
            self._select_engine(batch)
            self._prepared = PreparedBatch(
                self._libraries, self._cuda, self._messages, engine=self._engine, stream=self._stream, name=name
            )
            ranges = self._ranges() if self._is_engine else []
            self._prepared.bind(batch, self._batches.arrays(batch), ranges, copies=self._options.copies)
            self._prepared.enqueue()
            self._prepared.wait()
            if self._options.cuda_graph:
                self._prepared.capture()
        except BaseException as error:
            self._release_batch()
            if isinstance(error, MemoryError):
                raise MemoryError(f"{name}: batch {batch}: {error}") from error
            raise
        self._batch = batch
        self._prepare_s = time.monotonic() - start_s

    def run(self, batches: int, phases: Phases) -> None:
        """Run the prepared batch ``batches`` times; the device has finished on return.

        Raises:
            MemoryError: the device has no memory for it.
            NetworkError: TensorRT or CUDA failed; the text contains the reason.
        """
        # Another network of this process may have made its GPU the current one.
        self._cuda("cudaSetDevice", self._device().index)
        prepared = self._of_batch()
        run_on_device(
            batches,
            phases,
            self._timeline,
            prepared.launch,
            prepared.wait,
            prepared.copies() if self._options.copies else None,
        )

    def check(self, batch: int | None = None) -> bool:
        """Run a batch, a small one by default, and check its outputs; it stays prepared.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        batch = batch or self._size_for_check()
        self.prepare(batch)
        self.run(1, Phases())
        fetched = {item.name: item.fetched(self._cuda, self._stream) for item in self._of_batch().outputs}
        outputs = {name: fetched[name] for name in self._output_names}
        self._checked = check_outputs(self._source, self._batches.arrays(batch), outputs, self._precision.name)
        return True

    def trace(self, path: Path) -> None:
        """Write the time of each layer, from batches that alternate with plain ones.

        Traced batches run in a separate context with TensorRT's profiler, without a CUDA graph.

        Raises:
            NetworkError: no batch is prepared, or TensorRT cannot profile it.
            RecordError: the file cannot be written.
        """
        if not self._batch:
            raise NetworkError(f"{self._source.path.name}: trace() comes after load() and prepare()")
        tally = tracing.Tally()
        turns = self._trace_in_turns(tally)
        work = tracing.Work()
        if not self._is_engine:
            work = tracing.Work.of(read_model(self._source.path), self._batch, self._batches.sizes())
        macs = {layer.name: profiling.layer_macs(layer, work) for layer in self._layers.items}
        write_trace(
            Trace(
                runtime="tensorrt",
                source=f"profiler of TensorRT {self._libraries.version}",
                batch_size=self._batch,
                batches=turns.batches,
                time_ns=turns.traced_ns,
                operators=tally.operators(macs),
                plain_time_ns=turns.plain_ns,
                macs=work.total,
                notes=("traced without the CUDA graph",) * (self._of_batch().graph is not None),
                details={"layers": str(len(self._layers.items))},
            ),
            path,
        )

    def _trace_in_turns(self, tally: tracing.Tally) -> tracing.Turns:
        kinds = {layer.name: layer.kind for layer in self._layers.items}
        prepared = self._of_batch()
        context = prepared.new_context()
        prepared.bind_context(context)
        context.profiler = profiling.make_profiler(
            self._libraries.trt, lambda name, time_ns: tally.add(name, kinds.get(name, ""), time_ns)
        )
        # Report on request, after the device has finished, so that nothing waits between two layers.
        context.enqueue_emits_profile = False

        def traced(batches: int) -> None:
            for _ in range(batches):
                prepared.enqueue(context)
                prepared.wait()
                if not context.report_to_profiler():
                    reasons = self._messages.reasons() or "no reason"
                    raise NetworkError(f"{self._source.path.name}: TensorRT reports no layer times: {reasons}")

        try:
            return tracing.in_turns(
                tracing.timed(lambda batches: self.run(batches, MarksOnly())), tracing.timed(traced), begin=tally.clear
            )
        finally:
            self._wait_quietly()

    def close(self) -> None:
        """Free everything; safe to call twice."""
        if self._gpu is not None:
            with contextlib.suppress(NetworkError, MemoryError):
                self._cuda("cudaSetDevice", self._gpu.index)
        self._release_engine()
        self._held.close()
        self._timeline = self._stream = self._runtime = self._logger = None
        self._gpu = None

    # Loading

    def _load_model(self) -> None:
        path, options = self._source.path, self._options
        if not path.is_file():
            raise ConfigError(f"no model file {path}")
        inputs = signature(path)
        check_types(inputs, f"model file {path}")
        self._sha256 = fingerprint(path)
        self._batches = options.batches(path.name, inputs, self._source)
        model = quantised.read(path, external=False)
        self._output_names = tuple(item.name for item in model.graph.output)
        rewrite = self._source.make_inputs is not None if options.symmetric is None else options.symmetric
        refused = quantised.refused(model)
        if refused is not None:
            if not rewrite:
                raise ConfigError(
                    f"model file {path}: TensorRT refuses node {refused.node!r}: {refused.why}; it supports symmetric "
                    "int8 only: quantise it so, or set symmetric=true to rewrite it"
                )
            self._content = quantised.symmetric(quantised.read(path), path.name).SerializeToString()
            self._symmetric = True
        self._select_engine(self._size_for_check())

    def _load_engine_file(self) -> None:
        path = self._source.path
        self._sha256 = fingerprint(path)
        plan = engines.Plan(path.read_bytes(), "file")
        engine = engines.deserialise(self._runtime, self._messages, plan)
        if engine is None:
            raise engines.not_for_here(path, self._libraries.version, self._device(), self._messages)
        self._adopt(engine, plan, 0)
        inputs = tensors.signature(self._libraries.trt, engine, path.name)
        check_types(inputs, f"engine file {path}")
        self._output_names = tensors.output_names(self._libraries.trt, engine)
        self._batches = self._options.batches(path.name, inputs, self._source)

    def _size_for_check(self) -> int:
        """Return a small batch size that the model, the profile and the engine accept."""
        size = self._batches.size_for_check()
        profile = self._options.profile
        if profile is not None:
            return min(max(size, profile.least), profile.most)
        if self._is_engine:
            ranges = self._ranges()
            if ranges and not any(least <= size <= most for least, _, most in ranges):
                return ranges[0][1]
        return size

    # Engines

    def _select_engine(self, batch: int) -> None:
        """Get the engine for this batch size: the current one, one of the cache, or a new one."""
        if self._engine is not None and self._engine_batch in (0, batch):
            return
        self._release_engine()
        recipe = self._recipe(batch)
        options = self._options
        gpu = self._device()
        cache = engines.Cache.here(self._libraries.version, gpu)
        place = cache.engine(self._source.path.stem, recipe)
        plan = cache.read(place) if options.engine_cache else None
        if plan is not None:
            engine = engines.deserialise(self._runtime, self._messages, plan)
            if engine is not None:
                self._adopt(engine, plan, batch)
                return
            if self._messages.no_memory():
                raise MemoryError(f"{self._source.path.name}: {gpu.name} has no memory: {self._messages.reasons()}")
            logger.warning("%s cannot be read and is built again: %s", place, self._messages.reasons())
            cache.forget(place)
        data, built_s = engines.build(
            self._libraries,
            self._logger,
            self._messages,
            self._source.path,
            self._content,
            recipe,
            gpu,
            cache if options.timing_cache else None,
        )
        if options.engine_cache:
            cache.keep(place, data, recipe, built_s)
        plan = engines.Plan(data, f"built in {built_s:.1f} s")
        engine = engines.deserialise(self._runtime, self._messages, plan)
        if engine is None:
            reasons = self._messages.reasons()
            if self._messages.no_memory():
                raise MemoryError(f"{self._source.path.name}: {gpu.name} has no memory for its engine: {reasons}")
            raise NetworkError(f"{self._source.path.name}: TensorRT refuses the engine that it has built: {reasons}")
        self._adopt(engine, plan, batch)

    def _adopt(self, engine: Any, plan: engines.Plan, batch: int) -> None:
        """Use an engine, and read back its layers and precision."""
        name = self._source.path.name
        self._engine = engine
        self._engine_batch = batch if self._options.profile is None and not self._is_engine else 0
        self._engine_bytes = memoryview(plan.data).nbytes
        self._origin = plan.origin
        trt = self._libraries.trt
        information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        self._layers = inspector.read_layers(information)
        precision = inspector.actual_precision(self._layers, None if self._is_engine else self._tf32)
        tensors.check(trt, engine, name)
        before = self._precision.name
        if before:
            try:
                self._options.check_same_precision(name, batch, precision.name, before)
            except NetworkError:
                self._release_engine()
                raise
        self._precision = precision

    def _recipe(self, batch: int) -> engines.Recipe:
        options = self._options
        profile = options.profile or Profile(batch, batch, batch)
        shapes = {}
        for item in self._batches.inputs:
            if any(not isinstance(size, int) for size in item.shape):
                shapes[item.name] = (
                    self._batches.shape(item, profile.least),
                    self._batches.shape(item, profile.best),
                    self._batches.shape(item, profile.most),
                )
        return engines.Recipe(
            model_sha256=self._sha256,
            shapes=shapes,
            tf32=self._tf32,
            workspace_mib=options.workspace_mib,
            optimization_level=options.optimization_level,
            symmetric=self._symmetric,
        )

    # Preparing

    # Running

    def _event(self) -> Event:
        return Event(self._cuda, self._held.event(), self._stream)

    def _wait(self) -> None:
        self._cuda("cudaStreamSynchronize", self._stream)

    def _wait_quietly(self) -> None:
        """Wait for the stream, ignoring errors of the device."""
        with contextlib.suppress(NetworkError, MemoryError):
            self._wait()

    # Release

    def _release_batch(self) -> None:
        """Release the batch: wait for the stream, then release graph and context before their memory."""
        if self._stream is not None:
            self._wait_quietly()
        self._batch = 0
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None

    def _release_engine(self) -> None:
        self._release_batch()
        self._engine = None
        self._engine_batch = 0

    # Details

    def _of_batch(self) -> PreparedBatch:
        if self._prepared is None:
            raise NetworkError(f"{self._source.path.name}: no batch is prepared")
        return self._prepared

    def _ranges(self) -> list[tuple[int, int, int]]:
        """Return the batch sizes of the profiles of the engine."""
        return tensors.batch_ranges(self._engine, self._batches.inputs, self._batches.axes)

    def _device(self) -> Gpu:
        if self._gpu is None:
            raise NetworkError(f"{self._source.path.name}: is not loaded")
        return self._gpu


PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", NATIVE)


def open_network(network: str, precision: str, options: Mapping[str, str]) -> TensorRtNetwork:
    """Return the network; the entry point of the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file, TensorRT or CUDA's bindings are missing.
    """
    packages = libraries.find()
    if precision not in PRECISIONS:
        raise ConfigError(f"tensorrt: {unknown('precision', precision, PRECISIONS)}")
    stored = "fp32" if precision == "tf32" else precision
    source, rest = find_source("tensorrt", network, stored, options, Options.keys(), (".onnx", *SUFFIXES))
    if Path(network).suffix in SUFFIXES:
        for key in FOR_BUILDING:
            if key in rest:
                raise ConfigError(f"tensorrt: {network} is already built: remove the option {key}")
        if precision == "tf32":
            raise ConfigError(f"tensorrt: {network} is already built, with TF32 or without: request {NATIVE}")
    return TensorRtNetwork(packages, source, precision, Options.parse(rest))
