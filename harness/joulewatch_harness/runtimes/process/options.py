"""The options of the runtime ``process``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

from joulewatch_harness.binder import Limits, Parse
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.options import RuntimeOptions

DEFAULT_TOLERANCE: Final = 1e-3

_LIMITS: Final[Mapping[str, float]] = {
    "start_limit_s": 60.0,
    "load_limit_s": 600.0,
    "prepare_limit_s": 120.0,
    "run_limit_s": 120.0,
    "close_limit_s": 10.0,
}
_ENVIRONMENT: Final = "env."


def _variables(variables: object) -> object:
    if not isinstance(variables, dict) or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in variables):
        raise ConfigError("variables of the environment are given as env.NAME=VALUE")
    if any("\0" in value for value in variables.values()):
        raise ConfigError("a variable of the environment must not contain NUL")
    return variables


def _unless_auto(word: str) -> str | None:
    return None if word.lower() == "auto" else word


Limit = Annotated[float, Limits(gt=0, unit="seconds")]


@dataclass(frozen=True, kw_only=True)
class Options(RuntimeOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "process"

    command: str = ""
    """The program and its arguments. Required."""
    cwd: Path | None = None
    """Working directory of the program."""
    env: Annotated[Mapping[str, str], Parse(_variables)] = field(default_factory=dict)
    """Variables of the environment, each given as ``env.NAME=VALUE``."""
    threads: Annotated[int, Limits(ge=1)] | None = None
    """Threads that the child must use, and report."""
    time_limit_s: Limit | None = None
    """Sets the following time limits."""
    start_limit_s: Limit | None = None
    """Time limit of the start. Default: 60."""
    load_limit_s: Limit | None = None
    """Time limit of loading the network. Default: 600."""
    prepare_limit_s: Limit | None = None
    """Time limit of preparing a batch size. Default: 120."""
    run_limit_s: Limit | None = None
    """Time limit of a call that runs batches. Default: 120."""
    close_limit_s: Limit | None = None
    """Time limit of the end. Default: 10."""
    phases: bool = True
    """Let the child measure phases; false shows what measuring them costs."""
    check: Annotated[bool | None, Parse(_unless_auto)] = None
    """Check the computed values: true, false or auto. Default: auto, if the child offers it."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Expected values of the child's check: ``sum=1.5,first=0.25``."""
    tolerance: Annotated[float, Limits(gt=0)] = DEFAULT_TOLERANCE
    """Largest relative difference from ``reference``."""
    stderr: Path | None = None
    """File for what the child writes to stderr."""
    transcript: Path | None = None
    """File for all messages to and from the child."""
    words: tuple[str, ...] = field(default=(), init=False)
    """The path of the program, then its arguments, beginning with its name."""

    def __post_init__(self) -> None:
        if self.cwd is not None and not self.cwd.is_dir():
            raise ConfigError(f"cwd: no folder {self.cwd}")
        object.__setattr__(self, "words", _command(self.command, self.cwd, self.env))

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Convert the options; see ``RuntimeOptions``."""
        variables = {key[len(_ENVIRONMENT) :]: value for key, value in options.items() if key.startswith(_ENVIRONMENT)}
        others = {key: value for key, value in options.items() if not key.startswith(_ENVIRONMENT)}
        given: Mapping[str, Any] = {**others, "env": variables} if variables else others
        return super().parse(given)

    def limit_s(self, name: str) -> float:
        """Return the time limit ``name``, such as ``run_limit_s``."""
        limit_s: float | None = getattr(self, name)
        return limit_s or self.time_limit_s or _LIMITS[name]


def _command(text: str, cwd: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"command: {text!r}: {error}") from error
    if not words:
        raise ConfigError("command: is required: the program to run, such as command='./child --model net.onnx'")
    program = words[0]
    if "/" in program:
        path = (cwd or Path()) / program
        if not path.is_file():
            raise ConfigError(f"command: no program {path}")
        if not os.access(path, os.X_OK):
            raise ConfigError(f"command: {path} is not executable: chmod +x {path}")
        return (str(path.absolute()), *words)
    executable = shutil.which(program, path=environment.get("PATH"))
    if executable is None:
        raise ConfigError(f"command: no program {program!r} on PATH; for one in the current folder, write ./{program}")
    return (str(Path(executable).absolute()), *words)
