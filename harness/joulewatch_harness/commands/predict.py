"""``joulewatch predict``: the energy and throughput of a network on a device, without measuring it there."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_exporter.text import count_of
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument, network_options, write_file
from joulewatch_harness.errors import ConfigError, PredictionRefusedError

if TYPE_CHECKING:
    from joulewatch_harness.delivery.annotations import Sample
    from joulewatch_harness.prediction.fit import Fit
    from joulewatch_harness.prediction.predict import Prediction, Request
    from joulewatch_harness.prediction.table import Network

FINN_FLAGS: Final = ("clock_mhz", "driver_seconds", "host_watts")
EXIT_REFUSED = PredictionRefusedError.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch predict``."""
    parser.add_argument(
        "network",
        metavar="MODEL.onnx|NETWORK|FOLDER",
        help="an ONNX file, a built-in network, a network of the fit, a CSV file with the features of networks, or the "
        "reports of a FINN build",
    )
    parser.add_argument("--fit", metavar="FILE", type=Path, help="models written by 'joulewatch fit'")
    parser.add_argument(
        "--device", required=True, help="device of the fit, or of the calibration runs, or a card (or FILE.yaml)"
    )
    parser.add_argument("--runtime", default="", help="runtime (default: the only one of the device)")
    parser.add_argument("--precision", default="", help="precision (default: the only one of the device)")
    parser.add_argument("--batch-sizes", metavar="SIZES", help="such as 1,8,64 or 1..64 (default: the measured ones)")
    parser.add_argument(
        "--latency",
        metavar="SECONDS",
        type=number(gt=0),
        help="measured seconds per inference, which narrow the interval",
    )
    parser.add_argument(
        "--calibration",
        metavar="RUN|TABLE.csv",
        nargs="+",
        action="extend",
        default=[],
        help="measured energies of a device that is not in the fit",
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        help="option of a built-in network, or of the inputs of an ONNX file: dims=sequence=128",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE",
        type=Path,
        help="choose three networks to measure on a device that is not in the fit, and write the plan for 'joulewatch "
        "profile FILE'",
    )
    parser.add_argument("--figure", metavar="FILE", type=Path, help="write the figure: .png, .svg or .pdf")
    parser.add_argument("--publish", action="store_true", help="write the predictions to Prometheus by remote write")
    finn = parser.add_argument_group("FINN on an FPGA, before synthesis")
    finn.add_argument("--folding", metavar="FILE", type=Path, help="folding file (PE, SIMD) for a QONNX file")
    finn.add_argument("--clock-mhz", metavar="MHZ", type=number(gt=0), help="clock (default: that of the reports)")
    finn.add_argument("--driver-seconds", metavar="SECONDS", type=number(gt=0), help="time of the driver per batch")
    finn.add_argument(
        "--host-watts", metavar="WATTS", type=number(gt=0), help="power of the host (default: not included)"
    )
    add_output_argument(parser)
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch predict``.

    Raises:
        PredictionRefusedError: No measurement supports the prediction.
        ConfigError, QueryError, RecordError: Bad arguments, or a file or run cannot be read.
    """
    from joulewatch_harness.commands.fit import read_source, use_one_thread

    use_one_thread()
    from joulewatch_harness.plan.parsing import parse_batch_sizes
    from joulewatch_harness.prediction.card_alone import card_of, measured_name, predict_from_card
    from joulewatch_harness.prediction.fpga import is_design
    from joulewatch_harness.prediction.model_file import read_fit
    from joulewatch_harness.prediction.predict import Request, predict
    from joulewatch_harness.prediction.table import check_rows

    check_outputs(args)
    for name in ("calibration", "latency", "figure", "publish") if args.plan is not None else ():
        if getattr(args, name):
            raise ConfigError(f"--{name} is for predictions: omit it with --plan, which makes none")
    if args.folding is not None or (args.fit is None and is_design(Path(args.network))):
        return write(predict_finn(args), args)
    if args.fit is None:
        raise ConfigError(
            f"--fit FILE is missing: 'joulewatch fit RUN... --out FILE' writes one ({args.network} is not a folder "
            "with FINN's reports, which needs none)"
        )
    for name in FINN_FLAGS:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for FINN designs: omit it, or omit --fit")
    fit = read_fit(args.fit)
    batch_sizes = parse_batch_sizes(args.batch_sizes, "--batch-sizes") if args.batch_sizes else ()
    options = options_from_args(args)
    calibration = [row for word in args.calibration for row in read_source(word, args.output, options)[0]]
    check_rows(calibration)
    predictions, refused = [], []
    networks = find_networks(args.network, network_options(args.option, None), fit)
    if args.latency is not None and len(networks) > 1:
        raise ConfigError(f"--latency is that of one network; {args.network} needs the column seconds_per_inference")
    requests = [
        Request(
            network=one.name, family=one.family, features=one.features, device=args.device, runtime=args.runtime,
            precision=args.precision,
            batch_sizes=tuple(batch_sizes) or (() if one.batch_size is None else (one.batch_size,)),
            seconds=one.seconds if args.latency is None else args.latency, calibration=tuple(calibration),
        )
        for one in networks
    ]  # fmt: skip
    if args.plan is not None:
        return write_plan(fit, requests, args)
    card = None if calibration else card_of(fit, args.device)
    if card is not None and (measured := measured_name(fit, card)) is not None:
        card, requests = None, [replace(request, device=measured) for request in requests]
    parts = [part for request in requests for part in by_batch_size(request)]
    for part in parts:
        try:
            predictions += predict(fit, part) if card is None else predict_from_card(fit, part, card)
        except PredictionRefusedError as error:
            if len(parts) == 1:
                raise
            refused.append(str(error))
    write(predictions, args)
    for text in dict.fromkeys(refused):
        print(f"joulewatch: {text}", file=sys.stderr)  # noqa: T201
    return EXIT_REFUSED if refused else 0


def by_batch_size(request: Request) -> list[Request]:
    """Return a request for each batch size, so that one that is refused does not hide the others."""
    if request.seconds is not None or not request.batch_sizes:
        return [request]
    return [replace(request, batch_sizes=(size,)) for size in request.batch_sizes]


def write_plan(fit: Fit, requests: Sequence[Request], args: argparse.Namespace) -> int:
    """Write the plan that calibrates a new device, and show its networks."""
    import yaml

    from joulewatch_harness.analysis.reports.table import Column, Table, json_text, terminal_width
    from joulewatch_harness.plan.runtimes import RUNTIMES
    from joulewatch_harness.prediction.calibration_plan import Step, plan_calibration

    plan = plan_calibration(fit, requests, list(RUNTIMES))
    text = f"# Networks to measure on {args.device}, for predictions from {args.fit.name}\n"
    write_file("--plan", args.plan, text + yaml.safe_dump(plan.document(), sort_keys=False))
    columns: tuple[Column[Step], ...] = (
        Column("network", lambda step: step.network, text=True),
        Column("options", lambda step: " ".join(f"{key}={value}" for key, value in step.options.items()), text=True),
        Column("remaining_width", lambda step: round(step.remaining, 3)),
    )
    table = Table(columns, plan.steps)
    if args.format == "json":
        sys.stdout.write(json_text(table.records()))
    elif args.format == "csv":
        sys.stdout.write(table.csv())
    else:
        sys.stdout.write("\n".join(table.lines(terminal_width())) + "\n")
    hint = (
        "remaining_width: of the interval without measurements, after this network and those above it, if the device "
    )
    hint += f"is like the known ones\nnext: joulewatch profile {args.plan} (on the device), then --calibration RUN"
    print(hint, file=sys.stderr)  # noqa: T201
    return 0


def write(predictions: Sequence[Prediction], args: argparse.Namespace) -> int:
    """Write predictions to stdout, to a figure and to Prometheus, as requested; return the exit code.

    Raises:
        ConfigError: The figure cannot be written, or there is no Prometheus.
        DeliveryError: The predictions cannot be published; they are printed before.
    """
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.prediction import report

    if args.format == "json":
        sys.stdout.write(report.predict_json(predictions))
    elif args.format == "csv":
        sys.stdout.write(report.predict_csv(predictions))
    elif predictions:
        sys.stdout.write("\n".join(report.predict_lines(predictions, terminal_width())) + "\n")
    sys.stdout.flush()
    if args.figure is not None and predictions:
        from joulewatch_harness.prediction.figure import write_figure

        write_figure(predictions, args.figure)
        print(f"figure: {args.figure}", file=sys.stderr)  # noqa: T201
    if args.publish and predictions:
        _publish(predictions, args)
    return 0


def check_outputs(args: argparse.Namespace) -> None:
    """Check the arguments of ``write`` before anything is computed.

    Raises:
        ConfigError: The name of the figure is not valid, or there is no Prometheus.
    """
    from joulewatch_harness.analysis.reports.figure_parts import check_figure_path

    if args.figure is not None:
        check_figure_path(args.figure)
    if args.publish and options_from_args(args) is None:
        raise ConfigError("--publish needs --prometheus URL, the server that gets the predictions")


def _publish(predictions: Sequence[Prediction], args: argparse.Namespace) -> None:
    from joulewatch_harness.clients.prometheus import PrometheusClient
    from joulewatch_harness.delivery.results import publish_samples

    options = options_from_args(args)
    assert options is not None
    at_s = time.time()
    samples = prediction_samples(predictions, at_s)
    with PrometheusClient(options) as client:
        count = publish_samples(samples, client, 'method="predicted"', "predictions", at_s)
    print(f"published {count_of(count, 'sample')} to {options.url}", file=sys.stderr)  # noqa: T201


def prediction_samples(predictions: Sequence[Prediction], at_s: float) -> list[Sample]:
    """Return predictions as samples.

    They have separate metrics, so that no query of measured energies adds them or compares with them.
    """
    from joulewatch_exporter import catalog
    from joulewatch_harness.clocktime import to_ms
    from joulewatch_harness.delivery.annotations import sample

    samples = []
    for one in predictions:
        labels = {name: str(getattr(one, name)) for name in ("network", "device", "runtime", "precision", "scope")}
        labels |= {"batch_size": str(one.batch_size), "method": one.method, "fitted_to": "+".join(one.methods)}
        for metric, interval in (
            (catalog.PREDICTION_ENERGY, one.joules),
            (catalog.PREDICTION_THROUGHPUT, one.throughput),
        ):
            if interval is None:
                continue
            for quantile, value in (("0.05", interval.low), ("0.5", interval.median), ("0.95", interval.high)):
                if value is not None:
                    samples.append(sample(metric, {**labels, "quantile": quantile}, to_ms(at_s), value))
    return samples


def predict_finn(args: argparse.Namespace) -> list[Prediction]:
    """Predict FINN designs from their reports, or from a folding.

    Raises:
        PredictionRefusedError: The power of the card at rest is not known.
        ConfigError: Bad arguments or files.
    """
    from joulewatch_harness.plan.parsing import parse_batch_sizes
    from joulewatch_harness.prediction.cards import find_card
    from joulewatch_harness.prediction.fpga import PRECISION, Setting, predict_designs, read_designs

    for name in ("fit", "runtime", "latency", "calibration", "option", "plan"):
        if getattr(args, name):
            raise ConfigError(f"--{name} is for networks of a fit: omit it for a FINN design")
    setting = Setting(
        batch_sizes=parse_batch_sizes(args.batch_sizes, "--batch-sizes") if args.batch_sizes else (1,),
        driver_seconds=args.driver_seconds,
        host_watts=args.host_watts,
        precision=args.precision or PRECISION,
    )
    clock = None if args.clock_mhz is None else args.clock_mhz * 1e6
    return predict_designs(read_designs(Path(args.network), args.folding, clock), find_card(args.device), setting)


def find_networks(word: str, options: Mapping[str, str], fit: Fit) -> Sequence[Network]:
    """Return the networks that ``word`` names.

    Raises:
        ConfigError: It names no network, or an operator has no known cost.
    """
    from joulewatch_harness.names import unknown
    from joulewatch_harness.networks import BUILTIN
    from joulewatch_harness.prediction.converters import read_networks
    from joulewatch_harness.prediction.features import family_of, features_of_builtin, features_of_model
    from joulewatch_harness.prediction.table import Network

    fitted = {name: row for model in fit.models for name, row in model.networks.items()}

    def family(name: str) -> str:
        return fitted[name].family if name in fitted else family_of(name)

    path = Path(word)
    is_file = path.suffix.lower() in (".csv", ".onnx") and path.is_file()
    if word in fitted and not options and not is_file:
        features = fitted[word].features
        assert features is not None
        return [Network(name=word, family=family(word), features=features)]
    if path.suffix.lower() == ".csv":
        return [replace(one, family=one.family or family(one.name)) for one in read_networks(path)]
    if path.suffix == ".onnx":
        return [Network(name=path.stem, family=family(path.stem), features=features_of_model(path, options))]
    if word in BUILTIN:
        name = " ".join([word, *(f"{key}={options[key]}" for key in BUILTIN[word].options if key in options)])
        return [Network(name=name, family=word, features=features_of_builtin(word, options))]
    if word in fitted:
        raise ConfigError(f"--option: the features of {word!r} are those of the fit; omit the option")
    raise ConfigError(f"{unknown('network', word, {*BUILTIN, *fitted})}; a model file is named FILE.onnx")
