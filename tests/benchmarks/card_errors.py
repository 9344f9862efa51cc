"""Errors of energies of servers that are predicted from the cards of their GPUs, each GPU held out."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.machine import markdown_table
from joulewatch_harness.prediction.cards import find_card
from joulewatch_harness.prediction.roofline import half_width

TABLE: Final = Path(__file__).parent / "data" / "prediction" / "mlperf_offline_gpus.csv"
PRECISION: Final = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured server."""

    card: str
    network: str
    count: int
    """Number of GPUs."""
    rate: float
    """Inferences per second."""
    watts: float
    """At the wall."""
    tdp: float
    peak: float

    @property
    def use(self) -> float:
        """The logarithm of inferences per operation that the GPUs could have computed."""
        return math.log(self.rate / self.count / self.peak)


def read_results() -> list[Result]:
    """Return the published results of GPUs that have a complete card."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results = []
    for row in rows:
        card = find_card(row["card"])
        tdp, peak = card.fact("tdp_watts"), card.fact(f"peak_operations_per_second.{PRECISION}")
        assert tdp is not None
        assert peak is not None
        results.append(
            Result(
                card=card.name, network=row["network"], count=int(row["gpus"]), rate=float(row["samples_per_second"]),
                watts=float(row["watts"]), tdp=tdp.value, peak=peak.value,
            )
        )  # fmt: skip
    return results


def held_out_errors(results: list[Result]) -> dict[str, list[tuple[float, float]]]:
    """Return the logarithmic errors of the rate and of the energy of each card, predicted from the other cards.

    A server's power is a host and a share of the TDP, both fitted to the other cards.
    """
    errors: dict[str, list[tuple[float, float]]] = {}
    for card in dict.fromkeys(result.card for result in results):
        others = [result for result in results if result.card != card]
        columns = np.array([[1.0, other.count * other.tdp] for other in others])
        watts = np.array([other.watts for other in others])
        host, share = np.linalg.lstsq(columns / watts[:, None], np.ones(len(others)), rcond=None)[0]
        for result in results:
            if result.card != card:
                continue
            uses: dict[str, list[float]] = {}
            for other in others:
                if other.network == result.network:
                    uses.setdefault(other.card, []).append(other.use)
            if uses:
                of_rate = result.use - float(np.mean([np.mean(values) for values in uses.values()]))
                of_power = math.log(result.watts / (host + share * result.count * result.tdp))
                errors.setdefault(card, []).append((of_rate, of_power - of_rate))
    return errors


def device_half_width(errors: dict[str, list[tuple[float, float]]]) -> float:
    """Return the half-width of a 90 % interval of the energy for a new card: each card counts as one error."""
    sizes = [math.sqrt(float(np.mean([energy**2 for _, energy in some]))) for some in errors.values()]
    return half_width(np.array(sizes))[0]


def card_section() -> tuple[str, dict[str, Any]]:
    """Return the section of ``prediction.md``, and its numbers."""
    errors = held_out_errors(read_results())
    every = np.array([error for some in errors.values() for error in some])
    shares = np.abs(np.expm1(-every))
    width = device_half_width(errors)
    rows = [
        [name, str(len(every)), str(len(errors)), *(f"{100 * value:.0f} %" for value in np.quantile(of, (0.5, 0.9)))]
        for name, of in (("inferences/s", shares[:, 0]), ("energy at the wall", shares[:, 1]))
    ]
    worst = ", ".join(
        f"{card} ×{math.exp(float(np.median([energy for _, energy in some]))):.1f}" for card, some in errors.items()
    )
    text = (
        "## GPUs from the card alone\n\nMLPerf's closed division, scenario Offline. Each GPU is predicted from the "
        "others: the rate by the ratio of the peak rates (fp16), the power by a share of the TDP plus a host."
        f"\n\n{markdown_table(['quantity', 'n', 'cards', 'median', 'p90'], rows)}\n"
        f"Measured over predicted energy (median of a card): {worst}. A 90 % interval over these few cards is "
        f"×/÷ {math.exp(width):.1f} (Student's t); `joulewatch predict` never gives a narrower one from a card alone.\n"
    )
    return text, {"n": len(every), "cards": len(errors), "half_width": width, "errors": errors}


if __name__ == "__main__":
    print(card_section()[0])  # noqa: T201
