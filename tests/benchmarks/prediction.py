"""Errors of predictions on published energies, next to two baselines, and on simulated devices with a known truth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from benchmarks.card_errors import card_section
from benchmarks.finn_designs import finn_section
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.prediction.converters import read_table
from joulewatch_harness.prediction.evaluate import baseline_wins, evaluated
from joulewatch_harness.prediction.fit import Case, Fit, fit_all
from support.simulated_devices import device_rows, networks

TABLE: Final = Path(__file__).parent / "data" / "prediction" / "edge_cnn_energy.csv"
SIMULATED: Final = 20
"""Number of simulated devices."""


def run(*, quick: bool = False) -> None:
    """Fit, leave out, and write the tables."""
    machine = describe_machine()
    started = time.perf_counter()
    published = evaluated(fit_all(read_table(TABLE)))
    seconds = time.perf_counter() - started
    shapes = networks()[:: 8 if quick else 2]
    rows = [row for seed in range(6 if quick else SIMULATED) for row in device_rows(seed, shapes)]
    simulated = evaluated(fit_all(rows))
    finn_text, finn = finn_section()
    card_text, of_cards = card_section()
    text = (
        f"# Predictions\n\n{host_line(machine)}\n## Published energies\n\n{_source(published)} `joulewatch fit` took "
        f"{seconds:.0f} s.\n\n{_table(published.evaluation)}\n{_LEGEND}\n\n**Too few devices.** An interval over whole "
        "devices needs nine; these rows have four boards, so coverage and hi/lo of unseen devices are no validation. "
        "More rows of the same sources exist; they are reserved for an independent validation.\n\n"
        f"**A baseline is better** for:\n\n{_wins(published)}\n{finn_text}\n{card_text}\n"
        f"## Simulated devices\n\n{len({row.device for row in rows})} devices with {len(shapes)} networks each, 5 % "
        "noise in energy and in latency, and coefficients that scatter by a factor of 1.6. Their power is constant, "
        f"which favours that baseline.\n\n{_table(simulated.evaluation)}"
    )
    result = {
        "machine": machine,
        "fit_seconds": seconds,
        "published": [dataclasses.asdict(case) for case in published.evaluation],
        "finn": finn,
        "cards": of_cards,
        "simulated": [dataclasses.asdict(case) for case in simulated.evaluation],
    }
    write_result("prediction", result, text)


def _source(fit: Fit) -> str:
    rows = sum(len(model.rows) for model in fit.models)
    devices = {model.device for model in fit.models}
    networks = {row.network for model in fit.models for row in model.rows}
    return (
        f"{rows} rows of the MLPerf open division (rounds v2.0 and v2.1, unverified): {len(devices)} boards, "
        f"{len(fit.models)} models of board, runtime and precision, {len(networks)} MobileNets of two families, energy "
        "at the wall ([source and licence](../data/prediction/README.md))."
    )


def _table(cases: Iterable[Case]) -> str:
    def percent(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{100 * value:.{digits}f} %"

    head = ["held out", "n", "devices", "model", "p90", "a + b × MACs", "constant power × latency", "coverage"]
    rows: list[list[Any]] = [
        [
            case.name, str(case.n), str(case.devices), percent(case.median), percent(case.p90), percent(case.macs),
            percent(case.power), percent(case.coverage), percent(case.worst_coverage),
            "–" if case.ratio is None else f"{case.ratio:.2f}", case.note,
        ]
        for case in cases
    ]  # fmt: skip
    return markdown_table([*head, "worst device", "hi/lo", "note"], rows)


def _wins(fit: Fit) -> str:
    cases = [f"{case.name}: {case.winner}" for case in fit.evaluation if case.winner]
    return "\n".join(f"- {text}" for text in (*cases, *baseline_wins(fit))) + "\n"


_LEGEND: Final = (
    "model, baselines: median of |predicted / measured - 1|; for an order: share that is right. The baseline of "
    "constant power knows the measured latency, the model only where stated. coverage: share of the 90 % intervals "
    "that contain the measured value, over all devices, and on the worst one. hi/lo: median ratio of the ends of an "
    "interval."
)


if __name__ == "__main__":
    run()
