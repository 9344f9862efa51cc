"""KServe v2 over HTTP/1.1: JSON, followed by tensors in binary.

Source: KServe, Open Inference Protocol v2 and binary tensor data extension; Triton, statistics, model configuration
and model repository extensions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from joulewatch_harness.runtimes.kserve.client import Outcome, Question, RefusedError, Reply
from joulewatch_harness.runtimes.kserve.tensors import (
    Given,
    Output,
    Tensor,
    from_list,
    from_wire,
    named,
    to_wire,
)
from joulewatch_harness.runtimes.shared import http as http_client
from joulewatch_harness.runtimes.shared.http import Answer, Buffer, Connection, Endpoint

JSON_LENGTH: Final = "Inference-Header-Content-Length"
BINARY_EXTENSION: Final = "binary_tensor_data"
AS_JSON: Final = "json"

FLOOR_S: Final = 0.038
"""Linux delays acknowledgements by at least 40 ms (44 ms with the period of its timer)."""
FLOOR_GAIN_S: Final = 0.03
"""Least reduction of the latency by immediate acknowledgement that proves the delay."""
FLOOR_PROBES: Final = 24
FLOOR_PROOFS: Final = 5
FLOOR_LIMIT_S: Final = 1.5

_OUTCOMES: Final[Mapping[int, Outcome]] = {
    200: Outcome.DONE,
    401: Outcome.DENIED,
    403: Outcome.DENIED,
    404: Outcome.UNKNOWN,
    413: Outcome.TOO_LARGE,
    429: Outcome.BUSY,
    503: Outcome.BUSY,
}


class HttpClient:
    """A model behind HTTP (the protocol of ``client.Client``)."""

    def __init__(self, where: Endpoint, model: str, version: str, *, binary: bool) -> None:
        self._where = where
        self._binary = binary
        chosen = f"/versions/{quote(version, safe='')}" if version else ""
        self._path = f"/v2/models/{quote(model, safe='')}{chosen}"
        self._connections: list[Connection] = []
        self._inputs: Given = ()
        self._outputs: Sequence[Tensor] = ()

    @property
    def shown(self) -> str:
        return f"{self._where.url}{self._path}"

    def open(self, lanes: int) -> None:
        self._connections = [Connection(self._where) for _ in range(lanes)]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def ask(self, question: Question) -> Reply:
        if question == "index":
            path = "/v2/repository/index"
            answer = self._connections[0].request("POST", path, [b"{}"], {"Content-Type": "application/json"})
            reply = self._reply(path, answer)
            return Reply(outcome=reply.outcome, where=reply.where, text=reply.text, data={"models": reply.data})
        path = "/v2" if question == "server" else self._path
        path += {"ready": "/ready", "config": "/config", "statistics": "/stats"}.get(question, "")
        return self._reply(path, self._connections[0].request("GET", path))

    def prepare(self, inputs: Given, outputs: Sequence[Tensor]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def pack(self) -> tuple[list[Buffer], Mapping[str, str]]:
        return pack(self._inputs, self._outputs, binary=self._binary)

    def send(self, lane: int, request: tuple[list[Buffer], Mapping[str, str]]) -> Answer:
        return self._connections[lane].request("POST", f"{self._path}/infer", *request)

    def unpack(self, answer: Answer) -> Mapping[str, Output]:
        if answer.status != 200:
            raise RefusedError(self._reply(self._path, answer))
        return unpack(answer)

    def faults(self, timed: Callable[[], float], small: bool) -> Sequence[str]:
        """Check whether the server closes connections, and whether delayed acknowledgements add to the latency."""
        connection = self._connections[0]
        opened = connection.opened
        spans_s: list[float] = []
        begin_s = time.monotonic()
        while len(spans_s) < FLOOR_PROBES and time.monotonic() - begin_s < FLOOR_LIMIT_S:
            spans_s.append(timed())
            if len(spans_s) >= FLOOR_PROOFS and (min(spans_s[-FLOOR_PROOFS:]) < FLOOR_S or not small):
                break
        problems = []
        if connection.opened - opened >= len(spans_s):
            problems.append("the server closes the connection after every answer: each request needs a new one")
        if len(spans_s) >= FLOOR_PROOFS and small:
            problems += self._floor(timed, spans_s[-FLOOR_PROOFS:])
        return problems

    def _floor(self, timed: Callable[[], float], spans_s: Sequence[float]) -> list[str]:
        """Check for Nagle's algorithm in the server with delayed acknowledgements here: 40 ms without work."""
        if min(spans_s) < FLOOR_S or not http_client.quick_ack_exists():
            return []
        connection = self._connections[0]
        before_s = statistics.median(spans_s)
        connection.quick_ack = True
        try:
            after_s = statistics.median([timed() for _ in range(FLOOR_PROOFS)])
        finally:
            connection.quick_ack = False
        if before_s - after_s < FLOOR_GAIN_S:
            return []
        return [
            f"every small request takes {before_s * 1e3:.0f} ms, but {after_s * 1e3:.2g} ms when its packets are "
            "acknowledged at once: the server writes its answer in pieces without TCP_NODELAY, and waits for delayed "
            "acknowledgements; this latency and its idle energy are not the network's: make the server set "
            "TCP_NODELAY or write once"
        ]

    def _reply(self, path: str, answer: Answer) -> Reply:
        usual = Outcome.FAILED if answer.status >= 500 else Outcome.REFUSED
        return Reply(
            outcome=_OUTCOMES.get(answer.status, usual),
            where=f"{self._where.url}{path}",
            text=self._where.masked(answer.summary()),
            data=answer.json(),
        )


def pack(inputs: Given, outputs: Sequence[Tensor], *, binary: bool) -> tuple[list[Buffer], Mapping[str, str]]:
    """Return the body of a request, in pieces, and its headers."""
    listed: list[dict[str, Any]] = []
    raw: list[Buffer] = []
    for item, values in inputs:
        entry: dict[str, Any] = {"name": item.name, "shape": list(values.shape), "datatype": item.datatype}
        if binary:
            wire = to_wire(values, item.datatype)
            entry["parameters"] = {"binary_data_size": wire.nbytes}
            raw.append(wire)
        else:
            entry["data"] = values.ravel().tolist()
        listed.append(entry)
    message: dict[str, Any] = {"inputs": listed}
    if outputs:
        message["outputs"] = [{"name": item.name, "parameters": {"binary_data": binary}} for item in outputs]
    elif binary:
        message["parameters"] = {"binary_data_output": True}
    text = json.dumps(message, separators=(",", ":")).encode()
    if not binary:
        return [text], {"Content-Type": "application/json"}
    return [text, *raw], {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}


def unpack(answer: Answer) -> dict[str, Output]:
    """Return the outputs of an answer.

    Raises:
        ValueError: it does not follow the protocol; the text contains the reason.
    """
    length = answer.headers.get(JSON_LENGTH.lower())
    if length is not None and not (length.isdecimal() and int(length) <= len(answer.body)):
        raise ValueError(f"{JSON_LENGTH} is {length!r}, but the body has {len(answer.body)} bytes")
    end = len(answer.body) if length is None else int(length)
    message = json.loads(answer.body[:end])
    listed = message.get("outputs") if isinstance(message, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it has no list of outputs")
    outputs: dict[str, Output] = {}
    for item in listed:
        name, datatype, shape = named(item)
        size = (item.get("parameters") or {}).get("binary_data_size")
        if size is None:
            if not isinstance(item.get("data"), list):
                raise ValueError(f"output {name!r} has no data")
            outputs[name] = from_list(datatype, shape, item["data"], AS_JSON)
            continue
        if not isinstance(size, int) or size < 0 or end + size > len(answer.body):
            raise ValueError(f"output {name!r} has {len(answer.body) - end} of {size} bytes")
        outputs[name] = from_wire(name, datatype, shape, memoryview(answer.body)[end : end + size])
        end += size
    return outputs
