"""A model behind a server that speaks KServe v2 (the Open Inference Protocol) over HTTP: Triton, OpenVINO Model
Server, KServe, MLServer, TorchServe.

The network's name is what the server calls the model; one batch is one request. Tensors travel in binary unless
``binary=false``: as JSON they cost more than the network. What the server says of itself and of the model is read
back; where it keeps statistics (Triton does), its queue and compute times are told as phases.
Energy is that of the machine the server runs on: name its exporter in the plan when it is another one.

Source: KServe, Open Inference Protocol v2 and binary tensor data extension; Triton, statistics, model configuration
and model repository extensions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import refuse_unknown, unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.plan import NATIVE
from joulewatch_harness.runtimes import ANY_PRECISION, flag, http_client
from joulewatch_harness.runtimes.http_client import Answer, Buffer, Connection, Endpoint
from joulewatch_harness.runtimes.inputs import Batches, Input, parse_count, parse_dims, read_npz
from joulewatch_harness.runtimes.outputs import TOLERANCES, check_close, check_finite

if TYPE_CHECKING:
    from joulewatch_harness.networks import ModelSource

logger = logging.getLogger(__name__)

LARGEST_CONCURRENCY: Final = 1024
JSON_LENGTH: Final = "Inference-Header-Content-Length"
BINARY_EXTENSION: Final = "binary_tensor_data"
WIDEST: Final = "int8"
"""Whose tolerance ``check`` takes where nobody says what the server computes in."""

FLOOR_S: Final = 0.038
"""Linux acknowledges 40 ms late at the soonest (44 at most, with its timer's period)."""
FLOOR_GAIN_S: Final = 0.03
"""What a request must gain by acknowledging at once, for the floor to be proven."""
FLOOR_PROBES: Final = 24
FLOOR_PROOFS: Final = 5
FLOOR_LIMIT_S: Final = 1.5
TINY_BYTES: Final = 1 << 17
"""A batch up to this size needs no 40 ms on a network; above it no floor is looked for."""

_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "float32",
}
"""Datatype of the protocol -> of the arrays here; numpy has no bfloat16, whose values all fit into a float32."""
_ONLY_BINARY: Final = frozenset({"FP16", "BF16"})
"""JSON has no form for them."""


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set with ``--option KEY=VALUE``, or under ``options`` in a plan."""

    where: Endpoint
    """Of ``url``, ``timeout_s``, ``ca_file``, ``insecure`` and ``headers_file``."""
    version: str = ""
    """Of the model; empty: the server's choice."""
    binary: bool = True
    concurrency: int = 1
    """Requests in flight."""
    inputs: Path | None = None
    """An .npz with one array per input."""
    dims: Mapping[str, int] | None = None
    """Sizes of dimensions that the server leaves open, other than the batch: ``ids.1=128``."""
    seed: int = 0
    server_stats: bool = True
    """Ask for the server's statistics after every call of ``run`` (one small request), where it keeps any."""
    reference: str = ""
    """A built-in network whose values the outputs must have; ``none``: compare with nothing."""
    reference_options: Mapping[str, str] = field(default_factory=dict)
    any_precision: bool = False

    @classmethod
    def parse(cls, network: str, words: Mapping[str, str]) -> Options:
        """Turn strings into options.

        Args:
            network: The model's name; of a built-in network it means that this is its reference.
            words: As typed.

        Raises:
            ConfigError: an unknown key or a bad value; the text names it.
        """
        reference = words.get("reference", network if network in networks.BUILTIN else "none")
        own: tuple[str, ...] = () if reference == "none" else networks.builtin(reference).options
        known = {*http_client.OPTIONS, *cls.__dataclass_fields__, *own} - {"where", "reference_options"}
        refuse_unknown("kserve", "option", words, known)
        concurrency = parse_count("kserve", words, "concurrency", least=1) or 1
        if concurrency > LARGEST_CONCURRENCY:
            raise ConfigError(f"kserve: option concurrency is {concurrency}: at most {LARGEST_CONCURRENCY}")
        return cls(
            where=http_client.endpoint("kserve", words),
            version=words.get("version", ""),
            binary=flag(words, "binary", True),
            concurrency=concurrency,
            inputs=Path(words["inputs"]) if "inputs" in words else None,
            dims=parse_dims("kserve", words.get("dims")),
            seed=parse_count("kserve", words, "seed", least=0) or 0,
            server_stats=flag(words, "server_stats", True),
            reference="" if reference == "none" else reference,
            reference_options={key: words[key] for key in own if key in words},
            any_precision=flag(words, ANY_PRECISION),
        )


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as the server describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: any size."""

    def text(self) -> str:
        sizes = ",".join("?" if size < 0 else str(size) for size in self.shape)
        return f"{self.name}:{self.datatype}[{sizes}]"

    def input(self) -> Input:
        """The same in numpy's words; of a datatype that numpy can hold."""
        return Input(self.name, _DTYPES[self.datatype], tuple(None if size < 0 else size for size in self.shape))

    def fits(self, datatype: str, shape: Sequence[int], batch: int | None) -> bool:
        """Whether a tensor of this type and shape may stand here; ``batch``: what an open first axis must be."""
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        wanted = list(self.shape)
        if wanted and wanted[0] < 0 and batch is not None:
            wanted[0] = batch
        return all(size in (given, -1) for size, given in zip(wanted, shape, strict=True))


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Totals of the server's own statistics since it started."""

    requests: int
    spans_ns: Mapping[str, int]
    """Phase -> nanoseconds: ``queue``, ``copy_in``, ``execute``, ``copy_out``."""

    def since(self, before: ServerTimes) -> ServerTimes:
        """What has come since; nothing where the server began to count again."""
        spans = {name: total - before.spans_ns.get(name, 0) for name, total in self.spans_ns.items()}
        requests = self.requests - before.requests
        if requests < 0 or min(spans.values(), default=0) < 0:
            return ServerTimes(0, {})
        return ServerTimes(requests, spans)


def open_network(network: str, precision: str, options: Mapping[str, str]) -> KServeNetwork:
    """The entry point named in ``runtimes.RUNTIMES``; nothing is asked of the server yet.

    Raises:
        ConfigError: a bad option, a file that cannot be read.
    """
    return KServeNetwork(network, precision, Options.parse(network, options))


class KServeNetwork:
    """A model of a KServe v2 server (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, model: str, precision: str, options: Options) -> None:
        self._model = model
        self._precision = precision
        self._options = options
        version = f"/versions/{quote(options.version, safe='')}" if options.version else ""
        self._path = f"/v2/models/{quote(model, safe='')}{version}"
        self._connections: list[Connection] = []
        self._pool: ThreadPoolExecutor | None = None
        self._server: Mapping[str, Any] = {}
        self._metadata: Mapping[str, Any] = {}
        self._config: Mapping[str, Any] = {}
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self._source: ModelSource | None = None
        self._batches = Batches("", (), networks.ModelSource(Path()), {})
        self._reference_text = ""
        self._warnings: list[str] = []
        self._arrays: list[tuple[Tensor, NDArray[np.generic]]] = []
        self._batch = 0
        self._expected_batch: int | None = None
        self._tensors = ""
        self._times: ServerTimes | None = None
        self._are_stale = True
        """There were requests since the server's statistics were read."""
        self._shared = False

    def describe(self) -> Mapping[str, Any]:
        """What the server says of itself and the model; before ``load`` only what was asked for."""
        told: dict[str, Any] = {
            "runtime": "kserve",
            "url": self._options.where.url,
            "concurrency": self._options.concurrency,
            "tensors": self._tensors or ("binary" if self._options.binary else "json"),
        }
        if self._metadata:
            told |= {
                "runtime_version": " ".join(
                    str(self._server[key]) for key in ("name", "version") if self._server.get(key)
                ),
                "provider": self._metadata.get("platform") or self._config.get("backend") or "",
                "device": _device(self._config),
                "model_versions": " ".join(map(str, self._metadata.get("versions") or [])) or "not told",
                "inputs": " ".join(item.text() for item in self._inputs),
                "outputs": " ".join(item.text() for item in self._outputs),
                "precision_told_by": "the plan: the protocol does not tell it",
                "server_statistics": str(self._times is not None).lower(),
            }
            if self._max_batch:
                told["max_batch"] = self._max_batch
            if self._reference_text:
                told["reference"] = self._reference_text
            if self._warnings:
                told["warning"] = "; ".join(self._warnings)
        return told

    def load(self) -> None:
        """Ask the server what it is, find the model, and send it a few batches to see how it answers.

        Raises:
            ConfigError: nothing answers, it is no KServe server, has no such model, or refuses the key.
            NetworkError: the model cannot be run.
        """
        self.close()
        self._warnings = []
        self._connections = [Connection(self._options.where) for _ in range(self._options.concurrency)]
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def prepare(self, batch: int) -> None:
        """Make the inputs of one batch.

        Raises:
            UnsupportedBatchError: more than the server's greatest batch, or another size than the model's fixed one.
            ConfigError: an open dimension has no size; the text says how to give it one.
        """
        self._check_batch(batch)
        arrays = self._batches.arrays(batch)
        self._arrays = [(item, np.ascontiguousarray(arrays[item.name])) for item in self._inputs]
        self._batch = batch
        self._expected_batch = batch if self._has_open_batch else None
        if self._options.concurrency > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="kserve")
        self._are_stale = True

    def run(self, batches: int, phases: Phases) -> None:
        """Send ``batches`` requests, ``concurrency`` at a time, and read their answers.

        Phases: ``pack``, ``wait`` (from the request's first byte to the answer's last), ``unpack``; with several
        requests in flight their mean. Of ``wait``, what the server's statistics account for is told apart as
        ``queue``, ``copy_in``, ``execute`` and ``copy_out``.

        Raises:
            NetworkError: no answer, another status than 200, or outputs of another name, type or shape.
        """
        # Without phases nothing is asked of the server: what a window costs is the requests alone.
        times = self._times is not None and not isinstance(phases, MarksOnly)
        if times and self._are_stale:
            self._times = self._server_times()
        self._are_stale = not times
        lanes = min(self._options.concurrency, batches)
        if lanes == 1:
            spans, _ = self._lane(self._connections[0], range(batches), phases, threading.Event())
        else:
            spans = self._side_by_side(lanes, batches, phases)
        pack_ns, wait_ns, unpack_ns = (span // lanes for span in spans)
        for name, total_ns in (self._told_by_server(batches, lanes, wait_ns) if times else {}).items():
            _add(phases, name, batches, total_ns)
            wait_ns -= total_ns
        for name, total_ns in (("pack", pack_ns), ("wait", wait_ns), ("unpack", unpack_ns)):
            _add(phases, name, batches, total_ns)

    def check(self) -> bool:
        """Run a small batch and look at its outputs; leaves that batch prepared.

        Of a built-in network they are compared with its numpy reference, others must give finite numbers.

        Raises:
            NetworkError: the outputs are wrong; the text says how.
        """
        self.prepare(self._first_batch(2))
        outputs = self._exchange(self._connections[0])
        url = self._shown
        check_finite(url, outputs)
        if self._source is not None and self._source.reference is not None:
            wanted = self._source.reference({item.name: values for item, values in self._arrays})
            precision = self._precision if self._precision in TOLERANCES else WIDEST
            try:
                check_close(url, self._options.reference, next(iter(outputs.values())), wanted, precision)
            except NetworkError as error:
                raise NetworkError(f"{error}; if another model is meant, set reference=none") from error
        return True

    def close(self) -> None:
        """Close the connections; the model stays in the server."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        for connection in self._connections:
            connection.close()

    def _load(self) -> None:
        options = self._options
        try:
            self._read_server()
            self._read_model()
        except ConfigError:
            raise
        except NetworkError as error:
            raise ConfigError(str(error)) from error
        self._source = self._reference() if options.reference else None
        inputs = tuple(item.input() for item in self._inputs)
        self._batches = Batches(
            self._shown,
            inputs,
            self._source or networks.ModelSource(Path()),
            options.dims or {},
            options.seed,
            None if options.inputs is None else read_npz(options.inputs, inputs),
        )
        self._probe()

    # What the server is

    @property
    def _shown(self) -> str:
        return f"{self._options.where.url}{self._path}"

    @property
    def _max_batch(self) -> int:
        """0: not told."""
        value = self._config.get("max_batch_size")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def _get(self, path: str) -> Answer:
        return self._connections[0].request("GET", path)

    def _read_server(self) -> None:
        url = self._options.where.url
        answer = self._get("/v2")
        if answer.status in (401, 403):
            raise ConfigError(self._said(answer, f"{url}/v2"))
        told = answer.json()
        if answer.status != 200 or not isinstance(told, dict) or "name" not in told:
            raise ConfigError(
                f"{url}/v2 does not answer like a KServe v2 server ({self._masked(answer)}): "
                "give its base URL (option url), such as http://localhost:8000"
            )
        self._server = told
        extensions = told.get("extensions") or []
        if self._options.binary and extensions and BINARY_EXTENSION not in extensions:
            raise ConfigError(
                f"{url}: {told['name']} takes no binary tensors (its extensions: {', '.join(map(str, extensions))}); "
                "binary=false sends them as JSON, which costs far more"
            )

    def _read_model(self) -> None:
        options = self._options
        answer = self._get(self._path)
        told = answer.json()
        if answer.status in (401, 403) or answer.status >= 500:
            raise ConfigError(self._said(answer))
        if answer.status != 200 or not isinstance(told, dict):
            raise ConfigError(f"{self._said(answer)}{self._models()}")
        self._metadata = told
        ready = self._get(f"{self._path}/ready")
        if ready.status != 200 and ready.status != 404:
            raise ConfigError(f"{self._shown} is not ready ({self._masked(ready)}): load it in the server first")
        config = self._get(f"{self._path}/config")
        found = config.json() if config.status == 200 else None
        self._config = found if isinstance(found, dict) else {}
        self._times = self._server_times() if options.server_stats else None
        self._inputs = _tensors(told, "inputs", self._shown)
        self._outputs = _tensors(told, "outputs", self._shown)
        if not self._inputs:
            raise ConfigError(f"{self._shown}: the server does not tell the model's inputs")
        for item in self._inputs:
            if item.datatype not in _DTYPES:
                raise ConfigError(f"{self._shown}: input {item.name!r} is {item.datatype}, which cannot be made here")
            if item.datatype in _ONLY_BINARY and not options.binary:
                raise ConfigError(f"{self._shown}: input {item.name!r} is {item.datatype}, which JSON cannot hold")

    def _models(self) -> str:
        """What the server has, where it tells (Triton's model repository extension)."""
        answer = self._connections[0].request(
            "POST", "/v2/repository/index", [b"{}"], {"Content-Type": "application/json"}
        )
        told = answer.json() if answer.status == 200 else None
        names = (
            {str(item["name"]) for item in told if isinstance(item, dict) and "name" in item}
            if isinstance(told, list)
            else set()
        )
        if not names:
            return "; the network's name is what the server calls its model"
        if self._model in names:
            return f"; {self._model} is there, but not ready in that version"
        return f"; {unknown('model', self._model, names)}"

    def _reference(self) -> ModelSource | None:
        """The built-in network that the outputs are compared with."""
        options = self._options
        named = options.reference != self._model
        try:
            # Its values are those of the float network, whatever the server computes in.
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
        wanted = {item.name: (_DTYPES[item.datatype], len(item.shape)) for item in self._inputs}
        if {name: (str(values.dtype), values.ndim) for name, values in made.items()} != wanted:
            text = f"{self._shown} takes {' '.join(item.text() for item in self._inputs)}, unlike {options.reference}"
            if named:
                raise ConfigError(f"{text} (option reference)")
            self._reference_text = f"none: {text}"
            return None
        self._reference_text = " ".join(
            (options.reference, *(f"{k}={v}" for k, v in options.reference_options.items()))
        )
        return source

    def _said(self, answer: Answer, url: str = "") -> str:
        """What an answer that is no 200 means, and what to do."""
        hints = {
            400: f"; the model takes {' '.join(item.text() for item in self._inputs)}" if self._inputs else "",
            401: ": check the option headers_file",
            403: ": check the option headers_file",
            413: ": the batch is larger than the server takes",
            429: ": the server is busy with others, or limits requests",
            503: ": the server is busy or not ready",
        }
        hint = hints.get(answer.status, ": the server's log says more" if answer.status >= 500 else "")
        return f"{url or self._shown}: {self._masked(answer)}{hint}"

    def _masked(self, answer: Answer) -> str:
        return self._options.where.masked(answer.told())

    # Inputs

    def _first_batch(self, wanted: int) -> int:
        """A batch size that the model takes, near ``wanted``."""
        if self._has_open_batch:
            return min(wanted, self._max_batch or wanted)
        return self._batches.size_for_check()

    @property
    def _has_open_batch(self) -> bool:
        return any(item.shape and item.shape[0] < 0 for item in self._inputs)

    def _check_batch(self, batch: int) -> None:
        if self._max_batch and batch > self._max_batch:
            raise UnsupportedBatchError(
                f"{self._shown} takes at most {self._max_batch} at once (max_batch_size), not {batch}"
            )
        self._batches.check_size(batch)

    # Requests

    def _exchange(self, connection: Connection) -> dict[str, NDArray[np.generic]]:
        """One request, outside of any measurement."""
        parts, headers = self._pack()
        return self._unpack(connection.request("POST", f"{self._path}/infer", parts, headers))

    def _pack(self) -> tuple[list[Buffer], Mapping[str, str]]:
        return pack(self._arrays, self._outputs, binary=self._options.binary)

    def _unpack(self, answer: Answer) -> dict[str, NDArray[np.generic]]:
        """The outputs, checked against what the model is said to give.

        Raises:
            NetworkError: another status than 200, or something else than these outputs.
        """
        if answer.status != 200:
            text = self._said(answer)
            raise UnsupportedBatchError(text) if answer.status == 413 else NetworkError(text)
        try:
            found = unpack(answer)
        except ValueError as error:
            raise NetworkError(f"{self._shown}: the answer cannot be read: {error}") from error
        for item in self._outputs:
            given = found.get(item.name)
            if given is None:
                raise NetworkError(f"{self._shown}: the answer has no output {item.name!r}, only {', '.join(found)}")
            datatype, _, shape, _ = given
            if not item.fits(datatype, shape, self._expected_batch):
                sizes = ",".join(map(str, shape))
                raise NetworkError(
                    f"{self._shown}: output {item.name} is {datatype}[{sizes}] at batch {self._batch}, "
                    f"but the model gives {item.text()}"
                )
        self._tensors = "binary" if all(binary for *_, binary in found.values()) else "json"
        return {name: values for name, (_, values, _, _) in found.items()}

    def _lane(
        self, connection: Connection, numbers: Iterator[int] | range, phases: Phases | None, stop: threading.Event
    ) -> tuple[tuple[int, int, int], array[int]]:
        """Requests one after another on one connection; marks each batch where ``phases`` is given.

        Returns:
            Nanoseconds spent packing, waiting and unpacking, and each request's latency.
        """
        clock, path = time.monotonic_ns, f"{self._path}/infer"
        pack_ns = wait_ns = unpack_ns = 0
        latencies = array("q")
        for _ in numbers:
            if stop.is_set():
                break
            start_ns = clock()
            parts, headers = self._pack()
            packed_ns = clock()
            answer = connection.request("POST", path, parts, headers)
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
        return (pack_ns, wait_ns, unpack_ns), latencies

    def _side_by_side(self, lanes: int, batches: int, phases: Phases) -> tuple[int, int, int]:
        """The same on several connections at once."""
        assert self._pool is not None
        numbers = _Shared(batches)
        stop = threading.Event()

        def lane(connection: Connection) -> tuple[tuple[int, int, int], array[int]]:
            try:
                return self._lane(connection, iter(numbers), None, stop)
            except BaseException:
                stop.set()
                raise

        futures = [self._pool.submit(lane, connection) for connection in self._connections[:lanes]]
        results = [future.result() for future in futures]
        # The ends of overlapping requests tell the throughput only.
        for _, latencies in results:
            phases.latencies_ns.extend(latencies)
        spans = [spans for spans, _ in results]
        return sum(item[0] for item in spans), sum(item[1] for item in spans), sum(item[2] for item in spans)

    # Statistics of the server

    def _server_times(self) -> ServerTimes | None:
        answer = self._get(f"{self._path}/stats")
        return server_times(answer.json(), self._model) if answer.status == 200 else None

    def _told_by_server(self, batches: int, lanes: int, wait_ns: int) -> Mapping[str, int]:
        """Phases inside the server during the last ``batches`` requests: at most ``wait_ns`` in all."""
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
                "%s: the server answered %d requests while %d were sent from here: others use it, and their energy "
                "counts too",
                self._shown,
                spent.requests,
                batches,
            )
        # The mean of a request: an answer may be counted a moment after it was sent.
        scale = batches / spent.requests / lanes
        scale = min(scale, wait_ns / max(1, sum(spent.spans_ns.values())))
        return {name: int(total * scale) for name, total in spent.spans_ns.items()}

    # How the server answers

    def _probe(self) -> None:
        """A few small requests: does it work, does the connection stay open, is there a floor under the latency?"""
        self.prepare(self._first_batch(1))
        connection = self._connections[0]
        self._exchange(connection)
        opened = connection.opened
        if self._options.binary and self._tensors == "json":
            self._warn(
                "the server answers in JSON although binary outputs were asked for: that costs more than the network"
            )
        size = sum(values.nbytes for _, values in self._arrays)
        spans_s: list[float] = []
        begin_s = time.monotonic()
        while len(spans_s) < FLOOR_PROBES and time.monotonic() - begin_s < FLOOR_LIMIT_S:
            spans_s.append(self._timed(connection))
            if len(spans_s) >= FLOOR_PROOFS and (min(spans_s[-FLOOR_PROOFS:]) < FLOOR_S or size > TINY_BYTES):
                break
        if connection.opened - opened >= len(spans_s):
            self._warn("the server closes the connection after every answer: each request pays for a new one")
        if len(spans_s) >= FLOOR_PROOFS and size <= TINY_BYTES:
            self._look_for_a_floor(connection, spans_s[-FLOOR_PROOFS:])

    def _timed(self, connection: Connection) -> float:
        start_s = time.monotonic()
        self._exchange(connection)
        return time.monotonic() - start_s

    def _look_for_a_floor(self, connection: Connection, spans_s: Sequence[float]) -> None:
        """Nagle's algorithm in the server against delayed acknowledgement here: 40 ms that are nobody's work."""
        if min(spans_s) < FLOOR_S or not http_client.quick_ack_exists():
            return
        before_s = statistics.median(spans_s)
        connection.quick_ack = True
        try:
            after_s = statistics.median([self._timed(connection) for _ in range(FLOOR_PROOFS)])
        finally:
            connection.quick_ack = False
        if before_s - after_s >= FLOOR_GAIN_S:
            self._warn(
                f"every small request takes {before_s * 1e3:.0f} ms, but {after_s * 1e3:.2g} ms when its packets are "
                "acknowledged at once: the server writes its answer in pieces without TCP_NODELAY, and each waits "
                "for a delayed acknowledgement; let it set TCP_NODELAY or write once, or latency and idle energy are "
                "not the network's"
            )

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        logger.warning("%s: %s", self._shown, text)


def pack(
    arrays: Sequence[tuple[Tensor, NDArray[np.generic]]], outputs: Sequence[Tensor], *, binary: bool
) -> tuple[list[Buffer], Mapping[str, str]]:
    """Serialise a request: its body in pieces, and its headers."""
    inputs: list[dict[str, Any]] = []
    raw: list[Buffer] = []
    for item, values in arrays:
        told: dict[str, Any] = {"name": item.name, "shape": list(values.shape), "datatype": item.datatype}
        if binary:
            wire = _wire(values, item.datatype)
            told["parameters"] = {"binary_data_size": wire.nbytes}
            raw.append(wire)
        else:
            told["data"] = values.ravel().tolist()
        inputs.append(told)
    message: dict[str, Any] = {"inputs": inputs}
    if outputs:
        message["outputs"] = [{"name": item.name, "parameters": {"binary_data": binary}} for item in outputs]
    elif binary:
        message["parameters"] = {"binary_data_output": True}
    text = json.dumps(message, separators=(",", ":")).encode()
    if not binary:
        return [text], {"Content-Type": "application/json"}
    return [text, *raw], {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}


def unpack(answer: Answer) -> dict[str, tuple[str, NDArray[np.generic], tuple[int, ...], bool]]:
    """Read an answer.

    Returns:
        Output -> datatype, values, shape, and whether it came in binary; of a datatype unknown here, raw bytes.

    Raises:
        ValueError: it is no answer of the protocol; the text says why.
    """
    length = answer.headers.get(JSON_LENGTH.lower())
    if length is not None and not (length.isdecimal() and int(length) <= len(answer.body)):
        raise ValueError(f"{JSON_LENGTH} is {length!r}, of a body of {len(answer.body)} bytes")
    end = len(answer.body) if length is None else int(length)
    message = json.loads(answer.body[:end])
    listed = message.get("outputs") if isinstance(message, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it has no list of outputs")
    found: dict[str, tuple[str, NDArray[np.generic], tuple[int, ...], bool]] = {}
    for item in listed:
        name, datatype, shape = _named(item)
        dtype = np.dtype(_DTYPES.get(datatype, "uint8")).newbyteorder("<")
        parameters = item.get("parameters") or {}
        size = parameters.get("binary_data_size")
        if size is None:
            data = item.get("data")
            if not isinstance(data, list):
                raise ValueError(f"output {name!r} has no data")
            values = np.asarray(data) if datatype not in _DTYPES else np.asarray(data, dtype=dtype)
            found[name] = (datatype, values.reshape(shape), shape, False)
            continue
        if not isinstance(size, int) or size < 0 or end + size > len(answer.body):
            raise ValueError(f"output {name!r} has {len(answer.body) - end} of {size} bytes")
        piece = memoryview(answer.body)[end : end + size]
        end += size
        if datatype not in _DTYPES:
            found[name] = (datatype, np.frombuffer(piece, dtype=np.uint8), shape, True)
            continue
        wide = np.frombuffer(piece, dtype="<u2") if datatype == "BF16" else np.frombuffer(piece, dtype=dtype)
        if wide.size != math.prod(shape):
            raise ValueError(
                f"output {name!r} has {wide.size} values, its shape {list(shape)} wants {math.prod(shape)}"
            )
        values = (wide.astype(np.uint32) << 16).view(np.float32) if datatype == "BF16" else wide
        found[name] = (datatype, values.reshape(shape), shape, True)
    return found


def server_times(told: Any, model: str) -> ServerTimes | None:
    """The totals of a model in an answer of Triton's statistics extension; None where there are none."""
    listed = told.get("model_stats") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        return None
    requests, spans = 0, dict.fromkeys(("queue", "copy_in", "execute", "copy_out"), 0)
    names = {"queue": "queue", "compute_input": "copy_in", "compute_infer": "execute", "compute_output": "copy_out"}
    found = False
    for item in listed:
        stats = item.get("inference_stats") if isinstance(item, dict) and item.get("name") == model else None
        if not isinstance(stats, dict):
            continue
        try:
            requests += int(stats["success"]["count"])
            for theirs, ours in names.items():
                spans[ours] += int(stats[theirs]["ns"])
        except (KeyError, TypeError, ValueError):
            continue
        found = True
    return ServerTimes(requests, spans) if found else None


class _Shared:
    """Numbers handed out to several threads, each once."""

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


def _named(item: Any) -> tuple[str, str, tuple[int, ...]]:
    try:
        name, datatype, shape = str(item["name"]), str(item["datatype"]), tuple(map(int, item["shape"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError("an output without name, datatype or shape") from None
    return name, datatype, shape


def _tensors(told: Mapping[str, Any], key: str, where: str) -> tuple[Tensor, ...]:
    listed = told.get(key) or []
    found = []
    for item in listed if isinstance(listed, list) else ():
        with contextlib.suppress(ValueError):
            name, datatype, shape = _named(item)
            found.append(Tensor(name, datatype, tuple(max(size, -1) for size in shape)))
    if len(found) != len(listed):
        raise ConfigError(f"{where}: the server's metadata has {key} without name, datatype or shape")
    return tuple(found)


def _device(config: Mapping[str, Any]) -> str:
    """Where Triton runs the model, from its configuration: ``gpu``, ``cpu``; empty where it is not told."""
    groups = config.get("instance_group")
    kinds = [str(item.get("kind", "")) for item in groups if isinstance(item, dict)] if isinstance(groups, list) else []
    return " ".join(sorted({kind.removeprefix("KIND_").lower() for kind in kinds if kind}))


def _wire(values: NDArray[np.generic], datatype: str) -> memoryview:
    """The array's bytes, little-endian; not copied where they are so already."""
    if datatype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        # To the nearest, ties to even.
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    elif sys.byteorder == "big":
        values = values.astype(values.dtype.newbyteorder("<"))
    if not values.nbytes:
        return memoryview(b"")
    contiguous: Any = np.ascontiguousarray(values)
    return memoryview(contiguous).cast("B")
