"""A KServe v2 server without a network: a connection that answers from dictionaries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from joulewatch_harness.runtimes.shared.http import Answer, Endpoint

URL = "http://server:8000"
LENGTH = "inference-header-content-length"


def answer(message: Any, status: int = 200, raw: bytes = b"") -> Answer:
    text = json.dumps(message).encode()
    headers = {LENGTH: str(len(text))} if raw else {}
    return Answer(status, {"content-type": "application/json", **headers}, text + raw)


def outputs(*items: dict[str, Any], raw: bytes = b"") -> Answer:
    return answer({"outputs": list(items)}, raw=raw)


class FakeConnection:
    """A connection to a model that doubles its input."""

    def __init__(self, where: Endpoint) -> None:
        self.where = where
        self.opened = 1
        self.closed = 0
        self.quick_ack = False
        self.pages: dict[str, Answer] = {
            "/v2": answer({"name": "fake", "version": "1.2", "extensions": ["binary_tensor_data"]}),
            "/v2/models/m": answer(metadata()),
            "/v2/models/m/ready": answer({}),
        }
        self.sent: list[Mapping[str, Any]] = []
        self.inferred: Answer | None = None
        self.rows_more = 0

    def request(
        self, method: str, path: str, parts: Sequence[Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        if not path.endswith("/infer"):
            return self.pages.get(path, answer({"error": f"no {path}"}, 404))
        assert parts is not None
        message = json.loads(bytes(parts[0]))
        self.sent.append(message)
        if self.inferred is not None:
            return self.inferred
        values = np.frombuffer(b"".join(parts[1:]), np.float32).reshape(message["inputs"][0]["shape"]) * 2
        values = np.concatenate([values, values[:1].repeat(self.rows_more, axis=0)])
        tensor = {"name": "y", "datatype": "FP32", "shape": list(values.shape)}
        return outputs({**tensor, "parameters": {"binary_data_size": values.nbytes}}, raw=values.tobytes())

    def close(self) -> None:
        self.closed += 1


def metadata(first: int = -1, **values: Any) -> dict[str, Any]:
    tensor = {"datatype": "FP32", "shape": [first, 3]}
    model = {"name": "m", "versions": ["1", "3"], "platform": "onnxruntime_onnx"}
    return {**model, "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}], **values}
