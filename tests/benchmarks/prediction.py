"""Errors of predictions on published energies, next to two baselines, and on simulated devices with a known truth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.card_errors import card_section
from benchmarks.finn_designs import finn_section
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.prediction.converters import read_table
from joulewatch_harness.prediction.evaluate import baseline_wins, evaluated
from joulewatch_harness.prediction.fit import ENERGY, Case, DeviceModel, Fit, fit_all
from joulewatch_harness.prediction.roofline import Floats
from support.simulated_devices import device_rows, networks

TABLE: Final = Path(__file__).parent / "data" / "prediction" / "edge_cnn_energy.csv"
JUMP: Final = 0.5
"""A model with a larger error (p90) on its own networks is no smooth function of the network."""
SIMULATED: Final = 20
"""Number of simulated devices."""


def run(*, quick: bool = False) -> None:
    """Fit, leave out, and write the tables."""
    machine = describe_machine()
    measured = read_table(TABLE)
    started = time.perf_counter()
    published = evaluated(fit_all(measured))
    seconds = time.perf_counter() - started
    smooth = evaluated(
        fit_all([row for row in measured if row.key not in {model.key for model in _jumping(published)}])
    )
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
        f"{_limit(published, smooth)}\n\n"
        f"**A baseline is better** for:\n\n{_wins(published)}\n{finn_text}\n{card_text}\n"
        f"## Simulated devices\n\n{len({row.device for row in rows})} devices with {len(shapes)} networks each, 5 % "
        "noise in energy and in latency, and coefficients that scatter by a factor of 1.6. Their power is constant, "
        f"which favours that baseline.\n\n{_table(simulated.evaluation)}"
    )
    result = {
        "machine": machine,
        "fit_seconds": seconds,
        "published": [dataclasses.asdict(case) for case in published.evaluation],
        "published_without_jumps": [dataclasses.asdict(case) for case in smooth.evaluation],
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


def _jumping(fit: Fit) -> list[DeviceModel]:
    """Return the models whose power differs more between networks than that of the device's other networks predicts."""
    return [model for model in fit.models if np.quantile(_held_out(model), 0.9) > JUMP]


def _held_out(model: DeviceModel) -> Floats:
    """Return |predicted / measured - 1| for each network of a device, predicted from its other networks."""
    return np.asarray(np.abs(np.expm1(-model.errors[ENERGY][model.main_batch_size].network)))


def _limit(published: Fit, smooth: Fit) -> str:
    parts = []
    for model in _jumping(published):
        watts = [row.joules / row.seconds for row in model.rows if row.seconds is not None]
        parts.append(
            f"{model.title}: {min(watts):.1f} to {max(watts):.1f} W; p90 of its own unseen networks "
            f"{np.quantile(_held_out(model), 0.9):.0%}"
        )
    cases = {case.name: case for case in smooth.evaluation}
    order = "order of two devices right (3 calibration runs each)"
    one, three = (cases[f"unseen device, {runs}"] for runs in ("1 calibration run", "3 calibration runs"))
    return (
        f"**{len(parts)} of the {len(published.models)} models limit these rows.** Their power jumps from network to "
        f"network, as if the scheduler chose other cores, so no function of the network predicts them "
        f"({'; '.join(parts)}). Without them, unseen devices have a median error of {one.median:.1%} and p90 "
        f"{one.p90:.1%} with 1 run, {three.median:.1%} and {three.p90:.1%} with 3 runs, and {cases[order].median:.1%} "
        f"of the orders are right, {cases[order + ', where they differ by more than 20 %'].median:.1%} where the "
        "devices differ by more than 20 %."
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
