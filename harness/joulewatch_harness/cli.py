"""The command ``joulewatch``: select the subcommand, set up logging, turn errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad arguments or configuration, 3 audit failed under ``--strict`` or
energy above a limit, 4 undecided.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from joulewatch_exporter.arguments import Parser
from joulewatch_exporter.streams import guard
from joulewatch_harness import __version__
from joulewatch_harness.errors import JoulewatchError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

SUMMARIES: Final = {
    "profile": "measure the energy of a network over batch sizes and precisions",
    "measure": "run a command and show its energy, as perf stat does",
    "analyze": "compute joules per inference from a stored run: table, CSV, JSON, figure",
    "compare": "compare configurations or runs and report which differences are significant",
    "ci": "compare the energy of a command in two git revisions, with a report for a pull request",
    "report": "write one or several runs as a self-contained HTML page, or as PDF",
    "layers": "show the time of each operator from the runtime's own trace, and an estimate of its energy",
    "fit": "fit models of the energy per inference to runs and tables, and show their errors",
    "predict": "predict energy and throughput of a network on a device, with an interval",
    "recommend": "rank devices by the energy of a network at a rate, and report whether the best one is certain",
    "device": "list the cards of devices, show one with its sources, or write one from a run",
    "energy": "show the energy of any window of time, from any source",
    "calibrate": "compare a sensor with a meter over the windows of a run, and write its calibration",
    "import": "turn the log of another meter or tool into a recording that energy and analyze read",
    "sensors": "list the sensors of an exporter, and how short a window each one can measure",
    "runs": "list the stored runs, or push one to Prometheus",
    "export": "convert a recording to OpenMetrics text for promtool",
    "networks": "list the built-in networks with their precisions and options",
    "runtimes": "list the runtimes with their options, and whether they are installed",
}
"""Subcommand -> one line of help; each is defined in ``commands/<name>.py``, imported only when it is needed."""
_MODULES: Final = {"import": "import_log"}
"""Subcommand -> module, where the name is a keyword of Python."""

EXAMPLES: Final = (
    ("joulewatch profile --preset quick", "measure the built-in network in about a minute"),
    ("joulewatch profile --model my.onnx --batch-sizes 1..64", "measure your own ONNX model"),
    ("joulewatch runs", "list the stored runs; 'joulewatch analyze RUN' shows one again"),
)
"""What a new user is most likely to need next; shown by ``--help`` and without arguments."""

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
    """The interface of the modules in ``commands/``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def make_parser(commands: Iterable[str] = SUMMARIES) -> Parser:
    """Return the parser; only the subcommands named by ``commands`` are imported and have their arguments."""
    parser = Parser(
        prog="joulewatch", description="Measure what a neural network's inference costs in energy.", examples=EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"joulewatch {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser, required=True)
    for name, summary in SUMMARIES.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument(
            "--log.level",
            dest="log_level",
            default="warning",
            choices=("debug", "info", "warning", "error"),
            help="lowest level to log to stderr (default: warning)",
        )
        if name in commands:
            module = _module(name)
            module.add_arguments(sub)
            sub.set_defaults(function=module.run)
    return parser


def _module(command: str) -> Command:
    name = _MODULES.get(command, command)
    return cast(Command, importlib.import_module(f"joulewatch_harness.commands.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``joulewatch`` with ``argv``; returns the exit code."""
    return guard("joulewatch", lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        parser = make_parser((command,))
        if not words:
            parser.print_help(sys.stderr)
            return EXIT_USAGE
        args = parser.parse_args(words)
        logging.basicConfig(
            level=args.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
        )
        return int(args.function(args))
    except JoulewatchError as error:
        print(f"joulewatch: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("joulewatch: interrupted", file=sys.stderr)  # noqa: T201
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
