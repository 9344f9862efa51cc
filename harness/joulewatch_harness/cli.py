"""The command ``joulewatch``: picks the subcommand, sets up logging, turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad arguments or configuration, 3 audit failed under ``--strict``.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn, Protocol, cast

from joulewatch_harness import __version__
from joulewatch_harness.errors import JoulewatchError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

SUMMARIES: Final = {
    "profile": "run a network under test over batch sizes and precisions, and measure its energy",
    "analyze": "turn a run into joules per inference: table, CSV, JSON, figure",
    "compare": "tell what differs between configurations or runs, and whether it is certain",
    "layers": "time per operator from the runtime's own trace, energy per operator as an estimate",
    "energy": "energy of any window of time, from any source",
    "runs": "list the runs that are stored, or push one to Prometheus",
    "export": "turn a recording into OpenMetrics text for promtool",
}
"""Subcommand -> one line of help; each lives in ``commands/<name>.py``, imported only when it is named."""

_PACKAGE_EXTRAS: Final = {
    "numpy": "analysis",
    "requests": "analysis",
    "rich": "analysis",
    "matplotlib": "analysis",
    "onnxruntime": "onnxruntime",
    "onnx": "onnxruntime",
    "sympy": "onnxruntime",
}


class Command(Protocol):
    """What a module of ``commands/`` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def _parser(command: str | None) -> tuple[argparse.ArgumentParser, Command | None]:
    parser = _Parser(prog="joulewatch", description="What a neural network's inference costs in energy.")
    parser.add_argument("--version", action="version", version=f"joulewatch {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser, required=True)
    module: Command | None = None
    for name, summary in SUMMARIES.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument(
            "--log.level",
            dest="log_level",
            default="warning",
            choices=("debug", "info", "warning", "error"),
            help="what is logged to stderr (default: warning)",
        )
        if name == command:
            module = cast(Command, importlib.import_module(f"joulewatch_harness.commands.{name}"))
            module.add_arguments(sub)
    return parser, module


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``joulewatch`` with ``argv``; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        parser, module = _parser(command)
        args = parser.parse_args(words)
        if module is None:
            parser.error(f"unknown command {command!r}")
        logging.basicConfig(
            level=args.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
        )
        return module.run(args)
    except JoulewatchError as error:
        print(f"joulewatch: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("joulewatch: interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our stdout has gone (`joulewatch runs | head`): nothing to say and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        extra = _PACKAGE_EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(  # noqa: T201
            f"joulewatch: {command} needs the package {error.name}: pip install 'joulewatch[{extra}]'",
            file=sys.stderr,
        )
        return EXIT_USAGE
