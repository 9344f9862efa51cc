"""An OpenAI-compatible server on loopback with selectable speed, token counts and faults; its text has no meaning."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from support.loopback import LoopbackServer, QuietHandler


@dataclass
class OpenAISettings:
    """Settings of the server; they can be changed while it runs."""

    model: str = "tiny"
    first_s: float = 0.0
    """Time to the first token."""
    each_s: float = 0.0
    """Time between two tokens."""
    tokens: int = 0
    """Tokens of every answer; 0: as many as the request's max_tokens."""
    stop_after: int = 0
    """Tokens after which the model ends its answer, unless the request has ignore_eos."""
    knows_ignore_eos: bool = True
    tokens_per_piece: int = 1
    usage: bool = True
    refuses_stream_options: bool = False
    key: str = ""
    status: int = 0
    """Answer generations with this HTTP status."""
    status_from: int = 0
    """First generation, counted from 0, that ``status`` applies to."""
    cut_after: int = -1
    """Close the connection after this number of pieces."""
    error_after: int = -1
    """Send an error event after this number of pieces."""
    lists_models: bool = True
    streams: bool = True
    silent_s: float = 0.0
    """Delay before the answer begins."""
    cached_tokens: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all generations."""


class OpenAIServer(LoopbackServer):
    """Serves one model, which has no weights."""

    def __init__(self, settings: OpenAISettings | None = None) -> None:
        self.settings = settings or OpenAISettings()
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0
        self.tokens_sent = 0
        super().__init__(Handler)


class Handler(QuietHandler):
    """One connection."""

    disable_nagle_algorithm = True
    wbufsize = -1
    server: OpenAIServer

    def do_GET(self) -> None:
        settings = self.server.settings
        if not self._is_allowed():
            return
        if self.path == "/v1/models" and settings.lists_models:
            entry = {"id": settings.model, "object": "model", "owned_by": "test", "max_model_len": 4096}
            self._send(200, {"object": "list", "data": [entry]})
        elif self.path == "/version":
            self._send(200, {"version": "0.42"})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        settings = self.server.settings
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self._send(404, {"detail": "Not Found"})
            return
        if body["model"] != settings.model:
            self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
            return
        with self.server.lock:
            number = len(settings.requests)
            settings.requests.append(body)
        if settings.status and number >= settings.status_from:
            self._send(settings.status, {"error": {"message": "the engine died", "type": "server_error"}})
            return
        if settings.refuses_stream_options and "stream_options" in body:
            self._send(400, {"error": {"message": "unknown field: stream_options"}})
            return
        with self.server.lock:
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        is_complete = False
        try:
            time.sleep(settings.silent_s)
            if settings.streams:
                is_complete = self._generate(body, chat)
            else:
                self._send(200, {"choices": [{"text": "all at once", "finish_reason": "stop"}], "usage": {}})
        finally:
            with self.server.lock:
                self.server.in_flight -= 1
        if is_complete:
            # Send the end last, so that a client that has read it sees this request counted and no longer in flight.
            self._chunk(b"")

    def _generate(self, body: dict[str, Any], chat: bool) -> bool:
        """Stream an answer except its last chunk; return whether it is complete."""
        settings = self.server.settings
        count = settings.tokens or body["max_tokens"]
        if settings.stop_after and not (body.get("ignore_eos") and settings.knows_ignore_eos):
            count = min(count, settings.stop_after)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._comment()
        if chat:
            self._event(body, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        time.sleep(settings.first_s)
        sent = 0
        pieces = 0
        while sent < count:
            if pieces in (settings.cut_after, settings.error_after):
                if pieces == settings.error_after:
                    self._chunk(b'data: {"error": {"message": "CUDA out of memory", "code": 500}}\n\n')
                self.close_connection = True
                return False
            step = min(settings.tokens_per_piece, count - sent)
            text = " tok" * step
            reason = "length" if sent + step == count else None
            choice = {"delta": {"content": text}} if chat else {"text": text}
            self._event(body, [{"index": 0, **choice, "finish_reason": reason}])
            sent += step
            pieces += 1
            if sent < count:
                time.sleep(settings.each_s * step)
        if settings.usage and body.get("stream_options", {}).get("include_usage"):
            text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            prompt_tokens = len(text.split())
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": count,
                "total_tokens": prompt_tokens + count,
                "prompt_tokens_details": {"cached_tokens": settings.cached_tokens},
            }
            self._event(body, [], usage)
        self._chunk(b"data: [DONE]\n\n")
        with self.server.lock:
            self.server.tokens_sent += count
        return True

    def _comment(self) -> None:
        self._chunk(b": the engine is warming up\n\n")

    def _event(self, body: dict[str, Any], choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> None:
        message: dict[str, Any] = {"id": "1", "model": body["model"], "choices": choices, "usage": usage}
        self._chunk(f"data: {json.dumps(message)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _is_allowed(self) -> bool:
        key = self.server.settings.key
        authorization = self.headers.get("Authorization", "none")
        if not key or authorization == f"Bearer {key}":
            return True
        self._send(401, {"error": {"message": f"Incorrect API key provided: {authorization.removeprefix('Bearer ')}"}})
        return False

    def _send(self, status: int, message: Any) -> None:
        body = json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
