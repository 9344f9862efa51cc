"""``joulewatch profile``: run a plan, measure it, show what an inference costs.

Everything a person may have got wrong is looked at before the first measurement: plan, output folder, model
files, exporters, Prometheus. From then on each window is on the disk before the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joulewatch_harness.clients.options import add_prometheus_arguments, load_options
from joulewatch_harness.commands.options import add_format_argument, network_options
from joulewatch_harness.errors import (
    ConfigError,
    ExporterUnreachableError,
    JoulewatchError,
    NetworkError,
    RecordError,
    describe,
)
from joulewatch_harness.plan.cpus import parse_cpus
from joulewatch_harness.plan.parsing import make_plan, read_plan
from joulewatch_harness.plan.plan import (
    DEFAULT_NETWORK,
    DEFAULT_OUTPUT,
    DEFAULT_PRECISIONS,
    DEFAULT_PRESET,
    DEFAULT_SCRAPE_RATE_HZ,
    PHASES,
    PHASES_INLINE,
    PRESETS,
    Plan,
    default_runtime,
    name_configurations,
)
from joulewatch_harness.plan.runtimes import RUNTIMES, takes_model_files
from joulewatch_harness.plan.scenario import OFFLINE, SCENARIOS
from joulewatch_harness.plan.steps import steps, window_length_s
from joulewatch_harness.runner.pinning import check_cpus

if TYPE_CHECKING:
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.delivery.courier import DeliveryReport
    from joulewatch_harness.network import Network
    from joulewatch_harness.records import Configuration, ExporterRecord, RunEnd, SensorRecord

logger = logging.getLogger(__name__)

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
REFRESH_WAIT_S: Final = 4.0
"""How long an exporter that has just started may take to learn its sensors' refresh periods."""
DELIVERY_WAIT_S: Final = 30.0
FIGURE_NAME: Final = "figure.png"
RESULT_NAME: Final = "result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch profile``."""
    parser.add_argument("plan", nargs="?", type=Path, metavar="PLAN.yaml", help="plan file; flags override its keys")
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--network",
        action="append",
        help="built-in network (see 'joulewatch networks'), FILE.onnx, module:object or file.py:object; repeatable "
        f"(default: {DEFAULT_NETWORK})",
    )
    what.add_argument("--model", action="append", metavar="FILE.onnx", help="same as --network FILE.onnx")
    what.add_argument("--runtime", help=f"{', '.join(map(str, RUNTIMES.values()))} (default: onnxruntime)")
    what.add_argument(
        "--precision",
        help="comma-separated list; built-in networks: "
        f"{','.join(DEFAULT_PRECISIONS)} (default); a model file: the precision that it must have",
    )
    what.add_argument("--batch-sizes", help="1,8,64 or 1..1024 (doubling); default: 1..1024, quick: 1,4,16,...,1024")
    what.add_argument(
        "--option", action="append", metavar="KEY=VALUE", help="option of the network or its runtime; repeatable"
    )
    what.add_argument("--threads", help="same as --option threads=N")
    what.add_argument("--name", help="name of the run")
    what.add_argument("--scenario", help=f"comma-separated list of {', '.join(SCENARIOS)} (default: {OFFLINE})")
    what.add_argument(
        "--server-rate", type=float, metavar="PER_SECOND", help="queries per second in the scenario server"
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: {DEFAULT_PRESET})")
    how.add_argument("--window", type=float, metavar="SECONDS", help="length of a measurement window (minimum 1)")
    how.add_argument("--rounds", type=int, help="number of measurement rounds (minimum 3)")
    how.add_argument("--seed", type=int, help="random seed for the measurement order (default: 0)")
    how.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run each configuration in its own process (default: if there are several)",
    )
    how.add_argument("--cpus", metavar="LIST", help="CPUs to pin these processes to, such as 0-3")
    how.add_argument("--phases", help=f"{', '.join(PHASES)} (default: {PHASES_INLINE})")
    how.add_argument("--idle", type=float, metavar="SECONDS", help="length of each of the three idle windows")
    where = parser.add_argument_group("energy source")
    where.add_argument("--exporter", action="append", metavar="URL", help="exporter to read at edges; repeatable")
    where.add_argument("--exporter.flags", dest="exporter_flags", help="flags for the exporter that local mode starts")
    where.add_argument(
        "--scrape-rate",
        type=float,
        metavar="HZ",
        help=f"scrapes per second in the recording (default: {DEFAULT_SCRAPE_RATE_HZ:g})",
    )
    add_prometheus_arguments(parser)
    where.add_argument("--pushgateway", metavar="URL", help="deliver annotations through this Pushgateway")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help=f"directory of all runs (default: {DEFAULT_OUTPUT})")
    add_format_argument(out)
    out.add_argument(
        "--figure", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: figure.png in the run's directory)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the plan; returns the exit code."""
    plan = plan_from(args)
    prometheus = load_options(plan.prometheus or None, Path(plan.prometheus_config) if plan.prometheus_config else None)
    if plan.pushgateway and prometheus is None:
        raise ConfigError(
            "--pushgateway needs --prometheus: what was pushed is kept until Prometheus is seen to have it"
        )
    _check_figure(args.figure)
    with contextlib.ExitStack() as stack:
        prepared = _prepare(plan, prometheus, stack)
        try:
            end = _measure(prepared, stack)
        except RecordError:
            if (prepared.folder / "journal.jsonl").exists():
                _say(f"What was measured until then can be analyzed: joulewatch analyze {prepared.folder}")
            raise
    _say(f"run {prepared.run}: {end.status}{f' ({end.text})' if end.text else ''}")
    return _conclude(prepared, end, args.format, args.figure)


def plan_from(args: argparse.Namespace) -> Plan:
    """The plan of the file with the flags laid over it.

    Raises:
        ConfigError: a bad file, a bad flag, or both about one thing.
    """
    data: dict[str, Any] = {} if args.plan is None else read_plan(args.plan)
    where = "command line" if args.plan is None else f"plan {args.plan}"
    flags: dict[str, Any] = {
        "name": args.name,
        "preset": args.preset,
        "batch_sizes": args.batch_sizes,
        "window_s": args.window,
        "rounds": args.rounds,
        "seed": args.seed,
        "idle_s": args.idle,
        "exporters": args.exporter,
        "exporter_flags": None if args.exporter_flags is None else shlex.split(args.exporter_flags),
        "prometheus": args.prometheus,
        "prometheus_config": None if args.prometheus_config is None else str(args.prometheus_config),
        "pushgateway": args.pushgateway,
        "scrape_rate_hz": args.scrape_rate,
        "output": args.output,
        "scenario": None if args.scenario is None else [item.strip() for item in args.scenario.split(",")],
        "server_rate_per_s": args.server_rate,
        "isolate": args.isolate,
        "cpus": args.cpus,
        "phases": args.phases,
    }
    data |= {key: value for key, value in flags.items() if value is not None}
    networks = [*(args.network or ()), *(args.model or ())]
    options = network_options(args.option, args.threads)
    precisions = None if args.precision is None else [item.strip() for item in args.precision.split(",")]
    if networks or precisions or args.runtime is not None:
        data["configurations"] = [
            {
                "network": network,
                "runtime": args.runtime or default_runtime(network),
                **_precisions_of(network, precisions),
            }
            for network in networks or [DEFAULT_NETWORK]
        ]
    plan = make_plan(data, where)
    if options:
        # The names stay as they are: an option given to all tells none of them apart.
        given = tuple(replace(item, options={**item.options, **options}) for item in plan.configurations)
        plan = replace(plan, configurations=given)
    if args.server_rate is not None and not any(item.scenario == "server" for item in plan.configurations):
        raise ConfigError("--server-rate belongs to --scenario server, which no configuration has")
    return _with_threads(plan, where)


def _with_threads(plan: Plan, where: str) -> Plan:
    """As many threads as processors that a plan keeps its networks on; runtimes would take the whole machine's.

    Raises:
        ConfigError: a processor that this process may not use.
    """
    cpus = parse_cpus(plan.cpus, where)
    if not cpus:
        return plan
    check_cpus(cpus, where)
    return replace(
        plan,
        configurations=tuple(
            replace(item, options={"threads": str(len(cpus)), **item.options})
            if takes_model_files(item.runtime)
            else item
            for item in plan.configurations
        ),
    )


def _precisions_of(network: str, precisions: Sequence[str] | None) -> dict[str, list[str]]:
    if precisions is not None:
        return {"precision": list(precisions)}
    return {"precision": list(DEFAULT_PRECISIONS)} if network == DEFAULT_NETWORK else {}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything looked at and found good."""

    plan: Plan
    run: str
    folder: Path
    prometheus: PrometheusOptions | None
    networks: tuple[tuple[Configuration, Network], ...]
    targets: tuple[tuple[str, str | None], ...]
    """URL and name of each exporter."""
    exporters: tuple[ExporterRecord, ...]
    sensors: tuple[SensorRecord, ...]


def _prepare(plan: Plan, prometheus: PrometheusOptions | None, stack: contextlib.ExitStack) -> _Prepared:
    from joulewatch_harness.runner.local import LocalExporter
    from joulewatch_harness.storage.journal import new_run_id

    if prometheus is not None:
        from joulewatch_harness.clients.prometheus import PrometheusClient

        with PrometheusClient(prometheus) as client:
            client.ping()
    plan, networks = _check_networks(plan, stack)
    run_id = new_run_id(time.time())
    folder = Path(plan.output) / run_id
    stack.enter_context(_run_folder(folder))
    targets: list[tuple[str, str | None]] = [(item.url, item.name or None) for item in plan.exporters]
    if not targets and prometheus is None:
        local = LocalExporter(folder, plan.exporter_flags)
        stack.enter_context(local)
        targets = [(local.url, None)]
    elif not targets:
        from joulewatch_exporter.catalog import DEFAULT_PORT

        targets = [(f"http://127.0.0.1:{DEFAULT_PORT}", None)]
    exporters, sensors = _check_exporters(targets)
    return _Prepared(plan, run_id, folder, prometheus, networks, tuple(targets), exporters, sensors)


@contextlib.contextmanager
def _run_folder(folder: Path) -> Iterator[None]:
    """The run's folder; gone again if no journal came into it."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"output folder {folder.parent}: {error.strerror or error}; choose one with --output"
        ) from error
    try:
        yield
    finally:
        if not (folder / "journal.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _check_networks(plan: Plan, stack: contextlib.ExitStack) -> tuple[Plan, tuple[tuple[Configuration, Network], ...]]:
    """Load every network once, look at what it is and whether it computes rightly, and let it go again.

    Returns:
        The plan with names that say the precision that a file turned out to have, and the networks, unloaded: the
        first idle window is measured without them. Their own processes, where they have them, end with ``stack``.
    """
    from joulewatch_harness.runner.isolate import IsolatedNetwork
    from joulewatch_harness.runtimes import as_loaded, open_network

    found: list[tuple[Configuration, Network]] = []
    for configuration in plan.configurations:
        network: Network
        if plan.isolate:
            isolated = IsolatedNetwork(
                configuration, cpus=parse_cpus(plan.cpus, "cpus"), time_limit_s=plan.time_limit_s
            )
            stack.callback(isolated.end)
            isolated.open()
            network = isolated
        else:
            network = open_network(configuration)
        try:
            network.load()
            loaded = as_loaded(configuration, network.describe())
            check = getattr(network, "check", None)
            if callable(check) and check() is False:
                raise NetworkError(f"{configuration.name}: its own check says that its outputs are wrong")
        except JoulewatchError:
            raise
        except Exception as error:
            raise NetworkError(f"{configuration.name} cannot be loaded: {describe(error)}") from error
        finally:
            network.close()
        settled = replace(configuration, precision=loaded.precision, runtime=loaded.runtime)
        if (settled.precision, settled.runtime) != (configuration.precision, configuration.runtime):
            automatic = next(name_configurations([replace(configuration, name="")])).name
            if configuration.name == automatic:
                settled = replace(settled, name="")
        found.append((settled, network))
    named = tuple(name_configurations([configuration for configuration, _ in found]))
    plan = replace(plan, configurations=named)
    return plan, tuple((item, network) for item, (_, network) in zip(named, found, strict=True))


def _check_exporters(
    targets: Sequence[tuple[str, str | None]],
) -> tuple[tuple[ExporterRecord, ...], tuple[SensorRecord, ...]]:
    """Ask every exporter what it measures, until the refresh periods are known or ``REFRESH_WAIT_S`` is over."""
    from joulewatch_harness.clients.exporter import ExporterClient

    exporters: list[ExporterRecord] = []
    sensors: list[SensorRecord] = []
    deadline_s = time.monotonic() + REFRESH_WAIT_S
    for url, name in targets:
        with ExporterClient(url, name=name) as client:
            record, found = client.describe()
            while any(map(_refresh_is_to_come, found)) and time.monotonic() < deadline_s:
                time.sleep(0.2)
                record, found = client.describe()
        if not found:
            raise ExporterUnreachableError(
                f"exporter {url} measures no energy: 'joulewatch-exporter check' says which sensors this machine has, "
                "and what each one needs"
            )
        exporters.append(record)
        sensors += found
    names = [item.name for item in exporters]
    for exporter in names:
        if names.count(exporter) > 1:
            raise ConfigError(f"two exporters are called {exporter!r}: give them names of their own in the plan")
    return tuple(exporters), tuple(sensors)


def _refresh_is_to_come(sensor: SensorRecord) -> bool:
    """An estimate has no refresh period: it changes with every reading."""
    return sensor.refresh_s is None and sensor.method != "estimated"


def slowest_refresh_s(sensors: Sequence[SensorRecord]) -> float | None:
    """The longest refresh period of the sensors that are summed: devices, or whole nodes where there are none."""
    devices = [item for item in sensors if item.scope == "device"]
    known = [item.refresh_s for item in devices or sensors if item.refresh_s is not None]
    return max(known, default=None)


def _measure(prepared: _Prepared, stack: contextlib.ExitStack) -> RunEnd:
    from joulewatch_harness.clients.exporter import ExporterClient
    from joulewatch_harness.delivery.delivery import open_delivery
    from joulewatch_harness.records import SCHEMA_VERSION, RunHeader
    from joulewatch_harness.runner.edges import EdgeReader
    from joulewatch_harness.runner.progress import RunProgress, duration
    from joulewatch_harness.runner.provenance import collect
    from joulewatch_harness.runner.recorder import Recorder
    from joulewatch_harness.runner.runner import Runner
    from joulewatch_harness.runner.stopping import StopRequest
    from joulewatch_harness.storage.journal import Journal
    from joulewatch_harness.storage.recording import RecordingWriter

    plan = prepared.plan
    refresh_s = slowest_refresh_s(prepared.sensors)
    sequence = steps(plan, refresh_s)
    header = RunHeader(
        run=prepared.run,
        started_at_s=time.time(),
        schema=SCHEMA_VERSION,
        command=("joulewatch", *sys.argv[1:]),
        plan=plan.to_mapping(),
        plan_sha256=plan.sha256(),
        configurations=plan.configurations,
        exporters=prepared.exporters,
        sensors=prepared.sensors,
        provenance=collect(),
    )
    # Checked before the journal exists: a receiver that is off is an error of the command line, not of a run.
    delivery = open_delivery(prepared.prometheus, pushgateway_url=plan.pushgateway or None, folder=prepared.folder)
    journal = stack.enter_context(contextlib.closing(Journal.create(Path(plan.output), header)))
    recording: RecordingWriter | None = None
    if prepared.prometheus is None:
        recording = RecordingWriter.create(prepared.folder / "recording.sqlite", header)
        stack.callback(recording.close)
        scraped = [ExporterClient(url, name=name) for url, name in prepared.targets]
        stack.enter_context(Recorder(scraped, recording, rate_hz=plan.scrape_rate_hz))
    edges = stack.enter_context(EdgeReader([ExporterClient(url, name=name) for url, name in prepared.targets]))
    progress = RunProgress(plan, sequence)
    _say_sensors(prepared.sensors)
    _say(
        f"run {prepared.run}: {_count(len(plan.configurations), 'configuration')} x "
        f"{_count(len(plan.batch_sizes), 'batch size')} x "
        f"{plan.rounds} rounds, windows of {window_length_s(plan, refresh_s):g} s (preset {plan.preset}): "
        f"about {duration(progress.total_s)}"
    )
    delivery.start(header)
    stop = StopRequest()
    try:
        with progress, stop:
            end = Runner(
                plan,
                sequence,
                prepared.networks,
                run=prepared.run,
                journal=journal,
                edges=edges,
                delivery=delivery,
                recording=recording,
                reporter=progress,
                stop=stop,
                refresh_s=refresh_s,
            ).run()
    finally:
        report = delivery.close(DELIVERY_WAIT_S)
        if prepared.prometheus is not None:
            _say_delivery(report, prepared)
    return end


def _conclude(prepared: _Prepared, end: RunEnd, form: str, figure: Path | None) -> int:
    """Analyze what was measured; whatever fails here, the run is safe."""
    folder = prepared.folder
    recording = folder / "recording.sqlite"
    again = f"joulewatch analyze {folder}" + (
        f" --prometheus {prepared.prometheus.url}" if prepared.prometheus is not None else ""
    )
    status = EXIT_DONE if end.status == "complete" else EXIT_FAILED
    if end.status == "failed":
        _say(f"nothing could be measured; the journal says why: {folder / 'journal.jsonl'}")
        return EXIT_FAILED
    try:
        _analyze(prepared, recording if recording.exists() else None, form, figure)
    except JoulewatchError as error:
        _say(f"the run is stored, but its analysis failed: {error}\nTry again with: {again}")
        return status or EXIT_FAILED
    _say_method(prepared.sensors)
    _say(f"run: {folder}")
    if end.status == "interrupted":
        _say(f"The run was stopped early; what was measured is shown, and can be analyzed again with: {again}")
    return status


def _analyze(prepared: _Prepared, recording: Path | None, form: str, figure: Path | None) -> None:
    from joulewatch_harness.analysis.reports import to_csv, to_json, to_text
    from joulewatch_harness.analysis.reports.figure import write_figure
    from joulewatch_harness.analysis.results.summary import analyze_run
    from joulewatch_harness.analysis.sources.opening import open_source
    from joulewatch_harness.storage.journal import read_run

    record = read_run(prepared.folder)
    source = open_source(prometheus=prepared.prometheus, recording=recording)
    with contextlib.ExitStack() as stack:
        close = getattr(source, "close", None)
        if callable(close):
            stack.callback(close)
        result = analyze_run(record, source)
    width = shutil.get_terminal_size((120, 40)).columns
    as_json = to_json.render_json(result)
    if form == "json":
        sys.stdout.write(as_json)
    elif form == "csv":
        sys.stdout.write(to_csv.render_csv(result))
    else:
        sys.stdout.write(to_text.render_table(result, width=width))
    sys.stdout.flush()
    (prepared.folder / RESULT_NAME).write_text(as_json, encoding="utf-8")
    target = figure or prepared.folder / FIGURE_NAME
    write_figure(result, target)
    _say(f"figure: {target}\nresult: {prepared.folder / RESULT_NAME}")
    if recording is not None:
        _say(f"recording: {recording}")


def _check_figure(figure: Path | None) -> None:
    if figure is None:
        return
    if figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--figure {figure}: a name ending in .png, .svg or .pdf is wanted")
    if not figure.parent.is_dir():
        raise ConfigError(f"--figure {figure}: there is no folder {figure.parent}")


def _say_sensors(sensors: Sequence[SensorRecord]) -> None:
    for item in sensors:
        refresh = f", refresh {item.refresh_s * 1e3:.3g} ms" if item.refresh_s is not None else ""
        series = f"{item.scope} {item.component} {item.device} {item.domain}"
        _say(f"sensor: {series} by {item.collector} ({item.method}{refresh})")
    _say_method(sensors)


def _say_delivery(report: DeliveryReport, prepared: _Prepared) -> None:
    assert prepared.prometheus is not None
    _say(f"{report.delivered} windows are in {prepared.prometheus.url} (read back)")
    for parked in report.parked:
        _say(f"refused: {parked}")
    if not report.complete:
        why = f": {report.trouble}" if report.trouble else ""
        _say(
            f"{report.pending} windows are not there yet{why}; they are safe in the journal, deliver them with: "
            f"joulewatch runs push {prepared.folder} --prometheus {prepared.prometheus.url}"
        )


def _say_method(sensors: Sequence[SensorRecord]) -> None:
    """Say loudly what is no measurement."""
    methods = {item.method for item in sensors}
    if "estimated" in methods:
        _say(
            "ENERGIES ARE ESTIMATED, not measured: this machine shows no power sensor, so they come from CPU "
            "utilisation and a power model (joulewatch-exporter check says what is missing)"
        )
    if "emulated" in methods:
        _say("ENERGIES ARE EMULATED: these sensors are the emulator's, not this machine's")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
