"""A language model behind a server with OpenAI's HTTP API: vLLM, llama.cpp, SGLang, TGI, Ollama, LocalAI.

The network's name is that of the model. One inference is one request, a batch is that number of parallel requests, and
answers are streamed: ``prefill`` lasts until every request of the batch has its first token, ``decode`` until the end.
Tokens are those that the server counts (``usage``), never estimated from the text; each window contains their number,
so that results contain joules per output token next to joules per request.
The energy is that of the machine on which the server runs: if it is another one, name its exporter in the plan.

Source: OpenAI API reference, chat completions and completions, ``stream_options``; WHATWG HTML, server-sent events.
"""

from __future__ import annotations

import json
import logging
import resource
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError, one_line
from joulewatch_harness.names import unknown
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.openai.options import APIS, Options
from joulewatch_harness.runtimes.shared.http import Answer, Buffer, Connection
from joulewatch_harness.runtimes.shared.servers import as_config_errors, closed_on_error

logger = logging.getLogger(__name__)

PROBE_TOKENS: Final = 2
LARGEST_BATCH: Final = 1024
LONGEST_LINE: Final = 1 << 20
"""Longest line of an event stream; an event with one token has less than 1 KiB."""
SPARE_FILES: Final = 64
"""Open files that the rest of a run needs."""
TOKENS: Final = "output_tokens"
PIECES: Final = "output_pieces"
"""Unit of work with ``count_chunks``, if the server counts no tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The result of one request."""

    first_ns: int
    """When its first token arrived, monotonic."""
    end_ns: int
    pieces: int
    """Number of pieces of the stream with text."""
    prompt_tokens: int
    output_tokens: int | None
    """None: the server did not count."""
    cached_tokens: int
    """Tokens of the prompt that were in the server's cache."""
    model: str
    """Name of the model in the answer."""


class Events:
    """Parses an event stream in pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self.began = b""
        """The first bytes, for messages."""
        self.has_events = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the data of every event that ends in ``piece``.

        Raises:
            StreamError: a line is too long.
        """
        if len(self.began) < 200:
            self.began += piece[:200]
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            # Each further piece would copy all of it.
            raise StreamError(f"a line of the stream is longer than {LONGEST_LINE >> 20} MiB")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                self.has_events = True
                yield "\n".join(self._data)
                self._data.clear()

    def end(self) -> Iterator[str]:
        """Yield the last event, if the server has not sent an empty line after it."""
        yield from self.feed(b"\n\n")


class Sender(Protocol):
    """The interface for requests: a ``Connection``."""

    def request(
        self, method: str, path: str, parts: list[Buffer] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer: ...

    def stream(
        self, method: str, path: str, parts: list[Buffer], headers: Mapping[str, str]
    ) -> Iterator[bytes] | Answer: ...

    def close(self) -> None: ...


class StreamError(Exception):
    """A stream is not valid; the text contains the reason."""


def open_network(network: str, precision: str, options: Mapping[str, str]) -> OpenAINetwork:
    """Return the network, without a request to the server; the entry point of the runtime.

    Raises:
        ConfigError: a bad option, or a file that cannot be read.
    """
    return OpenAINetwork(network, Options.parse(options))


class OpenAINetwork:
    """A model of an OpenAI-compatible server (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, model: str, options: Options) -> None:
        self._model = model
        self._options = options
        self._path = APIS[options.api]
        self._connections: list[Sender] = []
        self._pool: ThreadPoolExecutor | None = None
        self._next_prompt = 0
        self._batch = 1
        self._with_usage = True
        self._counted = ""
        self._facts: dict[str, str] = {}
        self._cached = False

    def describe(self) -> Mapping[str, Any]:
        """Return the descriptions of server and model, and the options of requests."""
        options = self._options
        prompt = options.prompts[0]
        several = f"{len(options.prompts)} prompts, the first: " if len(options.prompts) > 1 else ""
        return {
            "runtime": "openai",
            "url": options.where.url,
            "api": options.api,
            "max_tokens": options.max_tokens,
            "temperature": f"{options.temperature:g}",
            "seed": options.seed,
            "ignore_eos": str(options.ignore_eos).lower(),
            "salt": str(options.salt).lower(),
            "prompt": several + (prompt if len(prompt) <= 80 else f"{prompt[:77]}..."),
            "prompt_characters": len(prompt),
            **({"tokens_counted_by": self._counted} if self._counted else {}),
            **self._facts,
        }

    def load(self) -> None:
        """Read the list of models and send one small request: check key, model, streaming and counting.

        Raises:
            ConfigError: no answer, the model does not exist, the key is wrong, or the server counts no tokens.
            NetworkError: the server fails, or its answer is not a stream.
        """
        self.close()
        with closed_on_error(self.close):
            self._connections = [self._connect()]
            with as_config_errors():
                self._read_models()
            self._probe()

    def prepare(self, batch: int) -> None:
        """Create a connection for each request of a batch.

        Raises:
            UnsupportedBatchError: more parallel requests than this process may have open files.
        """
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if batch > LARGEST_BATCH or (files != resource.RLIM_INFINITY and batch + SPARE_FILES > files):
            limit = min(LARGEST_BATCH, max(0, files - SPARE_FILES))
            raise UnsupportedBatchError(
                f"{self._shown}: {batch} parallel requests: the limit is {limit} (ulimit -n limits open connections)"
            )
        while len(self._connections) < batch:
            self._connections.append(self._connect())
        if self._pool is not None and batch != self._batch:
            self._pool.shutdown()
            self._pool = None
        self._batch = batch
        if batch > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(batch, thread_name_prefix="openai")

    def run(self, batches: int, phases: Phases) -> None:
        """Send the requests of ``batches`` batches, those of a batch in parallel, and read all answers.

        Raises:
            NetworkError: a request failed, its stream was cut off, or tokens were not counted.
        """
        for _ in range(batches):
            bodies = [self._body(self._options.max_tokens) for _ in range(self._batch)]
            start_ns = time.monotonic_ns()
            answers = self._at_once(bodies)
            # The phases are those of the batch: they follow each other and fill its time.
            first_ns = max(item.first_ns for item in answers)
            end_ns = max(item.end_ns for item in answers)
            phases.add("prefill", start_ns, first_ns)
            phases.add("decode", first_ns, end_ns)
            if self._with_usage:
                phases.count("prompt_tokens", sum(item.prompt_tokens for item in answers))
            phases.count(self._unit, sum(map(self._number, answers)))
            phases.batch()
            self._note_cache(answers)

    def check(self) -> bool:
        """Check one complete answer: it has the requested length, and is not empty.

        Raises:
            NetworkError: it contains no token, or more or fewer than requested.
        """
        options = self._options
        answer = self._generate(self._connections[0], self._body(options.max_tokens))
        number = self._number(answer)
        if number == 0:
            raise NetworkError(f"{self._shown}: the answer of {self._model} has no token: try another prompt or api")
        if self._unit == TOKENS and number > options.max_tokens:
            raise NetworkError(f"{self._shown}: {number} tokens, but at most {options.max_tokens} were requested")
        if self._unit == TOKENS and options.ignore_eos and number < options.max_tokens:
            raise NetworkError(
                f"{self._shown}: {number} of {options.max_tokens} tokens: this server does not support ignore_eos, "
                "or its context is too short; lower max_tokens or remove ignore_eos"
            )
        return True

    def close(self) -> None:
        """Close the connections; the model stays in the server."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        for connection in self._connections:
            connection.close()
        self._connections = []

    def _connect(self) -> Sender:
        return Connection(self._options.where)

    @property
    def _shown(self) -> str:
        return f"{self._options.where.url}{self._path}"

    @property
    def _unit(self) -> str:
        return TOKENS if self._with_usage else PIECES

    # Descriptions

    def _read_models(self) -> None:
        connection = self._connections[0]
        url = self._options.where.url
        answer = connection.request("GET", "/v1/models")
        content = answer.json()
        self._facts = {}
        if answer.status in (401, 403):
            raise ConfigError(self._explained(answer, f"{url}/v1/models"))
        listed = content.get("data") if isinstance(content, dict) and answer.status == 200 else None
        if isinstance(listed, list):
            models = {str(item.get("id")): item for item in listed if isinstance(item, dict)}
            if models and self._model not in models:
                raise ConfigError(f"{url}: {unknown('model', self._model, models)}")
            entry = models.get(self._model, {})
            for theirs, ours in (("owned_by", "provider"), ("max_model_len", "context_tokens"), ("root", "model_root")):
                if entry.get(theirs):
                    self._facts[ours] = str(entry[theirs])
        version = connection.request("GET", "/version")
        content = version.json() if version.status == 200 else None
        if isinstance(content, dict) and isinstance(content.get("version"), str):
            self._facts["runtime_version"] = content["version"]
        elif "server" in answer.headers:
            self._facts["runtime_version"] = answer.headers["server"]

    def _probe(self) -> None:
        options = self._options
        self._with_usage = True
        connection = self._connections[0]
        tokens = min(PROBE_TOKENS, options.max_tokens)
        try:
            answer = self._generate(connection, self._body(tokens))
        except ConfigError:
            if not options.count_chunks:
                raise
            # Some servers refuse stream_options, which requests the count.
            self._with_usage = False
            answer = self._generate(connection, self._body(tokens))
        if answer.output_tokens is None:
            if not options.count_chunks:
                raise ConfigError(
                    f"{self._shown}: the server does not count tokens (no usage in its stream, although "
                    "stream_options.include_usage requests it); count_chunks=true counts the pieces of its stream, "
                    "which are not tokens; results then report pieces"
                )
            self._with_usage = False
        self._counted = (
            "the server (usage)" if self._with_usage else "not counted: pieces of the stream instead (count_chunks)"
        )
        if answer.model and answer.model != self._model:
            self._facts["answers_as"] = answer.model

    # Requests

    def _body(self, max_tokens: int) -> bytes:
        options = self._options
        prompt = options.prompts[self._next_prompt % len(options.prompts)]
        self._next_prompt += 1
        if options.salt:
            prompt = f"[{secrets.randbelow(10**8):08d}] {prompt}"
        message: dict[str, Any] = {"model": self._model}
        if options.api == "chat":
            message["messages"] = [{"role": "user", "content": prompt}]
        else:
            message["prompt"] = prompt
        message |= {
            "max_tokens": max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
            "stream": True,
        }
        if self._with_usage:
            message["stream_options"] = {"include_usage": True}
        if options.ignore_eos:
            message["ignore_eos"] = True
        return json.dumps(message).encode()

    def _at_once(self, bodies: list[bytes]) -> list[Generated]:
        if len(bodies) == 1:
            return [self._generate(self._connections[0], bodies[0])]
        assert self._pool is not None
        lanes = zip(self._connections, bodies, strict=False)
        futures = [self._pool.submit(self._generate, connection, body) for connection, body in lanes]
        # Wait for all before raising an error: the next batch needs the connections.
        wait(futures)
        return [future.result() for future in futures]

    def _generate(self, connection: Sender, body: bytes) -> Generated:
        """Send one request and read the complete answer.

        Raises:
            ConfigError: the server refuses the key, the model or the request.
            NetworkError: no answer, an error of the server, or an invalid stream.
        """
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        answer = connection.stream("POST", self._path, [body], headers)
        if isinstance(answer, Answer):
            text = self._explained(answer)
            refused = answer.status < 500 and answer.status not in (408, 409, 429)
            raise ConfigError(text) if refused else NetworkError(text)
        try:
            return read_stream(answer, time.monotonic_ns)
        except StreamError as error:
            raise NetworkError(f"{self._shown}: {self._options.where.masked(str(error))}") from error

    def _number(self, answer: Generated) -> int:
        """Return the tokens of an answer, or its pieces if these are counted."""
        if not self._with_usage:
            return answer.pieces
        if answer.output_tokens is None:
            raise NetworkError(f"{self._shown}: a stream without usage, although earlier streams had it")
        return answer.output_tokens

    def _note_cache(self, answers: Iterable[Generated]) -> None:
        cached, sent = 0, 0
        for item in answers:
            cached += item.cached_tokens
            sent += item.prompt_tokens
        if self._options.salt or self._cached or 2 * cached < sent or not cached:
            return
        self._cached = True
        logger.warning(
            "%s: %d of %s of the prompt %s in the server's prefix cache, so their prefill is not measured; "
            "salt=true makes every prompt unique",
            self._shown,
            cached,
            count_of(sent, "token"),
            "was" if cached == 1 else "were",
        )

    def _explained(self, answer: Answer, url: str = "") -> str:
        hints = {
            401: ": check the option api_key_file",
            403: ": check the option api_key_file",
            404: f": the model or the {self._options.api} API does not exist (options url and api)",
            405: ": this server does not have the API (options url and api)",
            429: ": the server limits requests; a measurement needs a dedicated server",
            503: ": the server is busy or still loading",
        }
        hint = hints.get(answer.status, ": see the server's log" if answer.status >= 500 else "")
        return f"{url or self._shown}: {self._options.where.masked(answer.summary())}{hint}"


def read_stream(pieces: Iterator[bytes], clock_ns: Any) -> Generated:
    """Read the complete event stream of one request.

    Args:
        pieces: Bytes as they arrive.
        clock_ns: The monotonic clock, read after each piece.

    Raises:
        StreamError: it is not an event stream, contains an error, or ends early.
    """
    events = Events()
    count, first_ns = 0, 0
    finished = False
    usage: Mapping[str, Any] = {}
    model = ""

    def read(data: str, now_ns: int) -> None:
        nonlocal count, first_ns, finished, usage, model
        if data.strip() == "[DONE]":
            finished = True
            return
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamError(f"an event of the stream is not valid JSON: it begins {json.dumps(data[:60])}") from None
        if not isinstance(message, dict):
            raise StreamError(f"an event of the stream is not an object: it begins {json.dumps(data[:60])}")
        if message.get("error"):
            error = message["error"]
            text = error.get("message", error) if isinstance(error, dict) else error
            raise StreamError(f"the server stopped after {count_of(count, 'piece')}: {one_line(str(text))}")
        model = model or str(message.get("model") or "")
        if isinstance(message.get("usage"), dict):
            usage = message["usage"]
        choices = message.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise StreamError(f"choices in an event of the stream are invalid: it begins {json.dumps(data[:60])}")
        for choice in choices:
            if _has_text(choice):
                count += 1
                first_ns = first_ns or now_ns
            finished = finished or bool(choice.get("finish_reason"))

    now_ns = clock_ns()
    try:
        for piece in pieces:
            now_ns = clock_ns()
            for data in events.feed(piece):
                read(data, now_ns)
        for data in events.end():
            read(data, now_ns)
    finally:
        # Close the stream; if it is not complete, this closes the connection.
        close = getattr(pieces, "close", None)
        if callable(close):
            close()
    if not events.has_events:
        start = " ".join(events.began[:200].decode("utf-8", "replace").split())[:60]
        raise StreamError(
            f"the answer is not an event stream (it begins {json.dumps(start)}): prefill and decode are unknown"
        )
    if not finished:
        raise StreamError(
            f"the stream ended after {count_of(count, 'piece')}, without [DONE] or a finish_reason: it was cut off"
        )
    details = usage.get("prompt_tokens_details")
    return Generated(
        first_ns=first_ns or now_ns,
        end_ns=now_ns,
        pieces=count,
        prompt_tokens=_whole(usage.get("prompt_tokens")) or 0,
        output_tokens=_whole(usage.get("completion_tokens")),
        cached_tokens=(_whole(details.get("cached_tokens")) or 0) if isinstance(details, dict) else 0,
        model=model,
    )


def _has_text(choice: Any) -> bool:
    """Return whether a choice of a chunk contains text; the first one of a chat contains only the role."""
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
