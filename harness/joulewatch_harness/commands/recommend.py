"""``joulewatch recommend``: the device that needs the least energy for a network at a given rate."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_exporter.text import count_of
from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, network_options
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.prediction.cards import Card
    from joulewatch_harness.prediction.recommend import Candidate, Exclusion

EXIT_UNDECIDED: Final = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch recommend``."""
    parser.add_argument(
        "network", metavar="MODEL.onnx|NETWORK", help="an ONNX file, a built-in network, or a network of the fit"
    )
    parser.add_argument("--fit", metavar="FILE", type=Path, help="models written by 'joulewatch fit'")
    parser.add_argument("--rate", metavar="N/s", required=True, help="inferences per second, such as 100/s")
    parser.add_argument(
        "--max-latency",
        metavar="SECONDS",
        type=number(gt=0),
        required=True,
        help="longest time from a request to its result; the wait until a batch is full counts",
    )
    parser.add_argument(
        "--devices", metavar="DEVICE", nargs="+", default=[], help="only these: devices of the fit, or cards"
    )
    parser.add_argument(
        "--finn",
        metavar="CARD=FOLDER",
        action="append",
        default=[],
        help="an FPGA and the reports of a FINN build of the network; repeatable",
    )
    parser.add_argument("--driver-seconds", metavar="SECONDS", type=number(gt=0), help="for --finn: time of the driver")
    parser.add_argument(
        "--host-watts", metavar="WATTS", type=number(gt=0), help="for --finn: power of the host, also at rest"
    )
    parser.add_argument(
        "--card",
        metavar="FILE.yaml",
        action="append",
        default=[],
        help="card of one of the devices, with its idle power; replaces that of joulewatch; repeatable",
    )
    parser.add_argument("--price", metavar="EUR/kWh", type=number(gt=0), help="show the cost of a year")
    parser.add_argument(
        "--carbon", metavar="g/kWh|QUERY", help="show the emissions of a year; a query is sent to Prometheus"
    )
    parser.add_argument("--option", metavar="KEY=VALUE", action="append", help="option of the network")
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch recommend``.

    Raises:
        PredictionRefusedError: No device keeps the limits.
        ConfigError, QueryError: Bad arguments or files, or no carbon intensity.
    """
    from joulewatch_harness.commands.fit import use_one_thread

    use_one_thread()
    from joulewatch_harness.analysis.reports.table import terminal_width
    from joulewatch_harness.prediction import recommend_report
    from joulewatch_harness.prediction.cards import find_card, read_card
    from joulewatch_harness.prediction.recommend import candidates_of_fit, recommend, without_numbers

    rate = _rate(args.rate)
    costs = recommend_report.Costs(euros_per_kwh=args.price, grams_per_kwh=_carbon(args))
    if not args.finn and (args.driver_seconds is not None or args.host_watts is not None):
        raise ConfigError("--driver-seconds and --host-watts need --finn CARD=FOLDER")
    if args.fit is None and not args.finn:
        raise ConfigError("give --fit FILE, or --finn CARD=FOLDER, or both")
    cards = [read_card(Path(word)) for word in args.card]
    candidates: list[Candidate] = []
    excluded: dict[str, Exclusion] = {}
    if args.fit is not None:
        from joulewatch_harness.commands.predict import find_networks
        from joulewatch_harness.prediction.model_file import read_fit

        fit = read_fit(args.fit)
        networks = find_networks(args.network, network_options(args.option, None), fit)
        if len(networks) != 1:
            raise ConfigError(f"{args.network}: give one network")
        network = (networks[0].name, networks[0].family, networks[0].features)
        candidates, excluded = candidates_of_fit(fit, network, args.devices, cards)
    else:
        for name in args.devices:
            find_card(name)
    for word in args.finn:
        candidates += _finn(word, args, cards)
    run_words = f"--model {args.network}" if args.network.endswith(".onnx") else f"--network {args.network}"
    unknown = without_numbers(args.devices, candidates, run_words, cards)
    found = recommend(candidates, rate, args.max_latency, excluded, unknown)
    if args.format == "json":
        sys.stdout.write(recommend_report.recommend_json(found, costs))
    elif args.format == "csv":
        sys.stdout.write(recommend_report.recommend_csv(found, costs))
    else:
        sys.stdout.write("\n".join(recommend_report.recommend_lines(found, costs, terminal_width())) + "\n")
    return 0 if found.decided else EXIT_UNDECIDED


def _rate(text: str) -> float:
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ConfigError(f"--rate must be a number of inferences per second > 0, such as 100/s, got {text!r}")
    return rate


def _carbon(args: argparse.Namespace) -> float | None:
    """Return the grams per kilowatt hour: given, or the answer of Prometheus to a query."""
    if args.carbon is None:
        return None
    try:
        grams = float(args.carbon)
    except ValueError:
        grams = _queried(args)
    if not 0 <= grams < math.inf:
        raise ConfigError(f"--carbon must be a number >= 0 (g/kWh) or a query, got {args.carbon!r}")
    return grams


def _queried(args: argparse.Namespace) -> float:
    from joulewatch_harness.clients.prometheus import PrometheusClient

    options = options_from_args(args)
    if options is None:
        raise ConfigError(f"--carbon {args.carbon!r} is a query: give --prometheus URL")
    with PrometheusClient(options) as client:
        series = client.query(args.carbon)
    if len(series) != 1:
        raise ConfigError(f"--carbon {args.carbon!r}: the query returned {len(series)} series, not one")
    return float(series[0]["value"][1])


def _finn(word: str, args: argparse.Namespace, own_cards: list[Card]) -> list[Candidate]:
    """Return the candidate of ``CARD=FOLDER``, at the batch sizes that matter for a driver."""
    from joulewatch_harness.prediction.cards import find_card
    from joulewatch_harness.prediction.fpga import Setting, predict_designs, read_designs
    from joulewatch_harness.prediction.recommend import Candidate, Idle

    name, equals, folder = word.rpartition("=")
    if not equals:
        raise ConfigError(f"--finn {word!r}: must be CARD=FOLDER")
    card = next((card for card in own_cards if name in (card.name, card.title, *card.devices)), None) or find_card(name)
    sizes = (1,) if args.driver_seconds is None else tuple(2**power for power in range(13))
    setting = Setting(batch_sizes=sizes, driver_seconds=args.driver_seconds, host_watts=args.host_watts)
    designs = read_designs(Path(folder))
    if len(designs) != 1:
        raise ConfigError(f"--finn {word!r}: {count_of(len(designs), 'design')}; give one of {args.network}")
    named = dataclasses.replace(designs[0], network=Path(args.network).stem)
    predictions = predict_designs([named], card, setting)
    rest = card.fact("idle_watts")
    assert rest is not None
    idle = Idle(watts=rest.value + (args.host_watts or 0.0), measured=rest.status == "measured")
    return [Candidate(prediction=one, idle=idle) for one in predictions]
