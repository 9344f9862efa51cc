"""The protocol of clients of KServe v2 servers, for HTTP and gRPC."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from joulewatch_harness.runtimes.kserve.tensors import Given, Output, Tensor

Question = Literal["server", "model", "ready", "config", "statistics", "index"]
"""The last three are extensions of Triton."""


class Outcome(enum.Enum):
    """The outcome of a request, for HTTP and gRPC."""

    DONE = enum.auto()
    REFUSED = enum.auto()
    """The server does not accept such a request."""
    DENIED = enum.auto()
    """A key is missing or wrong."""
    UNKNOWN = enum.auto()
    """The model does not exist, or the server does not support the request."""
    TOO_LARGE = enum.auto()
    BUSY = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer without tensors."""

    outcome: Outcome
    where: str
    """The URL of the request, for messages."""
    text: str
    """The message of the server, without secrets: ``HTTP 400: no such input``."""
    data: Any = None
    """The content of the answer, as in JSON; None without a content."""


class RefusedError(Exception):
    """A request for an inference was answered without outputs."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


class Client(Protocol):
    """Connections to one model of one server."""

    @property
    def shown(self) -> str:
        """The model's URL, for messages."""
        ...

    def open(self, lanes: int) -> None:
        """Create this number of connections, which connect when they are first used."""
        ...

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        ...

    def ask(self, question: Question) -> Reply:
        """Request a description of the server or the model.

        Raises:
            NetworkError: no answer.
        """
        ...

    def prepare(self, inputs: Given, outputs: Sequence[Tensor]) -> None:
        """Set inputs and outputs of the next requests."""
        ...

    def pack(self) -> Any:
        """Return a request that can be sent."""
        ...

    def send(self, lane: int, request: Any) -> Any:
        """Send a request on a connection, which one thread at a time uses, and wait for the complete answer.

        Raises:
            NetworkError: no answer, or none in time.
            RefusedError: the server's answer is an error.
        """
        ...

    def unpack(self, answer: Any) -> Mapping[str, Output]:
        """Return the outputs in an answer.

        Raises:
            RefusedError: the server's answer is an error.
            ValueError: the answer does not follow the protocol; the text contains the reason.
        """
        ...

    def faults(self, timed: Callable[[], float], small: bool) -> Sequence[str]:
        """Return problems of the connection, such as a delay in every answer.

        Args:
            timed: Sends one request on the first connection, and returns its duration in seconds.
            small: The request is so small that its transfer time does not matter.
        """
        ...
