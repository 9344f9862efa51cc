"""Errors of energies that are predicted from FINN's estimates; each design is held out from what predicts it."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.machine import markdown_table
from joulewatch_harness.prediction.cards import Card, find_card
from joulewatch_harness.prediction.fpga import Design, Setting, predict_designs, read_designs

TABLE: Final = Path(__file__).parent / "data" / "prediction" / "finn_rfsoc2x2_measured.csv"
AT_REST: Final = "mvau/"
"""Designs with a dynamic power of 12 mW: their readings are those of the board at rest."""


def finn_section() -> tuple[str, dict[str, Any]]:
    """Return the section of ``prediction.md``, and its numbers."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    designs = read_designs(TABLE)
    watts = np.array([float(row["meas_total_mw"]) * 1e-3 for row in rows])
    joules = np.array([float(row["meas_energy_mj_per_inference"]) * 1e-3 for row in rows])
    rates = np.array([float(row["meas_fps"]) for row in rows])
    at_rest = np.array([row["network"].startswith(AT_REST) for row in rows])
    energy, constant, speed, inside, ratios = [], [], [], [], []
    for number, design in enumerate(designs):
        others = np.arange(len(rows)) != number
        card = _card(float(watts[others & at_rest].mean()))
        (found,) = predict_designs([_held_out(design, designs, watts, others, card)], card, Setting())
        assert found.joules.low is not None
        assert found.joules.high is not None
        assert found.throughput is not None
        energy.append(abs(found.joules.median / joules[number] - 1))
        speed.append(abs(found.throughput.median / rates[number] - 1))
        constant.append(abs(watts[others].mean() * design.cycles / design.clock_hertz / joules[number] - 1))
        inside.append(found.joules.low <= joules[number] <= found.joules.high)
        ratios.append(found.joules.high / found.joules.low)
    result = {
        "n": len(rows),
        "energy": _errors(energy),
        "constant_power": _errors(constant),
        "frames_per_second": _errors(speed),
        "coverage": float(np.mean(inside)),
        "interval_ratio": float(np.median(ratios)),
    }
    table = markdown_table(
        ["quantity", "n", "model", "worst", "mean power of the others × FINN's cycles", "coverage", "hi/lo"],
        [
            ["energy", str(len(rows)), *_percent(energy), _percent(constant)[0], f"{100 * np.mean(inside):.0f} %",
             f"{np.median(ratios):.2f}"],
            ["frames/s", str(len(rows)), *_percent(speed), "–", "–", "–"],
        ],
    )  # fmt: skip
    text = (
        "## FINN designs before synthesis\n\n8 designs on one board (RFSoC 2x2, two supply rails), from FINN's cycles "
        "and LUTs before synthesis. Each is predicted with the power at rest and the dynamic power per LUT of the "
        f"others.\n\n{table}"
    )
    return text, result


def _card(watts: float) -> Card:
    card = find_card("rfsoc2x2")
    assert card.idle_watts is not None
    return dataclasses.replace(card, idle_watts=dataclasses.replace(card.idle_watts, value=watts))


def _held_out(design: Design, designs: list[Design], watts: Any, others: Any, card: Card) -> Design:
    """Return the design with the dynamic power per LUT that is fitted to the other designs."""
    assert card.idle_watts is not None
    assert card.idle_watts.value is not None
    luts = np.array([one.luts or 0.0 for one in designs])
    slope = float(((watts - card.idle_watts.value) * luts)[others].sum() / (luts**2)[others].sum())
    return dataclasses.replace(design, dynamic_watts=slope * (design.luts or 0.0))


def _errors(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "worst": max(values)}


def _percent(values: list[float]) -> tuple[str, str]:
    return f"{100 * np.median(values):.1f} %", f"{100 * max(values):.1f} %"
