"""A KServe v2 server on loopback with an ONNX Runtime session: correct outputs, selectable faults.

``Backend`` runs the model and has the faults; ``KServeServer`` serves it by HTTP, ``kserve_grpc_server`` by gRPC.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from support.loopback import LoopbackServer, QuietHandler

HEADER = "Inference-Header-Content-Length"
TYPES = {
    "tensor(float)": ("FP32", np.float32),
    "tensor(float16)": ("FP16", np.float16),
    "tensor(double)": ("FP64", np.float64),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(bool)": ("BOOL", np.bool_),
}
NUMPY = dict(TYPES.values())


@dataclass
class Faults:
    """Faults of the server; they can be changed while it runs."""

    status: int = 0
    """Answer every inference with this HTTP status, or with the gRPC status ``code``."""
    code: str = "INTERNAL"
    status_from_batch: int = 0
    """The smallest batch size that ``status`` applies to."""
    wrong_rows: int = 0
    """Number of rows by which outputs exceed inputs."""
    wrong_datatype: str = ""
    nudge: float = 0.0
    """Added to every output."""
    zeros: bool = False
    """Return zeros in the right shape."""
    stale: bool = False
    """Always return the outputs of the first inference."""
    json_outputs: bool = False
    """Answer in JSON (gRPC: in typed lists), also where binary data was requested."""
    cut: bool = False
    """Send half of the answer, then close the connection."""
    drop_once: bool = False
    """Close the connection without an answer, once."""
    silent_s: float = 0.0
    """Delay before every answer."""
    naive: bool = False
    """Answer in two small writes with Nagle's algorithm on."""
    close_each: bool = False
    """Close the connection after each answer."""


@dataclass
class Settings:
    """Settings of the server."""

    name: str = "model"
    server: str = "testserver"
    extensions: tuple[str, ...] = ("binary_tensor_data", "statistics", "model_configuration")
    max_batch: int = 0
    """Above 0: serve a model configuration like Triton's."""
    statistics: bool = False
    queue_ns: int = 0
    """Time of each request in the queue; the statistics report it."""
    key: str = ""
    """If set, requests require ``Authorization: Bearer KEY``."""
    ready: bool = True
    certificate: tuple[Path, Path] | None = None
    """Certificate and key."""
    lists_inputs: bool = True
    response_cache: bool = False
    """Answer equal requests from a cache; the statistics report the hits."""
    faults: Faults = field(default_factory=Faults)


class InvalidError(Exception):
    """A request that does not fit the model."""


@dataclass(frozen=True)
class Result:
    """One output."""

    name: str
    datatype: str
    values: np.ndarray


class Backend:
    """A model in an ONNX Runtime session, with counters and faults."""

    def __init__(self, model: Path, settings: Settings) -> None:
        import onnxruntime

        self.settings = settings
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.inferences = 0
        self.in_flight = self.most_in_flight = 0
        self.times_ns = {"queue": 0, "compute_input": 0, "compute_infer": 0, "compute_output": 0}
        self.lock = threading.Lock()
        self.cache_hits = 0
        self._cache: dict[bytes, list[np.ndarray]] = {}
        self._first: list[np.ndarray] | None = None

    def metadata(self) -> dict[str, Any]:
        def tensors(arguments: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": argument.name,
                    "datatype": TYPES[argument.type][0],
                    "shape": [size if isinstance(size, int) else -1 for size in argument.shape],
                }
                for argument in arguments
            ]

        return {
            "name": self.settings.name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": tensors(self.session.get_inputs()) if self.settings.lists_inputs else [],
            "outputs": tensors(self.session.get_outputs()) if self.settings.lists_inputs else [],
        }

    def stats(self) -> dict[str, Any]:
        with self.lock:
            spans = {name: {"count": self.inferences, "ns": ns} for name, ns in self.times_ns.items()}
            hits = {"count": self.cache_hits, "ns": 0}
            return {"success": {"count": self.inferences, "ns": 0}, **spans, "cache_hit": hits}

    @contextlib.contextmanager
    def in_flight_request(self) -> Iterator[None]:
        """Count a request as in flight."""
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= 1

    def answers_with_status(self, rows: int) -> bool:
        """Wait for the configured delay; return whether the answer is the configured status."""
        faults = self.settings.faults
        if faults.silent_s or self.settings.queue_ns:
            time.sleep(faults.silent_s + self.settings.queue_ns * 1e-9)
        return bool(faults.status) and rows >= faults.status_from_batch

    def infer(self, inputs: Mapping[str, tuple[str, np.ndarray]], began_ns: int) -> list[Result]:
        """Run the model on one request.

        Args:
            inputs: Name -> datatype and values.
            began_ns: Monotonic time at which reading the request began.

        Raises:
            InvalidError: The request does not fit the model.
        """
        datatypes = {argument.name: TYPES[argument.type][0] for argument in self.session.get_inputs()}
        for name, (datatype, values) in inputs.items():
            if name not in datatypes:
                raise InvalidError(f"unexpected input {name}")
            if datatype != datatypes[name]:
                raise InvalidError(f"input {name} has the datatype {datatype}")
            if self.settings.max_batch and len(values) > self.settings.max_batch:
                raise InvalidError(f"inference request batch-size must be <= {self.settings.max_batch}")
        read_ns = time.monotonic_ns()
        key = b"".join(values.tobytes() for _, values in inputs.values()) if self.settings.response_cache else b""
        if key in self._cache:
            results = self._cache[key]
            self.cache_hits += 1
        else:
            try:
                results = self.session.run(None, {name: values for name, (_, values) in inputs.items()})
            except Exception as error:
                raise InvalidError(str(error)[:200]) from error
        if key:
            self._cache[key] = results
        ran_ns = time.monotonic_ns()
        faults = self.settings.faults
        self._first = self._first or results
        outputs = []
        for argument, first, computed in zip(self.session.get_outputs(), self._first, results, strict=True):
            values = np.resize(first, computed.shape) if faults.stale else computed
            if faults.zeros:
                values = np.zeros_like(values)
            if faults.wrong_rows:
                values = np.repeat(values, 1 + faults.wrong_rows, axis=0)[: len(values) + faults.wrong_rows]
            if faults.nudge:
                values = (values + faults.nudge).astype(values.dtype)
            outputs.append(Result(argument.name, faults.wrong_datatype or TYPES[argument.type][0], values))
        end_ns = time.monotonic_ns()
        with self.lock:
            self.inferences += 1
            spans = (self.settings.queue_ns, read_ns - began_ns, ran_ns - read_ns, end_ns - ran_ns)
            for name, span_ns in zip(self.times_ns, spans, strict=True):
                self.times_ns[name] += span_ns
        return outputs


class KServeServer(LoopbackServer):
    """Serves one model by HTTP, or by HTTPS if the settings have a certificate."""

    def __init__(self, model: Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.backend = Backend(model, self.settings)
        self.requests: list[str] = []
        """Method and path of each request."""
        self.heads: list[Mapping[str, str]] = []
        """Headers of each inference, names in lower case."""
        context = None
        if self.settings.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, self.settings.certificate))
        super().__init__(Handler, context)


class Handler(QuietHandler):
    """One connection."""

    server: KServeServer

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        self.wbufsize = 0 if self.server.settings.faults.naive else -1
        self.disable_nagle_algorithm = not self.server.settings.faults.naive
        super().setup()

    def do_GET(self) -> None:
        self.server.requests.append(f"GET {self.path}")
        settings = self.server.settings
        if not self._is_allowed():
            return
        model = f"/v2/models/{settings.name}"
        path = self.path.removesuffix("/versions/1") if self.path.endswith("/versions/1") else self.path
        path = path.replace("/versions/1/", "/")
        if path == "/v2":
            self._send(200, {"name": settings.server, "version": "9.1", "extensions": list(settings.extensions)})
        elif path == model:
            self._send(200, self.server.backend.metadata())
        elif path == f"{model}/ready":
            self._send(200 if settings.ready else 503, {} if settings.ready else {"error": "still loading"})
        elif path == f"{model}/config" and settings.max_batch:
            groups = [{"name": "a", "kind": "KIND_CPU", "count": 1}]
            self._send(200, {"name": settings.name, "max_batch_size": settings.max_batch, "instance_group": groups})
        elif path == f"{model}/stats" and settings.statistics:
            stats = self.server.backend.stats()
            self._send(200, {"model_stats": [{"name": settings.name, "version": "1", "inference_stats": stats}]})
        else:
            self._send(404, {"error": f"not found: {self.path}"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append(f"POST {self.path}")
        settings = self.server.settings
        faults = settings.faults
        if not self._is_allowed():
            return
        if self.path == "/v2/repository/index":
            self._send(200, [{"name": settings.name, "version": "1", "state": "READY"}])
            return
        if not self.path.endswith("/infer"):
            self._send(404, {"error": f"not found: {self.path}"})
            return
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        if faults.drop_once:
            faults.drop_once = False
            self.close_connection = True
            return
        with self.server.backend.in_flight_request():
            self._infer(body, settings.faults)

    def _infer(self, body: bytes, faults: Faults) -> None:
        backend = self.server.backend
        length = int(self.headers.get(HEADER, len(body)))
        message = json.loads(body[:length])
        if backend.answers_with_status(message["inputs"][0]["shape"][0]):
            self._send(faults.status, {"error": "out of memory on the device"})
            return
        began_ns = time.monotonic_ns()
        inputs, offset = {}, length
        for tensor in message["inputs"]:
            dtype = NUMPY[tensor["datatype"]]
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.asarray(tensor["data"], dtype=dtype)
            else:
                values = np.frombuffer(body, dtype=dtype, count=size // np.dtype(dtype).itemsize, offset=offset)
                offset += size
            inputs[tensor["name"]] = (tensor["datatype"], values.reshape(tensor["shape"]))
        if offset != len(body):
            self._send(400, {"error": f"{len(body) - offset} bytes too many"})
            return
        try:
            results = backend.infer(inputs, began_ns)
        except InvalidError as error:
            self._send(400, {"error": str(error)})
            return
        as_binary = not faults.json_outputs and (
            message.get("parameters", {}).get("binary_data_output")
            or all(tensor.get("parameters", {}).get("binary_data") for tensor in message.get("outputs", [{}]))
        )
        outputs, pieces = [], []
        for result in results:
            output: dict[str, Any] = {
                "name": result.name,
                "datatype": result.datatype,
                "shape": list(result.values.shape),
            }
            if as_binary:
                pieces.append(np.ascontiguousarray(result.values).tobytes())
                output["parameters"] = {"binary_data_size": len(pieces[-1])}
            else:
                output["data"] = result.values.ravel().tolist()
            outputs.append(output)
        answer = {"model_name": self.server.settings.name, "model_version": "1", "outputs": outputs}
        self._send(200, answer, pieces)

    def _is_allowed(self) -> bool:
        key = self.server.settings.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._send(401, {"error": f"wrong key: {self.headers.get('Authorization', 'none')}"})
        return False

    def _send(self, status: int, message: Any, pieces: list[bytes] | None = None) -> None:
        text = json.dumps(message).encode()
        body = b"".join([text, *(pieces or [])])
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if pieces else "application/json")
        if pieces:
            self.send_header(HEADER, str(len(text)))
        self.send_header("Content-Length", str(len(body)))
        if self.server.settings.faults.close_each:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.server.settings.faults.cut and status == 200 and pieces is not None:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.connection.shutdown(socket.SHUT_RDWR)
