"""A model of a KServe v2 server as a network under test, over HTTP or gRPC."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter.text import count_of
from joulewatch_harness import networks
from joulewatch_harness.clients.options import WEB
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError, WrongOutputsError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.kserve.client import Client, Outcome, RefusedError, Reply
from joulewatch_harness.runtimes.kserve.options import Options
from joulewatch_harness.runtimes.kserve.over_http import AS_JSON, BINARY_EXTENSION, HttpClient
from joulewatch_harness.runtimes.kserve.server_times import ServerTimes, server_times
from joulewatch_harness.runtimes.kserve.tensors import BINARY, DTYPES, ONLY_BINARY, Tensor, described
from joulewatch_harness.runtimes.shared.http import GRPC
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.outputs import TOLERANCES, check_close, check_finite
from joulewatch_harness.runtimes.shared.servers import as_config_errors, closed_on_error

if TYPE_CHECKING:
    from joulewatch_harness.networks import ModelSource

logger = logging.getLogger(__name__)

WIDEST: Final = "int8"
"""Precision whose tolerance ``check`` uses if the plan does not name one: the widest."""
CHECK_BATCH: Final = 2
"""Small, because a server that fails at larger batch sizes can still be measured at small ones."""
CACHE_PROBES: Final = 3
"""Number of equal requests; the server may count the last answer too late."""
TINY_BYTES: Final = 1 << 17
"""Largest batch whose transfer cannot take 40 ms; above it, delayed acknowledgements are not checked."""

_HINTS: Final[Mapping[Outcome, str]] = {
    Outcome.DENIED: ": check the option headers_file",
    Outcome.TOO_LARGE: ": the batch is larger than the server accepts or has memory for",
    Outcome.BUSY: ": the server is busy, not ready, or limits requests",
    Outcome.FAILED: ": see the server's log",
}


class KServeNetwork:
    """A model of a KServe v2 server (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, model: str, precision: str, options: Options, client: Client) -> None:
        self._model = model
        self._precision = precision
        self._options = options
        self._client = client
        self._pool: ThreadPoolExecutor | None = None
        self._server: Mapping[str, Any] = {}
        self._metadata: Mapping[str, Any] = {}
        self._config: Mapping[str, Any] = {}
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self._source: ModelSource | None = None
        self._batches = Batches(source=networks.ModelSource(path=Path()))
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""
        self._reference_text = ""
        self._warnings: list[str] = []
        self._arrays: Mapping[str, NDArray[np.generic]] = {}
        self._batch = 0
        self._expected_batch: int | None = None
        self._form = BINARY if options.binary else AS_JSON
        self._times: ServerTimes | None = None
        self._are_stale = True
        """Whether requests were sent since the server's statistics were read."""
        self._shared = False

    def describe(self) -> Mapping[str, Any]:
        """Return the descriptions of server and model; before ``load``, only the options."""
        description: dict[str, Any] = {
            "runtime": "kserve",
            "url": self._options.where.url,
            "concurrency": self._options.concurrency,
            "tensors": self._form,
        }
        if self._metadata:
            description |= {
                "runtime_version": " ".join(
                    str(self._server[key]) for key in ("name", "version") if self._server.get(key)
                ),
                "provider": self._metadata.get("platform") or self._config.get("backend") or "",
                "device": _device(self._config),
                "model_versions": " ".join(map(str, self._metadata.get("versions") or [])) or "not reported",
                **self._batches.describe(),
                "inputs": " ".join(item.text() for item in self._inputs),
                "outputs": " ".join(item.text() for item in self._outputs),
                "precision_told_by": "the plan; the protocol does not contain it",
                "server_statistics": str(self._times is not None).lower(),
            }
            description |= self._checked
            if self._max_batch:
                description["max_batch"] = self._max_batch
            if self._reference_text:
                description["reference"] = self._reference_text
            if self._warnings:
                description["warning"] = "; ".join(self._warnings)
        return description

    def load(self) -> None:
        """Read the descriptions of server and model, and send a few small batches to check the answers.

        Raises:
            ConfigError: no answer, it is not a KServe server, it does not have the model, or it refuses the
                key.
            NetworkError: the model cannot be run.
        """
        self.close()
        self._warnings = []
        with closed_on_error(self.close):
            self._client.open(self._options.concurrency)
            with as_config_errors():
                self._read_server()
                self._read_model()
            self._source = self._reference() if self._options.reference else None
            inputs = tuple(item.input() for item in self._inputs)
            source = self._source or networks.ModelSource(path=Path())
            self._batches = self._options.batches(self._client.shown, inputs, source)
            self._probe()

    def prepare(self, batch: int) -> None:
        """Make the inputs of one batch.

        Raises:
            UnsupportedBatchError: larger than the server's largest batch, or another size than the fixed one.
            ConfigError: an open dimension has no size; the text contains the option that sets it.
        """
        if self._max_batch and batch > self._max_batch:
            raise UnsupportedBatchError(
                f"{self._client.shown}: the largest batch is {self._max_batch} (max_batch_size), not {batch}"
            )
        self._batches.check_size(batch)
        self._arrays = self._batches.arrays(batch)
        self._client.prepare([(item, self._arrays[item.name]) for item in self._inputs], self._outputs)
        self._batch = batch
        self._expected_batch = batch if self._has_open_batch else None
        if self._options.concurrency > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="kserve")
        self._are_stale = True

    def run(self, batches: int, phases: Phases) -> None:
        """Send ``batches`` requests, ``concurrency`` at a time, and read their answers.

        Phases: ``pack``, ``wait`` (from the first byte of the request to the last of the answer), ``unpack``; with
        several requests in flight their mean. The part of ``wait`` that the server's statistics contain becomes
        ``queue``, ``copy_in``, ``execute`` and ``copy_out``.

        Raises:
            UnsupportedBatchError: the server reports that this batch is too large.
            NetworkError: no answer, an error, or outputs with another name, type or shape.
        """
        # Without phases there is no request for statistics: the window contains inferences only.
        times = self._times is not None and not isinstance(phases, MarksOnly)
        if times and self._are_stale:
            self._times = self._server_times()
        self._are_stale = not times
        lanes = min(self._options.concurrency, batches)
        if lanes == 1:
            spans, _ = self._lane(0, range(batches), phases, threading.Event())
        else:
            spans = self._side_by_side(lanes, batches, phases)
        pack_ns, wait_ns, unpack_ns = (span // lanes for span in spans)
        for name, total_ns in (self._server_phases(batches, lanes, wait_ns) if times else {}).items():
            _add(phases, name, batches, total_ns)
            wait_ns -= total_ns
        for name, total_ns in (("pack", pack_ns), ("wait", wait_ns), ("unpack", unpack_ns)):
            _add(phases, name, batches, total_ns)

    def check(self, batch: int | None = None) -> bool:
        """Send a batch, a small one by default, and check its outputs; it stays prepared.

        The outputs of a built-in network are compared with its numpy reference. Those of other networks must be finite,
        not all zero, and depend on the inputs, because a buffer that is never written contains numbers too.

        Raises:
            WrongOutputsError: the outputs are wrong; the text contains the difference.
        """
        batch = batch or self._small_batch(CHECK_BATCH)
        self.prepare(batch)
        outputs = self._exchange()
        shown = self._client.shown
        has_reference = self._source is not None and self._source.reference is not None
        self._checked = check_finite(shown, outputs, strict=has_reference)
        if self._source is None and not self._options.any_outputs:
            self._check_they_depend(outputs)
            self.prepare(batch)
        if self._source is not None and self._source.reference is not None:
            expected = self._source.reference(self._arrays)
            precision = self._precision if self._precision in TOLERANCES else WIDEST
            try:
                check_close(shown, self._options.reference, next(iter(outputs.values())), expected, precision)
            except WrongOutputsError as error:
                raise WrongOutputsError(f"{error}; if it is another model, set reference=none") from error
        return True

    def close(self) -> None:
        """Close the connections; the model stays in the server."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        self._client.close()

    # What the server is

    @property
    def _max_batch(self) -> int:
        """0: unknown."""
        value = self._config.get("max_batch_size")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    @property
    def _has_open_batch(self) -> bool:
        """The first axis is the batch, of any size; so it is in the outputs."""
        return any(0 in self._batches.axes.get(item.name, ()) and item.shape[0] < 0 for item in self._inputs)

    @property
    def _may_not_take_binary(self) -> bool:
        """Over HTTP, binary tensors are an extension; over gRPC all servers accept raw tensors."""
        over_http = self._options.where.scheme in WEB
        return over_http and self._options.binary and BINARY_EXTENSION not in (self._server.get("extensions") or [])

    def _small_batch(self, preferred: int) -> int:
        """Return a batch size that the model accepts, ``preferred`` if possible."""
        return self._batches.fixed_size or min(preferred, self._max_batch or preferred)

    def _read_server(self) -> None:
        reply = self._client.ask("server")
        if reply.outcome is Outcome.DENIED:
            raise ConfigError(self._explained(reply))
        data, options = reply.data, self._options
        if reply.outcome is not Outcome.DONE or not isinstance(data, dict) or "name" not in data:
            raise ConfigError(
                f"{reply.where} is not a KServe v2 server ({reply.text}): "
                "give its base URL (option url), such as http://localhost:8000 or grpc://localhost:8001"
            )
        self._server = data
        extensions = data.get("extensions") or []
        if self._may_not_take_binary and extensions:
            raise ConfigError(
                f"{options.where.url}: {data['name']} does not support binary tensors (its extensions: "
                f"{', '.join(map(str, extensions))}); binary=false sends them as JSON, which costs much more"
            )

    def _read_model(self) -> None:
        options, shown = self._options, self._client.shown
        reply = self._client.ask("model")
        if reply.outcome in (Outcome.DENIED, Outcome.FAILED, Outcome.BUSY):
            raise ConfigError(self._explained(reply))
        if reply.outcome is not Outcome.DONE or not isinstance(reply.data, dict):
            raise ConfigError(f"{shown}: {reply.text}{self._models()}")
        self._metadata = reply.data
        ready = self._client.ask("ready")
        if ready.outcome not in (Outcome.DONE, Outcome.UNKNOWN):
            raise ConfigError(f"{shown} is not ready ({ready.text}): load it in the server first")
        config = self._client.ask("config")
        self._config = config.data if config.outcome is Outcome.DONE and isinstance(config.data, dict) else {}
        self._times = self._server_times() if options.server_stats else None
        self._inputs = described(self._metadata, "inputs", shown)
        self._outputs = described(self._metadata, "outputs", shown)
        if not self._inputs:
            raise ConfigError(f"{shown}: the server does not report the model's inputs")
        for item in self._inputs:
            if item.datatype not in DTYPES:
                raise ConfigError(f"{shown}: input {item.name!r} has the unsupported type {item.datatype}")
            if item.datatype in ONLY_BINARY and not options.binary:
                raise ConfigError(f"{shown}: input {item.name!r} is {item.datatype}, which JSON cannot represent")

    def _models(self) -> str:
        """Return a hint with the models of the server, if it lists them."""
        reply = self._client.ask("index")
        models = reply.data.get("models") if reply.outcome is Outcome.DONE and isinstance(reply.data, dict) else None
        listed = models if isinstance(models, list) else []
        names = {str(item["name"]) for item in listed if isinstance(item, dict) and "name" in item}
        if not names:
            return "; the network's name must be that of a model in the server"
        if self._model in names:
            return f"; the server has {self._model}, but it is not ready in that version"
        return f"; {unknown('model', self._model, names)}"

    def _reference(self) -> ModelSource | None:
        """Return the built-in network that computes the expected outputs; None if it does not fit the model."""
        options = self._options
        named = options.reference != self._model
        try:
            # The reference is the float network, for every precision of the server.
            source = networks.build(options.reference, NATIVE, options.reference_options)
        except ImportError as error:
            if named or options.reference_options:
                raise ConfigError(
                    f"kserve: option reference: {options.reference} needs {error.name}: "
                    "pip install 'joulewatch[onnxruntime]'"
                ) from error
            self._reference_text = f"none: {options.reference} needs {error.name}"
            return None
        made = {} if source.make_inputs is None else source.make_inputs(1)
        expected = {item.name: (DTYPES[item.datatype], len(item.shape)) for item in self._inputs}
        if {name: (str(values.dtype), values.ndim) for name, values in made.items()} != expected:
            taken = " ".join(item.text() for item in self._inputs)
            text = f"{self._client.shown} has the inputs {taken}, unlike {options.reference}"
            if named:
                raise ConfigError(f"{text} (option reference)")
            self._reference_text = f"none: {text}"
            return None
        self._reference_text = " ".join(
            (options.reference, *(f"{k}={v}" for k, v in options.reference_options.items()))
        )
        return source

    def _explained(self, reply: Reply) -> str:
        """Return the text of a reply that is not a success, and the fix."""
        hint = _HINTS.get(reply.outcome, "")
        if reply.outcome is Outcome.REFUSED and self._inputs:
            hint = f"; the inputs of the model are {' '.join(item.text() for item in self._inputs)}"
        return f"{reply.where}: {reply.text}{hint}"

    # Requests

    def _exchange(self) -> dict[str, NDArray[np.generic]]:
        """Return the outputs of one request, outside of measurements."""
        try:
            return self._unpack(self._client.send(0, self._client.pack()))
        except RefusedError as refused:
            raise self._refused(refused) from refused

    def _check_they_depend(self, outputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Check that float outputs depend on the inputs; integers may be the same label each time.

        Raises:
            NetworkError: all outputs are zero, or the same for other inputs.
        """
        floats = {name: values for name, values in outputs.items() if values.dtype.kind == "f" and values.size}
        hint = "; set any_outputs=true if that is correct"
        if floats and not any(np.any(values) for values in floats.values()):
            raise WrongOutputsError(
                f"{self._client.shown}: all outputs are zero: that does not prove a computation{hint}"
            )
        others = {name: _other(values) for name, values in self._arrays.items()}
        if not floats or all(np.array_equal(others[name], values) for name, values in self._arrays.items()):
            return
        self._client.prepare([(item, others[item.name]) for item in self._inputs], self._outputs)
        now = self._exchange()
        if all(np.array_equal(now[name], values, equal_nan=True) for name, values in floats.items()):
            raise WrongOutputsError(f"{self._client.shown}: outputs do not depend on the inputs{hint}")

    def _refused(self, refused: RefusedError) -> NetworkError:
        text = self._explained(refused.reply)
        return UnsupportedBatchError(text) if refused.reply.outcome is Outcome.TOO_LARGE else NetworkError(text)

    def _unpack(self, answer: Any) -> dict[str, NDArray[np.generic]]:
        """Return the outputs after a check against the model's metadata.

        Raises:
            RefusedError: the answer is an error.
            NetworkError: an output is missing or has another type or shape.
        """
        shown = self._client.shown
        try:
            outputs = self._client.unpack(answer)
        except ValueError as error:
            raise NetworkError(f"{shown}: the answer cannot be read: {error}") from error
        for item in self._outputs:
            given = outputs.get(item.name)
            if given is None:
                raise NetworkError(f"{shown}: the answer has no output {item.name!r}, only {', '.join(outputs)}")
            if not item.fits(given.datatype, given.shape, self._expected_batch):
                sizes = ",".join(map(str, given.shape))
                raise NetworkError(
                    f"{shown}: output {item.name} is {given.datatype}[{sizes}] at batch {self._batch}, "
                    f"but the model's output is {item.text()}"
                )
        self._form = next((output.form for output in outputs.values() if output.form != BINARY), BINARY)
        return {name: output.values for name, output in outputs.items()}

    def _lane(
        self, lane: int, numbers: Iterator[int] | range, phases: Phases | None, stop: threading.Event
    ) -> tuple[tuple[int, int, int], array[int]]:
        """Send requests one after another on one connection; mark each batch if ``phases`` is given.

        Returns:
            Nanoseconds of packing, waiting and unpacking, and the latency of each request.
        """
        clock, client = time.monotonic_ns, self._client
        pack_ns = wait_ns = unpack_ns = 0
        latencies = array("q")
        try:
            for _ in numbers:
                if stop.is_set():
                    break
                start_ns = clock()
                request = client.pack()
                packed_ns = clock()
                answer = client.send(lane, request)
                answered_ns = clock()
                self._unpack(answer)
                end_ns = clock()
                pack_ns += packed_ns - start_ns
                wait_ns += answered_ns - packed_ns
                unpack_ns += end_ns - answered_ns
                if phases is not None:
                    phases.batch()
                else:
                    latencies.append(end_ns - start_ns)
        except RefusedError as refused:
            raise self._refused(refused) from refused
        return (pack_ns, wait_ns, unpack_ns), latencies

    def _side_by_side(self, lanes: int, batches: int, phases: Phases) -> tuple[int, int, int]:
        """Send requests on several connections in parallel."""
        assert self._pool is not None
        numbers = _Shared(batches)
        stop = threading.Event()

        def run_lane(lane: int) -> tuple[tuple[int, int, int], array[int]]:
            try:
                return self._lane(lane, iter(numbers), None, stop)
            except BaseException:
                stop.set()
                raise

        futures = [self._pool.submit(run_lane, lane) for lane in range(lanes)]
        results = [future.result() for future in futures]
        # The ends of overlapping requests would give the throughput, not the latency.
        for _, latencies in results:
            phases.latencies_ns.extend(latencies)
        spans = [spans for spans, _ in results]
        return sum(item[0] for item in spans), sum(item[1] for item in spans), sum(item[2] for item in spans)

    # Statistics of the server

    def _server_times(self) -> ServerTimes | None:
        reply = self._client.ask("statistics")
        return server_times(reply.data, self._model) if reply.outcome is Outcome.DONE else None

    def _server_phases(self, batches: int, lanes: int, wait_ns: int) -> Mapping[str, int]:
        """Return the phases inside the server during the last ``batches`` requests, at most ``wait_ns`` in total."""
        if self._times is None:
            return {}
        before, self._times = self._times, self._server_times()
        if self._times is None:
            return {}
        spent = self._times.since(before)
        if not spent.requests:
            return {}
        if spent.requests > batches + lanes and not self._shared:
            self._shared = True
            logger.warning(
                "%s: the server answered %s, but joulewatch sent %d: other clients use it, and the measured "
                "energy includes theirs",
                self._client.shown,
                count_of(spent.requests, "request"),
                batches,
            )
        # Use the mean of a request, because the server may count an answer after it was sent.
        scale = batches / spent.requests / lanes
        scale = min(scale, wait_ns / max(1, sum(spent.spans_ns.values())))
        return {name: int(total * scale) for name, total in spent.spans_ns.items()}

    # Problems of the server

    def _probe(self) -> None:
        """Send a few small requests: check that they work and are computed, and that only the network takes time.

        Raises:
            ConfigError: the server answers equal requests from its cache.
        """
        self.prepare(self._small_batch(1))
        before = self._server_times()
        try:
            self._exchange()
        except NetworkError as error:
            if not self._may_not_take_binary:
                raise
            raise NetworkError(
                f"{error}; the server does not list binary tensors as supported: try binary=false, or its gRPC port"
            ) from error
        if before is not None:
            self._check_cache(before)
        if self._options.binary and self._form != BINARY:
            form = {AS_JSON: "JSON"}.get(self._form, self._form)
            self._warn(
                f"the server answers in {form} although binary outputs were requested: that costs more than the network"
            )

        def timed() -> float:
            start_s = time.monotonic()
            self._exchange()
            return time.monotonic() - start_s

        small = sum(values.nbytes for values in self._arrays.values()) <= TINY_BYTES
        for text in self._client.faults(timed, small):
            self._warn(text)

    def _check_cache(self, before: ServerTimes) -> None:
        for _ in range(CACHE_PROBES):
            self._exchange()
        after = self._server_times()
        if after is not None and after.cache_hits > before.cache_hits:
            raise ConfigError(
                f"{self._client.shown}: the server answers equal requests from its response cache, without the "
                "network: disable it for this model (response_cache in its configuration)"
            )

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        logger.warning("%s: %s", self._client.shown, text)


class _Shared:
    """An iterator of numbers for several threads; each number is used once."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
            yield self._left


def _add(phases: Phases, name: str, count: int, total_ns: int) -> None:
    phases.add(name, 0, total_ns)
    if name in phases.spans:
        phases.spans[name][0] += count - 1


def _other(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return other inputs of the same kind: in reverse order and, if they are floats, also of other sizes.

    The order alone changes nothing in a sum or a mean, the size alone changes nothing after a normalisation.
    """
    flipped = np.asarray(np.flip(values), order="C")
    if values.dtype.kind != "f":
        return flipped
    return np.asarray(flipped * np.linspace(0.5, 1.0, values.size).reshape(values.shape), dtype=values.dtype)


def _device(config: Mapping[str, Any]) -> str:
    """Return the device of Triton's configuration, such as ``gpu`` or ``cpu``; empty if it is not configured."""
    groups = config.get("instance_group")
    kinds = [str(item.get("kind", "")) for item in groups if isinstance(item, dict)] if isinstance(groups, list) else []
    return " ".join(sorted({kind.removeprefix("KIND_").lower() for kind in kinds if kind}))


def open_network(network: str, precision: str, options: Mapping[str, str]) -> KServeNetwork:
    """Return the network, without a request to the server; the entry point of the runtime.

    Raises:
        ConfigError: a bad option, a file that cannot be read; gRPC is not installed.
    """
    parsed = Options.of(network, options)
    client: Client
    if parsed.where.scheme in GRPC:
        from joulewatch_harness.runtimes.kserve.over_grpc import GrpcClient

        client = GrpcClient(parsed.where, network, parsed.version)
    else:
        client = HttpClient(parsed.where, network, parsed.version, binary=parsed.binary)
    return KServeNetwork(network, precision, parsed, client)
