"""The command ``joulewatch-exporter``: arguments, signals, exit codes, and the one place that sets up logging.

Exit codes: 0 done, 1 failed (``check``: nothing measured), 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import platform
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from joulewatch_exporter import __version__
from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_exporter.collectors import all_families
from joulewatch_exporter.config import Config, ExporterSettings, PathSettings, load_config
from joulewatch_exporter.errors import ConfigError, ExporterError
from joulewatch_exporter.model import Collector, Host
from joulewatch_exporter.sampler import Sampler

logger = logging.getLogger(__name__)

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
MOST_FILES: Final = 16_384

ONCE_INTERVAL_S: Final = 0.15
"""Between the two reads of ``--once``: power of a counter needs two."""

SETTLE_S: Final = 15.0
"""How long ``--once`` waits for devices that are read in the background: a BMC's first answer takes seconds."""

SWITCH_INTERVAL_S: Final = 0.0005
"""A scrape waits for its family's thread: Python's 5 ms until threads change would show in every latency."""


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
        _set_up_logging(config.exporter)
        host = config.exporter.path.host()
        if args.command == "check":
            from joulewatch_exporter import doctor

            return doctor.check(families, host, config.collectors, as_json=args.format == "json")
        _allow_many_files()
        if args.once:
            return _once(families, host, config)
        return _serve(families, host, config, exit_on_stdin_close=args.exit_on_stdin_close)
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


def _allow_many_files() -> None:
    """Each sensor file is held open between reads, and the usual soft limit is 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # A service manager may forbid it; then its own LimitNOFILE counts, and few machines need more.
            return


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


class _LogfmtFormatter(logging.Formatter):
    """``time=… level=… logger=… msg="…"``, one line whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _log_fields(self, record)
        quoted = json.dumps(fields.pop("msg"), ensure_ascii=False)
        return " ".join([*(f"{key}={value}" for key, value in fields.items()), f"msg={quoted}"])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_log_fields(self, record), ensure_ascii=False)


def _log_fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{formatter.formatException(record.exc_info)}"
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return {
        "time": f"{seconds}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": text,
    }


def _set_up_logging(settings: ExporterSettings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.log_format == "json" else _LogfmtFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())


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


def _once(families: Sequence[type[Collector]], host: Host, config: Config) -> int:
    from joulewatch_exporter.exposition import Exposition

    start_s = time.time()
    sampler = Sampler(families, host, config.collectors, rediscover_s=0.0)
    sampler.start()
    try:
        timeout_s = config.exporter.read_timeout_seconds
        sampler.settle(SETTLE_S)
        sampler.fresh(timeout_s)
        time.sleep(ONCE_INTERVAL_S)
        scans = sampler.fresh(timeout_s)
    finally:
        sampler.stop()
    if not any(scan.layout.infos for scan in scans):
        print(  # noqa: T201
            "joulewatch-exporter: no sensor found; 'joulewatch-exporter check' says why", file=sys.stderr
        )
    exposition = Exposition(emulated=host.emulated, start_s=start_s, self_metrics=config.exporter.exporter_metrics)
    sys.stdout.write(exposition.render(scans, "text").decode())
    sys.stdout.flush()
    return EXIT_DONE


class _Stopped(BaseException):
    """A signal came while the daemon was still starting. Not an Exception: those, logging and collectors catch."""


@contextmanager
def _stop_signals() -> Iterator[tuple[int, Callable[[], None]]]:
    """SIGTERM and SIGINT as a file descriptor that becomes readable; until told, they raise _Stopped.

    The pipe is Python's wakeup descriptor, written by the signal itself. A handler written in Python is run only
    when the main thread next executes Python: a signal that comes just before the wait begins would be waited out.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    started = False

    def stop(number: int, frame: FrameType | None) -> None:
        if not started:
            raise _Stopped

    def begin_waiting() -> None:
        nonlocal started
        started = True

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, begin_waiting
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _serve(families: Sequence[type[Collector]], host: Host, config: Config, *, exit_on_stdin_close: bool) -> int:
    from joulewatch_exporter.exposition import CONTENT_TYPES, Exposition, choose_format
    from joulewatch_exporter.server import Access, WebServer

    settings = config.exporter
    sampler = Sampler(
        families,
        host,
        config.collectors,
        rediscover_s=settings.rediscover_seconds,
        hang_s=settings.read_timeout_seconds / 2,
    )
    exposition = Exposition(emulated=host.emulated, start_s=time.time(), self_metrics=settings.exporter_metrics)

    def scrape(*, accept: str | None, only: frozenset[str] | None, timeout_s: float) -> tuple[bytes, str]:
        format_ = choose_format(accept)
        scans = sampler.fresh(timeout_s, only)
        return exposition.render(scans, format_, sampler.verdicts), CONTENT_TYPES[format_]

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server: WebServer | None = None
    with _stop_signals() as (stop_reader, begin_waiting):
        try:
            # The addresses first: a second exporter by mistake must not touch the sensors.
            server = WebServer(
                settings.listen,
                scrape,
                collectors=[family.name for family in families],
                telemetry_path=settings.telemetry_path,
                max_requests=settings.max_requests,
                read_timeout_s=settings.read_timeout_seconds,
                access=Access(settings.web_config_file),
            )
            sampler.start()
            begin_waiting()
            server.start()
            for url in server.urls:
                logger.info("listening on %s", url)
            # What lives as long as the process need not be looked at in each collection of garbage.
            gc.collect()
            gc.freeze()
            _wait_for_the_end(stop_reader, exit_on_stdin_close)
        except _Stopped:
            pass
        finally:
            if server is not None:
                server.stop()
            sampler.stop()
    logger.info("ended")
    return EXIT_DONE


def _wait_for_the_end(stop_reader: int, exit_on_stdin_close: bool) -> None:
    watched: list[Any] = [stop_reader]
    if exit_on_stdin_close:
        watched.append(0)
    while True:
        readable, _, _ = select.select(watched, [], [])
        if stop_reader in readable:
            return
        if 0 in readable:
            try:
                if not os.read(0, 4096):
                    return
            except OSError:
                return
