"""The counters of LLM servers, from ``llm_servers.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from joulewatch_harness.binder import bind, read_yaml

FILE: Final = Path(__file__).parent / "llm_servers.yaml"


@dataclass(frozen=True, kw_only=True)
class LLMServer:
    """One server: names of metrics; an empty one does not exist."""

    output: tuple[str, ...] = ()
    """Counters of output tokens, under each name that versions of the server give it."""
    input: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    """Input tokens that were found in a cache."""
    requests: tuple[str, ...] = ()
    model: str = ""
    """Label with the name of the model."""
    counted: Literal["step", "request"]
    """Whether tokens are counted as they are produced, or when their request ends."""
    front_end: bool = False
    """Whether it passes on requests to engines, whose own counters count the same tokens."""
    running: str = ""
    """Gauge of the requests in progress."""
    kv_usage: str = ""
    """Gauge of the share of the KV cache in use."""
    first_token: str = ""
    """Histogram of the seconds to the first token."""
    inter_token: str = ""
    """Histogram of the seconds between two tokens."""
    prefill: str = ""
    """Counter of the seconds that requests were in prefill: requests at the same time are added."""
    decode: str = ""
    """The same for decode."""


@dataclass(frozen=True, kw_only=True)
class _File:
    servers: Mapping[str, LLMServer]


@cache
def llm_servers() -> Mapping[str, LLMServer]:
    """Return every server by its name.

    Raises:
        ConfigError: The file is not valid.
    """
    return bind(_File, read_yaml(FILE), str(FILE)).servers
