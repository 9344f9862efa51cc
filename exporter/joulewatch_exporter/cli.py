"""The command ``joulewatch-exporter``: arguments, signals, exit codes, and the one place that sets up logging.

Exit codes: 0 done, 1 failed (``check``: nothing measured), 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from joulewatch_exporter import __version__
from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_exporter.collectors import all_families
from joulewatch_exporter.commands.once import once
from joulewatch_exporter.commands.serve import allow_many_files, serve
from joulewatch_exporter.config.config import Config, ExporterSettings, PathSettings, load_config
from joulewatch_exporter.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError, ExporterError
from joulewatch_exporter.logs import set_up_logging
from joulewatch_exporter.model import Collector

logger = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None, families: Sequence[type[Collector]] | None = None) -> int:
    """Run ``joulewatch-exporter``.

    Args:
        argv: The words after the command; None: the process's.
        families: The sensor families; None: our own, and those that installed packages offer.

    Returns:
        The exit code.
    """
    try:
        if families is None:
            families = all_families()
        args = _parser(families).parse_args(argv)
        if args.command == "emulate":
            return _emulate(args)
        config = _config(args, families)
        set_up_logging(config.exporter)
        host = config.exporter.path.host()
        if args.command == "check":
            from joulewatch_exporter.commands import check as doctor

            return doctor.check(families, host, config.collectors, as_json=args.format == "json")
        allow_many_files()
        if args.once:
            return once(families, host, config)
        return serve(families, host, config, exit_on_stdin_close=args.exit_on_stdin_close)
    except ConfigError as error:
        print(f"joulewatch-exporter: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except ExporterError as error:
        print(f"joulewatch-exporter: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of a pipe has seen enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_DONE


# -- arguments -------------------------------------------------------------------------------------


def _parser(families: Sequence[type[Collector]]) -> argparse.ArgumentParser:
    defaults = ExporterSettings()
    # Given before or after a subcommand: so no default may overwrite what the other parser has read.
    shared = _Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    shared.add_argument("--config.file", dest="config_file", type=Path, metavar="FILE", help="configuration (YAML)")
    paths = shared.add_argument_group("where the machine's files are")
    paths.add_argument("--path.sysfs", dest="sysfs", type=Path, metavar="DIR", help="default: /sys")
    paths.add_argument("--path.procfs", dest="procfs", type=Path, metavar="DIR", help="default: /proc")
    paths.add_argument("--path.dev", dest="dev", type=Path, metavar="DIR", help="default: /dev")
    sensors = shared.add_argument_group("sensor families (default: those that are there)")
    for family in families:
        name = family.name
        sensors.add_argument(
            f"--collector.{name}", dest=f"collector_{name}", action="store_true", help=f"insist on {name}"
        )
        sensors.add_argument(
            f"--no-collector.{name}", dest=f"collector_{name}", action="store_false", help=f"do without {name}"
        )
    log = shared.add_argument_group("logging, to stderr")
    log.add_argument("--log.level", dest="log_level", choices=("debug", "info", "warning", "error"))
    log.add_argument("--log.format", dest="log_format", choices=("logfmt", "json"))

    parser = _Parser(
        prog="joulewatch-exporter",
        description="Power and energy of this machine's sensors for Prometheus.",
        parents=[shared],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    version = f"joulewatch-exporter {__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--once", action="store_true", default=False, help="print one scrape and end")
    parser.add_argument(
        "--exit-on-stdin-close",
        dest="exit_on_stdin_close",
        action="store_true",
        default=False,
        help="end when stdin reaches its end: a child ends with its parent",
    )
    web = parser.add_argument_group("web server")
    web.add_argument(
        "--web.listen-address",
        dest="listen",
        action="append",
        metavar="HOST:PORT",
        help=f"may be given several times; port 0: a free one (default: :{DEFAULT_PORT})",
    )
    web.add_argument(
        "--web.telemetry-path", dest="telemetry_path", metavar="PATH", help=f"default: {defaults.telemetry_path}"
    )
    web.add_argument(
        "--web.config.file", dest="web_config_file", type=Path, metavar="FILE", help="TLS and basic auth (YAML)"
    )
    web.add_argument(
        "--web.max-requests",
        dest="max_requests",
        type=int,
        metavar="N",
        help=f"scrapes at the same time, 0: any number (default: {defaults.max_requests})",
    )
    web.add_argument(
        "--web.disable-exporter-metrics",
        dest="exporter_metrics",
        action="store_false",
        help="leave out process_* and python_info",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser, required=False)
    parser.set_defaults(command=None)
    check = commands.add_parser(
        "check",
        parents=[shared],
        allow_abbrev=False,
        help="say of every sensor whether it was found, is missing or denied, why, and what cures it",
        description="Say of every sensor whether it was found, is missing or denied, why, and what cures it.",
    )
    check.add_argument("--format", choices=("table", "json"), default="table")
    emulate = commands.add_parser(
        "emulate",
        allow_abbrev=False,
        help="write a machine of known truth into a folder and keep it moving",
        description="Write a machine of known truth into a folder and keep it moving until SIGTERM.",
    )
    emulate.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a built-in scenario or a YAML file")
    emulate.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="where to write sys/, proc/, truth")
    emulate.add_argument("--duration", type=_seconds, default=None, metavar="S", help="end after so many seconds")
    emulate.add_argument("--list", action="store_true", help="list the built-in scenarios")
    emulate.add_argument("--log.level", dest="log_level", choices=("debug", "info", "warning", "error"))
    emulate.set_defaults(parser=emulate)
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _config(args: argparse.Namespace, families: Sequence[type[Collector]]) -> Config:
    """Defaults, then the file, then the flags."""
    given = vars(args)
    config = load_config(given.get("config_file"), families)
    settings = config.exporter
    path = _replaced(settings.path, {name: given[name] for name in ("sysfs", "procfs", "dev") if name in given})
    names = {item.name for item in dataclasses.fields(ExporterSettings)} - {"path"}
    changes = {name: value for name, value in given.items() if name in names}
    if "listen" in changes:
        changes["listen"] = tuple(changes["listen"])
    try:
        settings = dataclasses.replace(settings, path=path, **changes)
    except ValueError as error:
        key, _, text = str(error).partition(": ")
        flag = {"listen": "listen-address"}.get(key, key.replace("_", "-"))
        raise ConfigError(f"--web.{flag}: {text}") from error
    collectors = {
        name: dataclasses.replace(setting, enabled=given.get(f"collector_{name}", setting.enabled))
        for name, setting in config.collectors.items()
    }
    return Config(exporter=settings, collectors=collectors)


def _replaced(path: PathSettings, changes: dict[str, Path]) -> PathSettings:
    return dataclasses.replace(path, **changes)


# -- logging ---------------------------------------------------------------------------------------


# -- the commands ----------------------------------------------------------------------------------


def _emulate(args: argparse.Namespace) -> int:
    from joulewatch_exporter.emulator import main as emulator
    from joulewatch_exporter.emulator.scenario import builtin_names

    logging.basicConfig(level=(args.log_level or "info").upper(), stream=sys.stderr, format="%(levelname)s %(message)s")
    if args.list:
        for name in builtin_names():
            print(name)  # noqa: T201
        return EXIT_DONE
    if args.scenario is None or args.directory is None:
        args.parser.error("needs SCENARIO and DIR (--list shows the built-in scenarios)")
    return emulator.run(args.scenario, args.directory, args.duration)
