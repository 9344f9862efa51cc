"""The argument parser of both commands: one-line errors that name the nearest valid word, and examples in the help.

``number`` is the type of every flag with a decimal number, so that none accepts NaN or infinity.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn

_LONGEST_WORD: Final = 100
CUTOFF: Final = 0.5
"""Similarity from which a word is suggested (``difflib``: 1 is equal)."""
_WITHOUT_VALUE: Final = re.compile(r"argument (--\S+): expected one argument$")
"""argparse's message about a flag that is followed by another flag, or by nothing."""


class Parser(argparse.ArgumentParser):
    """``argparse`` with helpful errors.

    argparse itself takes the value of a misspelt flag for a command, and lists all choices without naming the
    nearest one.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        """Create a parser.

        Args:
            args: As in argparse.
            examples: Commands to show under the help, each with what it does.
            settings: As in argparse.
        """
        super().__init__(*args, **settings)
        self.examples = tuple(examples)
        self.usage_exit_code = 2

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores that stdout is full.
        if message:
            (file or sys.stderr).write(message)

    def format_help(self) -> str:
        """Return argparse's help, followed by the examples."""
        lines = [line for command, purpose in self.examples for line in (f"  {command}", f"      {purpose}")]
        return super().format_help() + ("\n".join(["", "examples:", *lines, ""]) if lines else "")

    def error(self, message: str) -> NoReturn:
        """Print one line and where to find help; exit with ``usage_exit_code``."""
        flag = _WITHOUT_VALUE.match(message)
        if flag is not None:
            message += f"; if its value begins with -, write {flag[1]}=VALUE"
        self.exit(self.usage_exit_code, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does, but check the names of flags before a flag's value can be taken for a command."""
        words = sys.argv[1:] if args is None else list(args)
        self._check_flags(words)
        return super().parse_known_args(words, namespace)

    def _check_flags(self, words: Sequence[str]) -> None:
        flags = self._option_string_actions
        for before, word in zip(("", *words), words, strict=False):
            if word == "--" or word in self.commands:
                return  # operands, or words that the command's own parser checks
            flag = word.partition("=")[0]
            if not flag.startswith("--") or " " in word:  # argparse takes a word with a space for a value
                continue
            if flag not in flags and not self._is_abbreviation(flag):
                takes_value = before in flags and flags[before].nargs is None
                value = f"; if it is the value of {before}, write {before}={word}" if takes_value else ""
                self.error(f"unknown flag {flag}{suggestion(flag, flags)}{value}")

    def _is_abbreviation(self, flag: str) -> bool:
        return self.allow_abbrev and any(known.startswith(flag) for known in self._option_string_actions)

    @property
    def commands(self) -> dict[str, argparse.ArgumentParser]:
        """The subcommands with their parsers; empty if there are none."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if "" in arg_strings and not isinstance(action, argparse._SubParsersAction):
            # As from --prometheus "$URL" without URL: without this error, the default would apply.
            raise argparse.ArgumentError(action, "the value is empty; is a shell variable unset?")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        hint = suggestion(str(value), choices)
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"unknown command {value!r}{hint} (commands: {', '.join(choices)})")
        raise argparse.ArgumentError(action, f"invalid value {value!r}{hint} (choose from {', '.join(choices)})")


def number(*, gt: float = -math.inf, ge: float = -math.inf, le: float = math.inf) -> Callable[[str], float]:
    """Return the argparse type of a finite number within limits."""
    limits = " and ".join(
        f"{sign} {limit:g}" for sign, limit in ((">", gt), (">=", ge), ("<=", le)) if math.isfinite(limit)
    )

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and gt < value and ge <= value <= le):
            raise argparse.ArgumentTypeError(f"must be a number {limits}".rstrip() + f", got {text!r}")
        return value

    return parse


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known word nearest to ``word``, or nothing if none is near."""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word[:_LONGEST_WORD].lower(), names, n=1, cutoff=CUTOFF)
    return f"; did you mean {names[near[0]]}?" if near else ""
