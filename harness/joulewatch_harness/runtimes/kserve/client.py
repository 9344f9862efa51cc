"""What a client of a KServe v2 server offers, whatever it speaks."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from joulewatch_harness.runtimes.kserve.tensors import Given, Output, Tensor

Question = Literal["server", "model", "ready", "config", "statistics", "index"]
"""The last three are extensions that Triton has."""


class Outcome(enum.Enum):
    """What became of a request, in words that HTTP and gRPC share."""

    DONE = enum.auto()
    REFUSED = enum.auto()
    """The server does not take such a request."""
    DENIED = enum.auto()
    """A key is missing or wrong."""
    UNKNOWN = enum.auto()
    """There is no such model, or the server cannot do this."""
    TOO_LARGE = enum.auto()
    BUSY = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, besides tensors."""

    outcome: Outcome
    where: str
    """What was asked: a URL, for messages."""
    said: str
    """The server's own words, without secrets: ``HTTP 400: no such input``."""
    told: Any = None
    """The message, as JSON has it; None where there is none."""


class RefusedError(Exception):
    """A request for an inference had another outcome than outputs."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.said)
        self.reply = reply


class Client(Protocol):
    """Connections to one model of one server."""

    @property
    def shown(self) -> str:
        """The model's URL, for messages."""
        ...

    def open(self, lanes: int) -> None:
        """Have so many connections; they are made when they are first needed."""
        ...

    def close(self) -> None:
        """Close them; safe to call twice."""
        ...

    def ask(self, question: Question) -> Reply:
        """Ask what the server, or the model, is.

        Raises:
            NetworkError: nothing answers.
        """
        ...

    def prepare(self, inputs: Given, outputs: Sequence[Tensor]) -> None:
        """From now on requests are of these inputs, and for these outputs."""
        ...

    def pack(self) -> Any:
        """A request, ready to be sent."""
        ...

    def send(self, lane: int, request: Any) -> Any:
        """Send it on a connection, used by one thread at a time, and wait for the whole answer.

        Raises:
            NetworkError: no answer, or none in time.
            RefusedError: the server's answer is an error.
        """
        ...

    def unpack(self, answer: Any) -> Mapping[str, Output]:
        """The outputs in an answer.

        Raises:
            RefusedError: the server's answer is an error.
            ValueError: it is no answer of the protocol; the text says why.
        """
        ...

    def faults(self, timed: Callable[[], float], small: bool) -> Sequence[str]:
        """What is wrong with how the server answers on the first connection, apart from what it answers.

        Args:
            timed: Makes one request there, and tells how long it took, in seconds.
            small: Whether such a request is so small that its way takes no time worth mentioning.
        """
        ...
