"""``joulewatch profile``: run a plan, measure its energy, show joules per inference."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from platform import node
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from joulewatch_exporter.arguments import number
from joulewatch_exporter.text import count_of
from joulewatch_harness.clients.options import add_prometheus_arguments, checked_url, load_options
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.commands.options import (
    add_format_argument,
    add_source_argument,
    network_options,
    shell_words,
)
from joulewatch_harness.errors import (
    ConfigError,
    JoulewatchError,
    RecordError,
)
from joulewatch_harness.plan.cpus import parse_cpus
from joulewatch_harness.plan.parsing import make_plan, read_plan
from joulewatch_harness.plan.plan import (
    DEFAULT_NETWORK,
    DEFAULT_OUTPUT,
    DEFAULT_PRECISIONS,
    DEFAULT_PRESET,
    DEFAULT_SCRAPE_RATE_HZ,
    MLPERF,
    PHASES,
    PHASES_INLINE,
    PRESETS,
    Plan,
    default_runtime,
)
from joulewatch_harness.plan.refresh import assumed_refresh_s, has_refresh, slowest_refresh_s
from joulewatch_harness.plan.runtimes import RUNTIMES, takes_model_files
from joulewatch_harness.plan.scenario import OFFLINE, SCENARIOS
from joulewatch_harness.plan.steps import settle_length_s, steps, window_length_s
from joulewatch_harness.plan.target import LOOKS
from joulewatch_harness.runner.pinning import check_cpus
from joulewatch_harness.runner.preflight import Prepared, prepare

if TYPE_CHECKING:
    from joulewatch_harness.analysis.results.model import RunResult
    from joulewatch_harness.analysis.sources.history import SampleSource
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.delivery.courier import DeliveryReport
    from joulewatch_harness.records import RunEnd, RunRecord, SensorRecord
    from joulewatch_harness.runner.processor_time import ProcessorClock

logger = logging.getLogger(__name__)

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
DELIVERY_WAIT_S: Final = 30.0
FIGURE_NAME: Final = "figure.png"
RESULT_NAME: Final = "result.json"
DASHBOARD_UID: Final = "joulewatch-experiment"
LINK_MARGIN_S: Final = 60.0
"""The time range of a link ends this much after the run, so that it contains the published results."""


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
    what.add_argument(
        "--concurrent",
        nargs="*",
        metavar="NETWORK",
        help="measure these networks (or, without names, all of the plan) each alone and all at the same time",
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
        "--server-rate", type=number(), metavar="PER_SECOND", help="queries per second in the scenario server"
    )
    how = parser.add_argument_group("how to measure")
    preset = how.add_mutually_exclusive_group()
    preset.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: {DEFAULT_PRESET})")
    preset.add_argument(
        "--mlperf",
        dest="preset",
        action="store_const",
        const=MLPERF,
        help="windows of at least 60 s and 3 rounds, as MLPerf Power requires (same as --preset mlperf)",
    )
    how.add_argument("--window", type=number(), metavar="SECONDS", help="length of a measurement window (minimum 0.02)")
    rounds = how.add_mutually_exclusive_group()
    rounds.add_argument(
        "--max-uncertainty",
        metavar="SHARE",
        help="measure until the uncertainty of the repeats is at most this share of each energy, such as 2%% "
        "(default: 5%%, with --preset report 2%%)",
    )
    rounds.add_argument("--rounds", type=int, help="measure exactly this number of rounds instead (minimum 3)")
    how.add_argument("--seed", type=int, help="random seed for the measurement order (default: 0)")
    how.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run each configuration in its own process (default: if there are several)",
    )
    how.add_argument("--cpus", metavar="LIST", help="CPUs to pin these processes to, such as 0-3")
    how.add_argument("--phases", help=f"{', '.join(PHASES)} (default: {PHASES_INLINE})")
    how.add_argument("--idle", type=number(), metavar="SECONDS", help="length of each of the three idle windows")
    where = parser.add_argument_group("energy source")
    where.add_argument("--exporter", action="append", metavar="URL", help="exporter to read at edges; repeatable")
    add_source_argument(where)
    where.add_argument(
        "--exporter.flags",
        dest="exporter_flags",
        type=shell_words,
        help="flags for the exporter that local mode starts",
    )
    where.add_argument(
        "--scrape-rate",
        type=number(),
        metavar="HZ",
        help=f"scrapes per second in the recording (default: {DEFAULT_SCRAPE_RATE_HZ:g})",
    )
    add_prometheus_arguments(parser)
    where.add_argument("--pushgateway", metavar="URL", help="deliver annotations through this Pushgateway")
    where.add_argument(
        "--no-publish", dest="publish", action="store_false", help="do not write the results to Prometheus"
    )
    where.add_argument("--grafana", metavar="URL", help="show a link to the run in this Grafana")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help=f"directory of all runs (default: {DEFAULT_OUTPUT})")
    add_format_argument(out)
    out.add_argument(
        "--figure", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: figure.png in the run's directory)"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch profile``; return the exit code."""
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path

    plan = plan_from(args)
    config = Path(plan.prometheus_config) if plan.prometheus_config else None
    prometheus = load_options(plan.prometheus or None, config, args.match)
    if args.grafana is not None:
        checked_url(args.grafana, "--grafana")
        if prometheus is None:
            raise ConfigError("--grafana needs --prometheus: the dashboard shows runs that are in Prometheus")
    if plan.pushgateway and prometheus is None:
        raise ConfigError(
            "--pushgateway needs --prometheus: pushed annotations are kept until Prometheus has scraped them"
        )
    if args.figure is not None:
        check_figure_path(args.figure)
    with contextlib.ExitStack() as stack:
        prepared = prepare(plan, prometheus, stack)
        try:
            end, delivered = measure_plan(prepared, stack)
        except RecordError:
            if (prepared.folder / "journal.jsonl").exists():
                _report(f"Analyze the windows stored so far with: joulewatch analyze {prepared.folder}")
            raise
    _report(f"run {prepared.run}: {end.status}{f' ({end.text})' if end.text else ''}")
    status = _conclude(prepared, end, args)
    return status or (EXIT_FAILED if delivered.parked else EXIT_DONE)


def plan_from(args: argparse.Namespace) -> Plan:
    """Return the plan of the file, overridden by the flags.

    Raises:
        ConfigError: A bad file or flag.
    """
    data: dict[str, Any] = {} if args.plan is None else read_plan(args.plan)
    where = "command line" if args.plan is None else f"plan {args.plan}"
    flags: dict[str, Any] = {
        "name": args.name,
        "preset": args.preset,
        "batch_sizes": args.batch_sizes,
        "window_s": args.window,
        "rounds": args.rounds,
        "max_relative_uncertainty": args.max_uncertainty,
        "seed": args.seed,
        "idle_s": args.idle,
        "exporters": args.exporter,
        "exporter_flags": args.exporter_flags,
        "sources": args.source,
        "prometheus": args.prometheus,
        "prometheus_config": None if args.prometheus_config is None else str(args.prometheus_config),
        "pushgateway": args.pushgateway,
        "scrape_rate_hz": args.scrape_rate,
        "output": args.output,
        "scenario": None if args.scenario is None else [item.strip() for item in args.scenario.split(",")],
        "server_rate_per_s": args.server_rate,
        "isolate": args.isolate,
        "cpus": args.cpus,
        "concurrent": None if args.concurrent is None else True,
        "phases": args.phases,
    }
    if args.rounds is not None or args.max_uncertainty is not None:
        # The flag replaces the file's rule for the end of the rounds.
        for key in ("rounds", "max_relative_uncertainty", *(("max_run_s",) if args.rounds is not None else ())):
            data.pop(key, None)
    data |= {key: value for key, value in flags.items() if value is not None}
    networks = [*(args.network or ()), *(args.model or ()), *(args.concurrent or ())]
    options = network_options(args.option, args.threads)
    precisions = None if args.precision is None else [item.strip() for item in args.precision.split(",")]
    if networks or precisions or args.runtime is not None:
        data["configurations"] = [
            {
                "network": network,
                "runtime": args.runtime or default_runtime(network),
                **_precisions_of(network, precisions, one=args.concurrent is not None),
            }
            for network in networks or [DEFAULT_NETWORK]
        ]
    try:
        plan = make_plan(data, where)
    except ConfigError as error:
        text = str(error)
        if any(text.startswith(f"{where}: {key}: ") for key, value in flags.items() if value is not None):
            # A flag has replaced the key of the file, which is not at fault.
            raise ConfigError(f"command line{text.removeprefix(where)}") from error
        raise
    if options:
        # Names stay as they are: an option of all configurations distinguishes none of them.
        given = tuple(replace(item, options={**item.options, **options}) for item in plan.configurations)
        plan = replace(plan, configurations=given)
    if args.server_rate is not None and not any(item.scenario == "server" for item in plan.configurations):
        raise ConfigError("--server-rate needs --scenario server")
    return _with_threads(plan, where)


def _with_threads(plan: Plan, where: str) -> Plan:
    """Set the threads to the number of CPUs in ``cpus``; runtimes would use as many as the machine has.

    Raises:
        ConfigError: A CPU that this process may not use.
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


def _precisions_of(network: str, precisions: Sequence[str] | None, *, one: bool = False) -> dict[str, list[str]]:
    if precisions is not None:
        return {"precision": list(precisions)}
    return {"precision": list(DEFAULT_PRECISIONS[: 1 if one else None])} if network == DEFAULT_NETWORK else {}


def measure_plan(prepared: Prepared, stack: contextlib.ExitStack) -> tuple[RunEnd, DeliveryReport]:
    """Measure; return the last line of the journal, and what was delivered."""
    from joulewatch_harness.clients.exporter import ExporterClient
    from joulewatch_harness.delivery.delivery import open_delivery
    from joulewatch_harness.records import SCHEMA_VERSION, RunHeader
    from joulewatch_harness.runner.conditions import RunConditions
    from joulewatch_harness.runner.edges import EdgeReader
    from joulewatch_harness.runner.gpu_conditions import conditions_clients
    from joulewatch_harness.runner.other_workloads import OtherWorkloads
    from joulewatch_harness.runner.progress import RunProgress, duration
    from joulewatch_harness.runner.provenance import collect
    from joulewatch_harness.runner.recorder import Recorder
    from joulewatch_harness.runner.runner import Runner
    from joulewatch_harness.runner.stopping import StopRequest
    from joulewatch_harness.storage.journal import Journal
    from joulewatch_harness.storage.recording import RecordingWriter

    refresh_s = slowest_refresh_s(prepared.sensors)
    # The header has the settle time as it was: the analysis needs it.
    plan = replace(prepared.plan, settle_s=settle_length_s(prepared.plan, refresh_s))
    sequence = steps(plan, refresh_s)
    gpu_conditions = conditions_clients([url for url, _ in prepared.targets], prepared.exporters, prepared.sensors)
    conditions = stack.enter_context(contextlib.closing(RunConditions(gpu_conditions)))
    header = RunHeader(
        run=prepared.run,
        started_at_s=time.time(),
        schema=SCHEMA_VERSION,
        command=("joulewatch", *sys.argv[1:]),
        plan=plan.to_mapping(),
        plan_sha256=prepared.plan.sha256(),
        configurations=plan.configurations,
        exporters=prepared.exporters,
        sensors=prepared.sensors,
        provenance=collect() | conditions.provenance,
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
    _report_sensors(prepared.sensors)
    for remark in prepared.remarks:
        _report(remark)
    _report(
        f"run {prepared.run}: {count_of(len(plan.configurations), 'configuration')} x "
        f"{count_of(len(plan.batch_sizes), 'batch size')} x "
        f"{_rounds_text(plan)}, windows of {window_length_s(plan, refresh_s):g} s (preset {plan.preset}): "
        f"about {duration(progress.total_s)}"
    )
    processors = _processor_clock(prepared)
    local = next((url for url, _ in prepared.targets if _is_local(url)), None)
    others = None if local is None else OtherWorkloads(stack.enter_context(ExporterClient(local)), processors)
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
                sensors=prepared.sensors,
                processors=processors,
                conditions=conditions,
                others=others,
            ).run()
    finally:
        report = delivery.close(DELIVERY_WAIT_S)
        if prepared.prometheus is not None:
            _report_delivery(report, prepared)
    return end, report


def _processor_clock(prepared: Prepared) -> ProcessorClock:
    """Return the clock that counts the networks, each in its own process or all in this one."""
    from joulewatch_harness.runner.isolate import IsolatedNetwork
    from joulewatch_harness.runner.processor_time import EXPORTERS, SERVERS, ProcessorClock

    services: list[str] = []
    if prepared.local_exporter is None and any(_is_local(url) for url, _ in prepared.targets):
        services += EXPORTERS
    if prepared.prometheus is not None and _is_local(prepared.prometheus.url):
        services += SERVERS
    if not prepared.plan.isolate:
        names = [configuration.name for configuration, _ in prepared.networks]
        return ProcessorClock(in_process=names, exporter=prepared.local_exporter, services=services)
    networks = {item.name: network for item, network in prepared.networks if isinstance(network, IsolatedNetwork)}
    return ProcessorClock(networks=networks, services=services)


def _is_local(url: str) -> bool:
    return url.startswith("unix:") or urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1", node())


def _conclude(prepared: Prepared, end: RunEnd, args: argparse.Namespace) -> int:
    """Analyze the run and publish its results; it stays stored if that fails."""
    folder = prepared.folder
    recording = folder / "recording.sqlite"
    again = f"joulewatch analyze {folder}" + (
        f" --prometheus {prepared.prometheus.url}" if prepared.prometheus is not None else ""
    )
    status = EXIT_DONE if end.status == "complete" else EXIT_FAILED
    if end.status == "failed":
        _report(f"nothing was measured; the journal has the reasons: {folder / 'journal.jsonl'}")
        return EXIT_FAILED
    try:
        result, text = _analyze(prepared, recording if recording.exists() else None, args.format, args.figure)
    except (JoulewatchError, OSError) as error:
        _report(f"the run is stored, but its analysis failed: {error}\nTry again with: {again}")
        return status or EXIT_FAILED
    # After the files of the run, which must not depend on the reader of stdout.
    sys.stdout.write(text)
    sys.stdout.flush()
    if prepared.prometheus is not None and args.publish:
        _publish(result, prepared.prometheus, again)
    _report_method(prepared.sensors)
    _report(f"run: {folder}")
    if prepared.prometheus is not None:
        _report(f"dashboard: {dashboard_link(result.record, args.grafana or '')}")
    if end.status == "interrupted":
        _report(f"The run was stopped early; the windows so far are shown. Analyze them again with: {again}")
    return status


def _analyze(prepared: Prepared, recording: Path | None, form: str, figure: Path | None) -> tuple[RunResult, str]:
    """Analyze the run and write its files; return the result and its text for stdout."""
    from joulewatch_harness.analysis.reports import to_csv, to_json, to_text
    from joulewatch_harness.analysis.reports.figure import write_figure
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results.summary import analyze_run
    from joulewatch_harness.analysis.sources.opening import open_recording, open_source
    from joulewatch_harness.analysis.sources.stored import by_sources
    from joulewatch_harness.runner.other_exporters import wait_for_samples
    from joulewatch_harness.storage.journal import read_run

    record = read_run(prepared.folder)
    source: SampleSource | None
    if prepared.plan.sources:
        record, source = by_sources(record, prepared.plan.sources, prepared.prometheus)
    else:
        source = open_source(prometheus=prepared.prometheus) if recording is None else open_recording(recording)
    with contextlib.ExitStack() as stack:
        close = getattr(source, "close", None)
        if callable(close):
            stack.callback(close)
        if prepared.plan.sources and source is not None:
            wait_for_samples(source, max((window.end_s for window in record.windows), default=0.0), prepared.sensors)
        result = analyze_run(record, source)
    as_json = to_json.render_json(result)
    if form == "json":
        text = as_json
    elif form == "csv":
        text = to_csv.render_csv(result)
    else:
        text = to_text.render_table(result, width=terminal_width())
    (prepared.folder / RESULT_NAME).write_text(as_json, encoding="utf-8")
    target = figure or prepared.folder / FIGURE_NAME
    write_figure(result, target)
    _report(f"figure: {target}\nresult: {prepared.folder / RESULT_NAME}")
    if recording is not None:
        _report(f"recording: {recording}")
    return result, text


def _publish(result: RunResult, prometheus: PrometheusOptions, again: str) -> None:
    """Write the results to Prometheus for the dashboards; they are on disk if that fails."""
    from joulewatch_harness.clients.prometheus import PrometheusClient
    from joulewatch_harness.delivery.results import publish

    try:
        with PrometheusClient(prometheus) as client:
            count = publish(result, client)
    except JoulewatchError as error:
        _report(f"the results are not on the dashboards: {error}\nTry again with: {again} --publish")
    else:
        _report(f"published {count_of(count, 'sample')} to {prometheus.url}")


def dashboard_link(record: RunRecord, grafana: str) -> str:
    """Return the address of the run on the dashboard Experiment; only its path if the URL of Grafana is empty."""
    start_s = record.header.started_at_s
    end_s = record.end.ended_at_s if record.end is not None else time.time()
    query = urlencode({"var-run": record.header.run, "from": to_ms(start_s), "to": to_ms(end_s + LINK_MARGIN_S)})
    return f"{grafana.rstrip('/')}/d/{DASHBOARD_UID}?{query}"


def _report_sensors(sensors: Sequence[SensorRecord]) -> None:
    for item in sensors:
        if item.refresh_s is not None:
            refresh = f", refresh {item.refresh_s * 1e3:.3g} ms"
        else:
            refresh = f", refresh unknown: assumed {assumed_refresh_s(item):g} s" if has_refresh(item) else ""
        series = f"{item.scope} {item.component} {item.device} {item.domain}"
        _report(f"sensor: {series} by {item.collector} ({item.method}{refresh})")
    _report_method(sensors)


def _report_delivery(report: DeliveryReport, prepared: Prepared) -> None:
    assert prepared.prometheus is not None
    windows = count_of(report.delivered, "window is", "windows are")
    _report(f"{windows} in {prepared.prometheus.url} (confirmed by reading back)")
    push = f"joulewatch runs push {prepared.folder} --prometheus {prepared.prometheus.url}"
    for what, reason in report.refusals():
        _report(f"{what} refused: {reason}; the journal has everything: {push}")
    if report.pending or report.trouble:
        why = f": {report.trouble}" if report.trouble else ""
        _report(
            f"{count_of(report.pending, 'window')} not delivered yet{why}; the journal has everything. "
            f"Deliver the rest with: {push}"
        )


def _report_method(sensors: Sequence[SensorRecord]) -> None:
    """Warn if energies are not measured."""
    methods = {item.method for item in sensors}
    if "estimated" in methods:
        _report(
            "ENERGIES ARE ESTIMATED, not measured: this machine has no readable power sensor, so they come from CPU "
            "utilisation and a power model ('joulewatch-exporter check' lists what is missing)"
        )
    if "emulated" in methods:
        _report("ENERGIES ARE EMULATED: the sensors are those of the emulator, not of this machine")


def _rounds_text(plan: Plan) -> str:
    target = plan.max_relative_uncertainty
    if target is None:
        assert plan.rounds is not None
        return count_of(plan.rounds, "round")
    limit = "" if plan.max_run_s is None else f", at most {plan.max_run_s:g} s"
    return f"{LOOKS[0]} to {LOOKS[-1]} rounds (until ±{100 * target:g} %{limit})"


def _report(text: str) -> None:
    # A terminal that is gone must not end the run.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
