"""KServe v2 over gRPC: protobuf messages with raw tensors.

A request is serialised once, before the window, and sent repeatedly; an answer is parsed for each batch, and its
tensors are not copied. Each lane has a separate connection, as over HTTP: by default gRPC would share one. Proxies of
the environment are not used, the client has no limit on message sizes, and a request that has reached the server is
never sent again.

Source: KServe, Open Inference Protocol v2, gRPC; gRPC core, channel arguments and status codes.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.runtimes.kserve.client import Outcome, Question, RefusedError, Reply
from joulewatch_harness.runtimes.kserve.messages import PACKAGE, message_classes
from joulewatch_harness.runtimes.kserve.tensors import (
    Given,
    Output,
    Tensor,
    from_list,
    from_wire,
    to_wire,
    wire_itemsize,
)
from joulewatch_harness.runtimes.shared.http import LONGEST_BODY, Endpoint

# By default gRPC's core writes to stderr what the errors contain anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import grpc
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError
except ModuleNotFoundError as missing:
    raise ConfigError("kserve: grpc:// needs the package grpcio: pip install 'joulewatch[grpc]'") from missing

SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
AS_LISTS: Final = "typed lists"
LARGEST_REQUEST_BYTES: Final = 2**31 - 2**20
"""A protobuf message is smaller than 2 GiB; 1 MiB is left for what is not tensors."""

ARGUMENTS: Final = (
    ("grpc.max_send_message_length", -1),
    # The default is 4 MiB; the outputs of a large batch are larger.
    ("grpc.max_receive_message_length", LONGEST_BODY),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.primary_user_agent", "joulewatch"),
    # By default up to two minutes pass before another attempt to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_METHODS: Final[Mapping[Question, str]] = {
    "server": "ServerMetadata",
    "model": "ModelMetadata",
    "ready": "ModelReady",
    "config": "ModelConfig",
    "statistics": "ModelStatistics",
    "index": "RepositoryIndex",
}
_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "INVALID_ARGUMENT": Outcome.REFUSED,
    "FAILED_PRECONDITION": Outcome.REFUSED,
    "OUT_OF_RANGE": Outcome.REFUSED,
    "UNAUTHENTICATED": Outcome.DENIED,
    "PERMISSION_DENIED": Outcome.DENIED,
    "NOT_FOUND": Outcome.UNKNOWN,
    "UNIMPLEMENTED": Outcome.UNKNOWN,
    "RESOURCE_EXHAUSTED": Outcome.TOO_LARGE,
}
_KINDS: Final = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class GrpcClient:
    """A model behind gRPC (the protocol of ``client.Client``).

    Raises:
        ConfigError: a URL, headers or certificates that gRPC cannot use.
    """

    def __init__(self, where: Endpoint, model: str, version: str) -> None:
        if not where.port or where.path:
            raise ConfigError(
                f"kserve: option url: {where.url}: write it as {where.scheme}://host:port, without a path"
            )
        if where.tls is not None and where.tls.verify_mode == ssl.CERT_NONE:
            raise ConfigError("kserve: option insecure: is for https:// only; for grpcs:// set ca_file")
        self._where = where
        self._names = {"name": model, "version": version}
        self._model_names = {"model_name": model, "model_version": version}
        self._headers = _metadata(where)
        self._classes = message_classes()
        self._channels: list[Any] = []
        self._infer: list[Callable[..., bytes]] = []
        self._request = b""

    @property
    def shown(self) -> str:
        return "/".join(filter(None, (self._where.url, *self._names.values())))

    def open(self, lanes: int) -> None:
        self._channels = [self._channel() for _ in range(lanes)]
        # Without serialisers: the client sends and receives bytes, and parsing is timed separately.
        self._infer = [channel.unary_unary(f"/{SERVICE}/ModelInfer") for channel in self._channels]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels, self._infer = [], []

    def ask(self, question: Question) -> Reply:
        method = _METHODS[question]
        request = self._classes[f"{method}Request"]()
        if question not in ("server", "index"):
            request = self._classes[f"{method}Request"](**self._names)
        send = self._channels[0].unary_unary(f"/{SERVICE}/{method}")
        try:
            answer = self._sent(send, request.SerializeToString())
            data = MessageToDict(
                self._classes[f"{method}Response"].FromString(answer),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        except RefusedError as refused:
            return refused.reply
        except DecodeError:
            return Reply(
                outcome=Outcome.FAILED, where=self._where.url, text=f"{method}: the answer is not a valid message"
            )
        if question == "ready" and not data["ready"]:
            return Reply(outcome=Outcome.BUSY, where=self.shown, text="the server reports that it is not ready")
        return Reply(
            outcome=Outcome.DONE, where=self._where.url, text=f"{method} answered", data=_as_over_http(question, data)
        )

    def prepare(self, inputs: Given, outputs: Sequence[Tensor]) -> None:
        size = sum(values.size * wire_itemsize(item.datatype) for item, values in inputs)
        if size > LARGEST_REQUEST_BYTES:
            raise UnsupportedBatchError(
                f"{self.shown}: a request of {size / 2**30:.3g} GiB: the limit of protobuf is 2 GiB, HTTP has none "
                "(option url)"
            )
        request = self._classes["ModelInferRequest"](**self._model_names)
        for item, values in inputs:
            request.inputs.add(name=item.name, datatype=item.datatype, shape=values.shape)
            request.raw_input_contents.append(bytes(to_wire(values, item.datatype)))
        for item in outputs:
            request.outputs.add(name=item.name)
        self._request = request.SerializeToString()

    def pack(self) -> bytes:
        """Return the request of ``prepare``."""
        return self._request

    def send(self, lane: int, request: bytes) -> bytes:
        return self._sent(self._infer[lane], request)

    def unpack(self, answer: bytes) -> Mapping[str, Output]:
        try:
            message = self._classes["ModelInferResponse"].FromString(answer)
        except DecodeError as error:
            raise ValueError("it is not a valid ModelInferResponse") from error
        raw = list(message.raw_output_contents)
        if raw and len(raw) != len(message.outputs):
            raise ValueError(
                f"it has {count_of(len(raw), 'raw tensor')} for {count_of(len(message.outputs), 'output')}"
            )
        outputs: dict[str, Output] = {}
        for number, item in enumerate(message.outputs):
            shape = tuple(item.shape)
            if raw:
                outputs[item.name] = from_wire(item.name, item.datatype, shape, raw[number])
                continue
            if item.datatype not in _CONTENTS:
                raise ValueError(f"output {item.name!r} is {item.datatype} and not raw")
            data = list(getattr(item.contents, _CONTENTS[item.datatype]))
            outputs[item.name] = from_list(item.datatype, shape, data, AS_LISTS)
        return outputs

    def faults(self, timed: Callable[[], float], small: bool) -> Sequence[str]:
        """Return no problems: gRPC keeps its connection, sets TCP_NODELAY and writes each message at once."""
        return ()

    def _channel(self) -> Any:
        where = self._where
        # An ingress may require another host than that of the connection.
        host = next((value for name, value in where.headers.items() if name.lower() == "host"), "")
        arguments = (*ARGUMENTS, *((("grpc.default_authority", host),) if host else ()))
        target = f"{where.quoted_host}:{where.port}"
        if where.scheme == "grpc":
            return grpc.insecure_channel(target, options=arguments)
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(_authorities(where.ca_file)), options=arguments)

    def _sent(self, send: Callable[..., bytes], request: bytes) -> bytes:
        where = self._where
        try:
            return send(request, timeout=where.timeout_s, metadata=self._headers)
        except grpc.RpcError as error:
            code, details = error.code().name, " ".join((error.details() or "").split())
            message = where.masked(f"gRPC {code}: {details[:300]}" if details else f"gRPC {code}")
            if code == "DEADLINE_EXCEEDED":
                text = f"no answer within {where.timeout_s:g} s: raise option timeout_s if it may take longer"
                raise NetworkError(f"{self.shown}: {text}") from error
            if code == "UNAVAILABLE":
                raise NetworkError(f"{self.shown}: {message}{_unavailable(details)}") from error
            raise RefusedError(
                Reply(outcome=_OUTCOMES.get(code, Outcome.FAILED), where=self.shown, text=message)
            ) from error


def _as_over_http(question: Question, data: dict[str, Any]) -> dict[str, Any]:
    """Convert an answer to its form over HTTP."""
    if question != "config":
        return data
    config: dict[str, Any] = data.get("config", {})
    for group in config.get("instance_group", ()):
        group["kind"] = _KINDS[group["kind"]] if group["kind"] < len(_KINDS) else ""
    return config


def _unavailable(details: str) -> str:
    """Return the fix for an unavailable server: gRPC has one status for all causes."""
    for pattern, hint in (
        ("WRONG_VERSION_NUMBER", "; is it a grpc:// server?"),
        (r"CERTIFICATE_VERIFY_FAILED|peer name", "; set option ca_file to the certificate's authority"),
        ("failed to connect.*(Socket closed|reset|HTTP)", "; is that its gRPC port, and in plain text? (option url)"),
    ):
        if re.search(pattern, details, re.IGNORECASE):
            return hint
    return "; is the server running at that address, and not busy? (option url)"


def _metadata(where: Endpoint) -> tuple[tuple[str, str], ...]:
    """Return the user's headers for gRPC.

    Raises:
        ConfigError: gRPC cannot send a header with this name; the text does not contain its value.
    """
    metadata = tuple((name.lower(), value) for name, value in where.headers.items() if name.lower() != "host")
    for name, _ in metadata:
        if not re.fullmatch(r"[0-9a-z_.-]+", name) or name.startswith("grpc-") or name.endswith("-bin"):
            raise ConfigError(f"kserve: option headers_file: gRPC cannot send a header {name!r}")
    return metadata


def _authorities(ca_file: Path | None) -> bytes | None:
    """Return the certificates of the file, or those that Python trusts; None: those of gRPC."""
    path = ca_file or Path(ssl.get_default_verify_paths().cafile or "")
    return path.read_bytes() if path.is_file() else None
