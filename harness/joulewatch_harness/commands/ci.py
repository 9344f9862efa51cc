"""``joulewatch ci``: compare the energy of a command in two revisions of a repository."""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.commands.compare import add_limit_argument, read
from joulewatch_harness.commands.options import check_folder, write_file
from joulewatch_harness.errors import ConfigError, JoulewatchError
from joulewatch_harness.plan.plan import DEFAULT_OUTPUT

if TYPE_CHECKING:
    from joulewatch_harness.metering.child import Child, Outcome
    from joulewatch_harness.metering.meter import Meter

DEFAULT_LIMIT: Final = 3.0
DEFAULT_ROUNDS: Final = 10
LEAST_ROUNDS: Final = 2
STDERR: Final = 2
"""The command writes there, because stdout has the report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch ci``."""
    parser.add_argument("words", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="command with its arguments")
    parser.add_argument("--base", metavar="REVISION", required=True, help="revision to compare HEAD with")
    parser.add_argument(
        "--build", metavar="COMMAND", help="shell command that is run first in each of the two worktrees"
    )
    add_limit_argument(parser, DEFAULT_LIMIT)
    parser.add_argument(
        "-r",
        "--rounds",
        metavar="N",
        type=int,
        default=DEFAULT_ROUNDS,
        help=f"executions of each revision (default: {DEFAULT_ROUNDS})",
    )
    parser.add_argument(
        "--inferences", metavar="N", type=int, default=1, help="inferences in one execution, for joules per inference"
    )
    parser.add_argument(
        "--exporter",
        action="append",
        metavar="URL",
        help="exporter to read; repeatable (default: $JOULEWATCH_EXPORTER, else that of this machine, else one is "
        "started)",
    )
    parser.add_argument("--exporter.flags", dest="exporter_flags", help="flags for the exporter that is started")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the report to a file (default: stdout)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path(DEFAULT_OUTPUT), help="directory of all runs (default: runs)"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch ci``.

    Raises:
        ConfigError: Bad arguments, no git repository, uncommitted changes, or an unknown revision.
        ExporterUnreachableError: No exporter answers, or it has no energy sensor.
        JoulewatchError: The build or the command failed, or a signal ended it.
    """
    from joulewatch_harness.analysis.results.compare import compare
    from joulewatch_harness.analysis.results.gate import check_comparison, exit_code
    from joulewatch_harness.analysis.results.stored_results import Side
    from joulewatch_harness.metering.child import Child
    from joulewatch_harness.metering.ci_report import Report, markdown
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.metering.worktrees import Repository

    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    _check(args, command)
    repository = Repository.open()
    commits = {"base": repository.commit(args.base), "head": repository.commit("HEAD")}
    child = Child()
    meter = Meter(
        args.exporter or (),
        output=args.output,
        exporter_flags=shlex.split(args.exporter_flags or ""),
        runtime="command",
    )
    with meter, child.signals_forwarded(), repository.worktrees(commits) as folders:
        if args.build:
            for name, folder in folders.items():
                _say(f"building {name} ({commits[name][:10]})")
                _run(child, ["sh", "-c", args.build], folder, f"--build {args.build!r}, {name}")
        _measure(meter, child, command, folders, rounds=args.rounds, inferences=args.inferences)
    stored = read(str(meter.folder), args.output, None)
    comparison = compare([(Side(stored, "base"), Side(stored, "head"))])
    per = "inference" if args.inferences > 1 else "execution"
    (check,) = (replace(check, name=f"energy per {per}") for check in check_comparison(comparison, args.fail_above))
    text = markdown(
        Report(
            command=command,
            commits=commits,
            rounds=args.rounds,
            inferences=args.inferences,
            run=meter.run,
            comparison=comparison,
            check=check,
        )
    )
    if args.out is not None:
        write_file("--out", args.out, text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
    return exit_code([check])


def _check(args: argparse.Namespace, command: Sequence[str]) -> None:
    if not command:
        raise ConfigError("ci: no command; write it at the end: joulewatch ci --base main -- python program.py")
    if args.rounds < LEAST_ROUNDS:
        raise ConfigError(f"--rounds {args.rounds}: must be at least {LEAST_ROUNDS}, to see the scatter")
    if args.inferences < 1:
        raise ConfigError(f"--inferences {args.inferences}: must be at least 1")
    if args.out is not None:
        check_folder("--out", args.out)


def _measure(
    meter: Meter, child: Child, command: Sequence[str], folders: Mapping[str, Path], *, rounds: int, inferences: int
) -> None:
    """Execute the command in both folders in each round, in random order, after one execution that does not count."""
    from joulewatch_harness.metering.child import NotStartedError
    from joulewatch_harness.metering.execution import execute

    for name, folder in folders.items():
        _say(f"warm-up of {name}")
        _run(child, command, folder, f"the command, {name}")
    # The order can be repeated from the id of the run.
    order = random.Random(meter.run)
    for count in range(1, rounds + 1):
        _say(f"round {count} of {rounds}")
        for name in order.sample(sorted(folders), len(folders)):
            try:
                _, outcome = execute(
                    meter, child, command, name=name, inferences=inferences, folder=folders[name], stdout=STDERR
                )
            except NotStartedError as error:
                raise JoulewatchError(f"the command, {name}: {error}") from error
            _check_outcome(child, outcome, f"the command, {name}")


def _run(child: Child, command: Sequence[str], folder: Path, title: str) -> None:
    """Execute a command without measuring it.

    Raises:
        JoulewatchError: It failed, or a signal ended it.
    """
    from joulewatch_harness.metering.child import NotStartedError

    if child.ended_by is None:
        try:
            outcome = child.run(command, folder=folder, stdout=STDERR)
        except NotStartedError as error:
            raise JoulewatchError(f"{title}: {error}") from error
        _check_outcome(child, outcome, title)
    _check_signal(child)


def _check_outcome(child: Child, outcome: Outcome, title: str) -> None:
    _check_signal(child)
    if outcome.exit_code:
        raise JoulewatchError(f"{title}: failed with exit code {outcome.exit_code}")


def _check_signal(child: Child) -> None:
    if child.ended_by is not None:
        raise JoulewatchError(f"ended by {signal.Signals(child.ended_by).name}")


def _say(text: str) -> None:
    print(f"joulewatch: {text}", file=sys.stderr, flush=True)  # noqa: T201
