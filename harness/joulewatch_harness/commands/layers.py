"""``joulewatch layers``: time per operator from the runtime's own trace, energy per operator as an estimate.

The trace is a separate pass. The energy comes from measured windows of another pass: of a given run, or of a short run
that this command makes in another process. No window contains a traced batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import (
    add_format_argument,
    add_output_argument,
    check_folder,
    network_options,
)
from joulewatch_harness.errors import ConfigError, CoverageError, JoulewatchError, NetworkError, RecordError
from joulewatch_harness.plan.network_names import short_name
from joulewatch_harness.plan.parsing import make_plan, parse_batch_sizes
from joulewatch_harness.plan.plan import DEFAULT_NETWORK, default_runtime
from joulewatch_harness.plan.runtimes import RUNTIMES

if TYPE_CHECKING:
    from joulewatch_harness.analysis.results.layers import Basis
    from joulewatch_harness.analysis.results.model import RunResult
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.records import Configuration
    from joulewatch_harness.traces import Trace

DEFAULT_BATCH_SIZE: Final = 1
TRACED: Final = ", ".join(runtime.name for runtime in RUNTIMES.values() if runtime.traces)
PROFILE: Final = (sys.executable, "-m", "joulewatch_harness", "profile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch layers``."""
    parser.add_argument(
        "network",
        nargs="?",
        metavar="NETWORK",
        help=f"built-in network, FILE.onnx, module:object or file.py:object (default: {DEFAULT_NETWORK}, or the "
        "network of --run)",
    )
    parser.add_argument("--model", metavar="FILE.onnx", help="same as NETWORK FILE.onnx")
    parser.add_argument("--runtime", help=f"{TRACED} (default: onnxruntime)")
    parser.add_argument("--precision", help="as in joulewatch profile")
    parser.add_argument("--batch-size", metavar="N", help=f"default: {DEFAULT_BATCH_SIZE}, or the batch size of --run")
    parser.add_argument(
        "--option", action="append", metavar="KEY=VALUE", help="option of the network or its runtime; repeatable"
    )
    parser.add_argument("--threads", help="same as --option threads=N")
    energy = parser.add_argument_group("energy source (default: a short run made now)")
    energy.add_argument("--run", metavar="RUN", help="run id or a prefix of it, run directory, journal, or recording")
    energy.add_argument("--configuration", metavar="NAME", help="configuration of the run, if several match")
    energy.add_argument("--no-energy", action="store_true", help="show times and operations only")
    energy.add_argument("--exporter", action="append", metavar="URL", help="exporter for the short run; repeatable")
    add_output_argument(energy)
    add_prometheus_arguments(parser)
    out = parser.add_argument_group("output")
    add_format_argument(out)
    out.add_argument("--figure", metavar="FILE", type=Path, help="write a bar chart: .png, .svg or .pdf")
    out.add_argument(
        "--smallest",
        metavar="PERCENT",
        type=number(ge=0, le=100),
        default=1.0,
        help="combine operators with a smaller share of the time in table and figure (default: 1)",
    )
    out.add_argument("--trace", metavar="FILE", type=Path, help="write the trace as JSON")


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch layers``.

    Raises:
        ConfigError: Bad arguments, a network or runtime that cannot be traced, or a run of something else.
        NetworkError: The network failed to load, to prepare the batch or to be traced.
        CoverageError, QueryError, RecordError: The run has no energy or cannot be read.
    """
    from joulewatch_harness.analysis.reports import layers_report
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path
    from joulewatch_harness.analysis.reports.layers_figure import write_figure
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.analysis.results import layers

    _check(args)
    if args.figure is not None:
        check_figure_path(args.figure)
    result = None if args.run is None else analyzed(args.run, args.output, options_from_args(args))
    configuration, batch_size = chosen(args, result)
    basis: Basis | None = None
    if result is not None:
        basis = layers.basis_of(result, configuration.name, batch_size)
    is_default = result is None and args.batch_size is None
    trace, about = traced(configuration, batch_size, args.trace, or_fixed=is_default)
    batch_size = trace.batch_size
    notes: list[str] = []
    if result is not None:
        notes += differences(result, configuration, about)
    elif not args.no_energy:
        try:
            basis = short_run(configuration, batch_size, args.output, args.exporter or ())
        except JoulewatchError as error:
            notes.append(f"No energy: {error}")
    view = layers.layer_view(trace, {key: value for key, value in about.items() if key in _SHOWN}, basis, notes)
    smallest = args.smallest / 100
    if args.format == "json":
        sys.stdout.write(layers_report.render_json(view))
    elif args.format == "csv":
        sys.stdout.write(layers_report.render_csv(view))
    else:
        sys.stdout.write(layers_report.render_table(view, smallest, width=terminal_width()))
    sys.stdout.flush()
    if args.format != "table":
        for line in layers_report.warning_lines(view):
            _log(line)
    if args.figure is not None:
        write_figure(view, args.figure, smallest)
        _log(f"figure: {args.figure}")
    return 0


_SHOWN: Final = ("network", "runtime", "runtime_version", "precision", "provider", "device")


def _check(args: argparse.Namespace) -> None:
    if args.network is not None and args.model is not None:
        raise ConfigError(f"NETWORK {args.network} and --model {args.model} both name a network: give one of them")
    if args.run is not None and args.no_energy:
        raise ConfigError("--run and --no-energy exclude each other: give one of them")
    if args.configuration is not None and args.run is None:
        raise ConfigError("--configuration needs --run")
    if args.run is None and options_from_args(args) is not None:
        raise ConfigError("--prometheus needs --run")
    if args.trace is not None:
        check_folder("--trace", args.trace)


def chosen(args: argparse.Namespace, result: RunResult | None) -> tuple[Configuration, int]:
    """Return the configuration to trace and its batch size, from the command line or from the run.

    Raises:
        ConfigError: No configuration of the run matches, or several; or a bad batch size or option.
    """
    network = args.model or args.network
    size = None
    if args.batch_size is not None:
        sizes = parse_batch_sizes(args.batch_size, "--batch-size")
        if len(sizes) != 1:
            raise ConfigError(f"--batch-size {args.batch_size}: must be a single batch size")
        size = sizes[0]
    options = network_options(args.option, args.threads)
    if result is not None:
        return _from_run(args, result, network, size, options)
    network = network or DEFAULT_NETWORK
    entry: dict[str, Any] = {"network": network, "runtime": args.runtime or default_runtime(network)}
    if args.precision is not None:
        entry["precision"] = args.precision
    (configuration,) = make_plan({"configurations": [entry]}, "command line").configurations
    return replace(configuration, options=options), size or DEFAULT_BATCH_SIZE


def _from_run(
    args: argparse.Namespace, result: RunResult, network: str | None, size: int | None, options: Mapping[str, str]
) -> tuple[Configuration, int]:
    where = f"run {result.record.header.run}"
    configurations: dict[str, Configuration] = {}
    sizes: dict[str, list[int]] = {}
    for group in result.groups:
        configurations.setdefault(group.configuration.name, group.configuration)
        sizes.setdefault(group.configuration.name, []).append(group.batch_size)
    matching = [
        configuration
        for configuration in configurations.values()
        if (args.configuration is None or configuration.name == args.configuration)
        and (network is None or _is_named(configuration, network))
        and (args.runtime is None or configuration.runtime == args.runtime)
        and (args.precision is None or args.precision in (configuration.precision, configuration.actual_precision))
        and (size is None or size in sizes[configuration.name])
        and all(configuration.options.get(key) == value for key, value in options.items())
    ]
    if len(matching) != 1:
        count = "several configurations match" if matching else "no configuration matches"
        names = [configuration.name for configuration in (matching or configurations.values())]
        raise ConfigError(f"{where}: {count}; choose one with --configuration: {', '.join(names) or 'it has none'}")
    configuration = matching[0]
    if size is None:
        if len(sizes[configuration.name]) != 1:
            known = ", ".join(map(str, sorted(sizes[configuration.name])))
            raise ConfigError(
                f"{where} measured {configuration.name} at batch sizes {known}: choose one with --batch-size N"
            )
        size = sizes[configuration.name][0]
    if network is not None and network != configuration.network:
        # The file may have moved since the run; its hash is compared.
        configuration = replace(configuration, path=network)
    return configuration, size


def _is_named(configuration: Configuration, network: str) -> bool:
    """Return whether ``network`` is the configuration's network, by its name or its path, also in another folder."""
    names = (configuration.network, configuration.path, short_name(configuration.target, configuration.runtime))
    return network in names or short_name(network, configuration.runtime) in names


def traced(
    configuration: Configuration, batch_size: int, keep: Path | None, *, or_fixed: bool = False
) -> tuple[Trace, dict[str, str]]:
    """Load the network, trace one batch size, and close it.

    Args:
        configuration: The network.
        batch_size: The batch size.
        keep: File for the trace; None: a temporary one.
        or_fixed: Use the network's own batch size instead if its batch axis is fixed.

    Returns:
        The trace, and the description of the network.

    Raises:
        ConfigError: The network cannot be traced, or differs from the configuration.
        NetworkError: The network failed.
    """
    from joulewatch_harness.runner.network_checks import fixed_batch_size
    from joulewatch_harness.runtimes import as_loaded, open_network
    from joulewatch_harness.traces import read_trace

    runtime = RUNTIMES.get(configuration.runtime)
    if runtime is not None and not runtime.traces:
        raise ConfigError(
            f"layers does not support the runtime {runtime.name}, which reports no times of operators: use --runtime "
            f"{TRACED}"
        )
    network = open_network(configuration)
    trace = getattr(network, "trace", None)
    if not callable(trace):
        raise ConfigError(
            f"{configuration.name}: runtime {configuration.runtime!r} does not report times of operators (it has no "
            f"trace()): use --runtime {TRACED}, or give your network a method trace(path)"
        )
    try:
        network.load()
        loaded = as_loaded(configuration, network.describe())
        if or_fixed:
            batch_size = fixed_batch_size(loaded) or batch_size
        network.prepare(batch_size)
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            path = keep or Path(scratch) / "trace.json"
            trace(path)
            trace_read = read_trace(path)
    except JoulewatchError:
        raise
    except Exception as error:
        raise NetworkError(f"{configuration.name} could not be traced: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(Exception):
            network.close()
    if trace_read.batch_size != batch_size:
        raise NetworkError(f"{configuration.name}: its trace has batch size {trace_read.batch_size}, not {batch_size}")
    return trace_read, {
        "network": configuration.network,
        "runtime": loaded.runtime,
        "runtime_version": loaded.runtime_version,
        "precision": loaded.actual_precision or loaded.precision,
        "provider": loaded.provider,
        "device": loaded.device,
        "model_sha256": loaded.model_sha256,
    }


def differences(result: RunResult, configuration: Configuration, about: Mapping[str, str]) -> list[str]:
    """Return notes on the differences between the measured configuration and the traced one."""
    from joulewatch_harness.analysis.results.compare import NOT_COMPARABLE
    from joulewatch_harness.runner.provenance import collect

    notes = []
    for key, name in (
        ("model_sha256", "model files"),
        ("runtime_version", "versions of the runtime"),
        ("provider", "providers"),
    ):
        measured, traced_now = getattr(configuration, key), about.get(key, "")
        if measured and traced_now and measured != traced_now:
            notes.append(f"{NOT_COMPARABLE}: different {name}: run {measured[:16]}, trace {traced_now[:16]}.")
    cpu = collect().get("cpu")
    here = cpu.get("model") if isinstance(cpu, Mapping) else None
    there = result.record.header.provenance_text("cpu", "model") or result.record.header.hardware
    if here and there and here not in there:
        notes.append(f"{NOT_COMPARABLE}: different machines: run {there}, trace {here}.")
    return notes


def analyzed(run: str, output: Path, options: PrometheusOptions | None) -> RunResult:
    """Return the analysis of a stored run.

    Raises:
        QueryError, RecordError: The run is unknown or cannot be read.
    """
    from joulewatch_harness.analysis.results.summary import analyze_run
    from joulewatch_harness.analysis.sources.stored import find

    record, source = find(run, output, options)
    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        return analyze_run(record, source)


def short_run(configuration: Configuration, batch_size: int, output: Path, exporters: Sequence[str]) -> Basis:
    """Measure the same network at the same batch size in another process, for about ten seconds.

    Raises:
        CoverageError: The measurement failed; the other process writes its errors to stderr.
    """
    from joulewatch_harness.analysis.results.layers import basis_of

    words = [
        *("--network", configuration.target, "--precision", configuration.precision),
        *("--batch-sizes", str(batch_size)),
        *(
            "--preset",
            "quick",
            "--rounds",
            "3",
            "--window",
            "1",
            "--idle",
            "0",
            "--output",
            os.fspath(output),
            "--format",
            "json",
        ),
    ]
    if configuration.runtime != default_runtime(configuration.target):
        words += ["--runtime", configuration.runtime]
    for key, value in configuration.options.items():
        words += ["--option", f"{key}={value}"]
    for url in exporters:
        words += ["--exporter", url]
    _log("measuring the energy of an inference in a short run")
    finished = subprocess.run([*PROFILE, *words], stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise CoverageError("no_energy", f"the short run ended with exit code {finished.returncode}")
    try:
        run = str(json.loads(finished.stdout)["run"]["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"the short run printed no result: {error}") from error
    result = analyzed(os.fspath(output / run), output, None)
    return basis_of(result, result.groups[0].configuration.name if result.groups else "", batch_size)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
