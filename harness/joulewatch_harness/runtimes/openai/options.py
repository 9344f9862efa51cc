"""The options of the runtime ``openai``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final

from joulewatch_harness import files
from joulewatch_harness.binder import Choice, Limits, Parse
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.http import ServerOptions

APIS: Final[Mapping[str, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
DEFAULT_PROMPT: Final = "Explain in plain words how a transistor works, what it is made of, and what it is used for."
DEFAULT_MAX_TOKENS: Final = 128


def _without_version(url: str) -> str:
    """Return a URL without /v1, with which the paths of ``APIS`` begin: both forms of URL are in use."""
    return url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, kw_only=True)
class Options(ServerOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "openai"

    url: Annotated[str, Parse(_without_version)] = ""
    """URL of the server, with or without ``/v1``. Required."""
    api_key_file: Path | None = None
    """File with the API key; the same as ``bearer_token_file``."""
    api: Annotated[str, Choice(tuple(APIS))] = "chat"
    """Chat completions or plain completions."""
    prompt: str | None = None
    """The prompt. Default: a built-in question."""
    prompt_file: Path | None = None
    """A text, or lines of JSON in a .jsonl file: strings, or objects with ``prompt``; used in turn."""
    max_tokens: Annotated[int, Limits(ge=1)] = DEFAULT_MAX_TOKENS
    """Most tokens of an answer."""
    temperature: Annotated[float, Limits(ge=0, le=100)] = 0.0
    """Sampling temperature."""
    seed: Annotated[int, Limits(ge=0)] = 0
    """Sampling seed."""
    ignore_eos: bool = False
    """Let every answer have ``max_tokens`` tokens; vLLM, SGLang and llama.cpp support it."""
    salt: bool = True
    """Put a unique number before each prompt, so that no server answers from its prefix cache."""
    count_chunks: bool = False
    """If the server counts no tokens, count the pieces of its stream; results then report pieces."""
    prompts: tuple[str, ...] = field(default=(), init=False)
    """Used in turn."""

    def __post_init__(self) -> None:
        if self.api_key_file is not None:
            if self.bearer_token_file is not None:
                raise ConfigError("api_key_file and bearer_token_file are the same option: give only one of them")
            object.__setattr__(self, "bearer_token_file", self.api_key_file)
        super().__post_init__()
        object.__setattr__(self, "prompts", _prompts(self.prompt, self.prompt_file))


def _prompts(prompt: str | None, path: Path | None) -> tuple[str, ...]:
    if prompt is not None and path is not None:
        raise ConfigError("prompt and prompt_file contradict each other")
    prompts = (DEFAULT_PROMPT if prompt is None else prompt,) if path is None else _prompts_of_file(path)
    if not prompts or not all(prompts):
        raise ConfigError("the prompt is empty (options prompt and prompt_file)")
    return prompts


def _prompts_of_file(path: Path) -> tuple[str, ...]:
    try:
        text = files.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"prompt_file: {path} cannot be read: {reason}") from error
    if path.suffix != ".jsonl":
        return (text.strip(),)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return tuple(_prompt(path, number, line) for number, line in lines)


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    value = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise ConfigError(f"prompt_file: {path}, line {number}: must be a string, or an object with 'prompt'")
    return value
