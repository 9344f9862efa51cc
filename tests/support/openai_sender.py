"""An OpenAI-compatible server without a network: a connection that answers from dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from joulewatch_harness.runtimes.shared.http import Answer, Endpoint

URL = "http://server:8000"


def event(*choices: dict[str, Any], **values: Any) -> bytes:
    return f"data: {json.dumps({'model': 'm', 'choices': list(choices), **values})}\n\n".encode()


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"delta": {"content": text}, "finish_reason": finish}


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
STREAM = [
    b": hello\n\n",
    event({"delta": {"role": "assistant", "content": ""}}),
    event(chunk("one")),
    event(chunk(" two", "length")),
    event(usage=USAGE),
    DONE,
]


class FakeSender:
    """A connection that answers from ``pages`` and ``answer``."""

    def __init__(self, where: Endpoint) -> None:
        self.where = where
        self.bodies: list[dict[str, Any]] = []
        self.pages: dict[str, Answer] = {
            "/v1/models": page({"data": [{"id": "m:1b", "owned_by": "us", "max_model_len": 99}, {"id": "other"}]}),
            "/version": page({"version": "7.7"}),
        }
        self.answer: Answer | Sequence[bytes] = STREAM

    def request(self, method: str, path: str, parts: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return self.pages.get(path, page({"detail": "Not Found"}, 404))

    def stream(self, method: str, path: str, parts: Any, headers: Mapping[str, str]) -> Iterator[bytes] | Answer:
        self.bodies.append({"path": path, **json.loads(b"".join(parts))})
        return self.answer if isinstance(self.answer, Answer) else iter(self.answer)

    def close(self) -> None:
        pass


def page(message: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json", **headers}, json.dumps(message).encode())
