"""The command ``joulewatch-exporter``: arguments and exit codes.

Exit codes: 0 done, 1 failed (``check``: nothing measured; ``--once``: no sensor found), 2 bad arguments or
configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from joulewatch_exporter import __version__
from joulewatch_exporter.arguments import Parser, number
from joulewatch_exporter.attribution.model import UsageSource
from joulewatch_exporter.attribution.sources import all_sources
from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_exporter.collectors import all_families, experimental_note
from joulewatch_exporter.commands.once import once
from joulewatch_exporter.commands.serve import allow_many_files, serve, use_few_arenas
from joulewatch_exporter.config.config import Config, ExporterSettings, load_config
from joulewatch_exporter.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError, ExporterError
from joulewatch_exporter.logs import set_up_logging
from joulewatch_exporter.model import Collector
from joulewatch_exporter.streams import guard
from joulewatch_exporter.text import printable

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
EXAMPLES: Final = (
    ("joulewatch-exporter check", "list the sensors of this machine, and what the missing ones need"),
    ("joulewatch-exporter", f"serve metrics on port {DEFAULT_PORT} until Ctrl-C"),
    ("joulewatch-exporter --once", "print one scrape, without a server"),
)
"""What a new user is most likely to need next; shown by ``--help``."""


def main(argv: Sequence[str] | None = None, families: Sequence[type[Collector]] | None = None) -> int:
    """Run ``joulewatch-exporter``.

    Args:
        argv: The arguments; None: those of the process.
        families: The sensor families; None: the built-in ones and those of installed packages.

    Returns:
        The exit code.
    """
    return guard("joulewatch-exporter", lambda: _main(argv, families), broken_pipe=EXIT_DONE)


def _main(argv: Sequence[str] | None, families: Sequence[type[Collector]] | None) -> int:
    try:
        if families is None:
            families = all_families()
        args = make_parser(families).parse_args(argv)
        if args.command == "emulate":
            return _emulate(args)
        if args.state is not None and not args.once:
            raise ConfigError("--state needs --once: the daemon keeps its counters itself")
        sources = all_sources()
        config = _config(args, families, sources)
        set_up_logging(config.exporter.log_level, config.exporter.log_format)
        host = config.exporter.host()
        if args.command == "check":
            from joulewatch_exporter.commands.check import check

            return check(families, host, config, sources=sources, as_json=args.format == "json")
        allow_many_files()
        use_few_arenas()
        if args.once:
            return once(families, host, config, args.state, sources)
        return serve(families, host, config, sources=sources, exit_on_stdin_close=args.exit_on_stdin_close)
    except ConfigError as error:
        print(f"joulewatch-exporter: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except ExporterError as error:
        print(f"joulewatch-exporter: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_DONE


def make_parser(families: Sequence[type[Collector]]) -> Parser:
    """Return the parser of the whole command; a family adds its two flags."""
    shared = _shared_flags(families)
    parser = Parser(
        prog="joulewatch-exporter",
        description="Serve the power and energy of this machine's sensors to Prometheus.",
        examples=EXAMPLES,
        parents=[shared],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    version = f"joulewatch-exporter {__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument(
        "--once",
        action="store_true",
        default=False,
        help="print one scrape and exit; without --state, energy counters start at 0 in each call",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=None,
        metavar="FILE",
        help="with --once: continue the counters of the last call, for node_exporter's textfile collector",
    )
    parser.add_argument(
        "--exit-on-stdin-close",
        dest="exit_on_stdin_close",
        action="store_true",
        default=False,
        help="exit when stdin is closed, so that a child process ends with its parent",
    )
    _add_web_flags(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser, required=False)
    parser.set_defaults(command=None)
    check = commands.add_parser(
        "check",
        parents=[shared],
        allow_abbrev=False,
        help="list every sensor as found, missing or denied, with the reason and the fix",
        description="List every sensor as found, missing or denied, with the reason and the fix.",
    )
    check.add_argument("--format", choices=("table", "json"), default="table", help="output format (default: table)")
    emulate = commands.add_parser(
        "emulate",
        allow_abbrev=False,
        help="emulate a machine with known power in a folder",
        description="Write the files of a machine with known power into a folder and update them until SIGTERM.",
        examples=(
            ("joulewatch-exporter emulate --list", "list the built-in scenarios"),
            ("joulewatch-exporter emulate a100-node /dev/shm/node", "emulate a node with GPUs, in memory"),
        ),
    )
    emulate.add_argument("scenario", nargs="?", metavar="SCENARIO", help="built-in scenario or YAML file")
    emulate.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="folder for sys/, proc/ and the truth")
    emulate.add_argument("--duration", type=number(gt=0), default=None, metavar="S", help="exit after S seconds")
    emulate.add_argument("--list", action="store_true", help="list the built-in scenarios and exit")
    emulate.add_argument("--log.level", dest="log_level", choices=LOG_LEVELS, help="lowest level to log")
    emulate.set_defaults(parser=emulate)
    return parser


def _shared_flags(families: Sequence[type[Collector]]) -> Parser:
    """Return the flags that stand before or after a subcommand: no default may overwrite what was read before."""
    shared = Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    shared.add_argument(
        "--config.file", dest="config_file", type=Path, metavar="FILE", help="configuration file (YAML)"
    )
    shared.add_argument(
        "--nodename", metavar="NAME", help="name of this machine in the labels; for containers (default: its hostname)"
    )
    paths = shared.add_argument_group("paths")
    for flag, default in (("sysfs", "/sys"), ("procfs", "/proc"), ("dev", "/dev")):
        paths.add_argument(f"--path.{flag}", dest=flag, type=Path, metavar="DIR", help=f"default: {default}")
    sensors = shared.add_argument_group("sensor families (default: each one that the machine has)")
    for family in families:
        note = " (experimental)" if experimental_note(family) else ""
        for prefix, action, text in (
            ("", "store_true", f"require {family.name}{note}"),
            ("no-", "store_false", f"disable {family.name}"),
        ):
            sensors.add_argument(
                f"--{prefix}collector.{family.name}",
                dest=f"collector_{family.name}",
                action=action,
                help=text,
            )
    shares = shared.add_argument_group("whose joules")
    shares.add_argument(
        "--no-attribution",
        dest="attribution",
        action="store_false",
        help="share no energy between workloads (default: if their usage can be read)",
    )
    log = shared.add_argument_group("logging (to stderr)")
    log.add_argument("--log.level", dest="log_level", choices=LOG_LEVELS, help="lowest level to log (default: info)")
    log.add_argument("--log.format", dest="log_format", choices=("logfmt", "json"), help="default: logfmt")
    return shared


def _add_web_flags(parser: Parser) -> None:
    defaults = ExporterSettings()
    web = parser.add_argument_group("web server")
    web.add_argument(
        "--web.listen-address",
        dest="listen",
        action="append",
        metavar="HOST:PORT",
        help=f"address to listen on; repeatable; port 0 picks a free port (default: :{DEFAULT_PORT})",
    )
    web.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        metavar="PATH",
        help=f"path of the metrics (default: {defaults.telemetry_path})",
    )
    web.add_argument(
        "--web.config.file",
        dest="web_config_file",
        type=Path,
        metavar="FILE",
        help="TLS and basic authentication (YAML)",
    )
    web.add_argument(
        "--web.min-age",
        dest="web_min_age_seconds",
        type=number(ge=0, le=3600),
        metavar="SECONDS",
        help="clients without a password get new values at most once in this time (default: 0, with every scrape)",
    )
    web.add_argument(
        "--web.edge-socket",
        dest="edge_socket",
        type=Path,
        metavar="PATH",
        help="Unix socket for edges; none: no socket (default: /run/joulewatch/edge.sock if that folder exists)",
    )
    web.add_argument(
        "--web.edge-socket-group",
        dest="edge_socket_group",
        metavar="GROUP",
        help="group whose members may connect to that socket (default: the exporter's own)",
    )
    web.add_argument(
        "--web.max-requests",
        dest="max_requests",
        type=int,
        metavar="N",
        help=f"maximum number of concurrent scrapes; 0: no limit (default: {defaults.max_requests})",
    )
    web.add_argument(
        "--web.disable-exporter-metrics",
        dest="exporter_metrics",
        action="store_false",
        help="exclude process_* and python_info",
    )


def _config(
    args: argparse.Namespace, families: Sequence[type[Collector]], sources: Sequence[type[UsageSource]]
) -> Config:
    """Defaults, then the file, then the flags."""
    given = vars(args)
    config = load_config(given.get("config_file"), families, sources)
    settings = config.exporter
    path = dataclasses.replace(
        settings.path, **{name: given[name] for name in ("sysfs", "procfs", "dev") if name in given}
    )
    names = {item.name for item in dataclasses.fields(ExporterSettings)} - {"path"}
    changes = {name: value for name, value in given.items() if name in names}
    if "listen" in changes:
        changes["listen"] = tuple(changes["listen"])
    try:
        settings = dataclasses.replace(settings, path=path, **changes)
    except ValueError as error:
        key, _, text = str(error).partition(": ")
        flag = {"listen": "listen-address", "web_min_age_seconds": "min-age"}.get(key, key.replace("_", "-"))
        raise ConfigError(f"--web.{flag}: {text}") from error
    collectors = {
        name: dataclasses.replace(setting, enabled=given.get(f"collector_{name}", setting.enabled))
        for name, setting in config.collectors.items()
    }
    attribution = config.attribution
    if "attribution" in given:
        attribution = dataclasses.replace(attribution, enabled=given["attribution"])
    return Config(exporter=settings, collectors=collectors, attribution=attribution)


def _emulate(args: argparse.Namespace) -> int:
    from joulewatch_exporter.emulator import main as emulator
    from joulewatch_exporter.emulator.scenario import builtin_names

    logging.basicConfig(level=(args.log_level or "info").upper(), stream=sys.stderr, format="%(levelname)s %(message)s")
    if args.list:
        for name in builtin_names():
            print(name)  # noqa: T201
        return EXIT_DONE
    if args.scenario is None or args.directory is None:
        args.parser.error("SCENARIO and DIR are required (--list prints the built-in scenarios)")
    return emulator.run(args.scenario, args.directory, args.duration)
