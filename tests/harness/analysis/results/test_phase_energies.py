"""The energy of phases: the gross energy, divided by fitted powers."""

from __future__ import annotations

import math

import pytest

from joulewatch_harness.analysis.results.model import EnergyResult, Estimate, PhaseShare
from joulewatch_harness.analysis.results.phase_energies import with_energies
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.records import PhasePowers
from support.runs import window

SHARES = {"pack": 0.5, "execute": 0.3, "copy_out": 0.15, "other": 0.05}
WATTS = {"pack": 120.0, "execute": 60.0, "copy_out": 100.0, "other": 80.0}
RATE = 50.0
"""Inferences per second: 20 ms each."""


def sensor(device: str) -> SensorId:
    return SensorId(exporter="a:1", scope="device", collector="rapl", component="cpu", device=device, domain="package")


def powers(device: str = "socket0", standard: float = 0.1, **standards: float) -> PhasePowers:
    return PhasePowers(
        exporter="a:1",
        scope="device",
        collector="rapl",
        component="cpu",
        device=device,
        domain="package",
        watts=WATTS,
        standard_watts={name: standards.get(name, standard) for name in WATTS},
        intervals=500,
    )


def shares() -> list[PhaseShare]:
    return [
        PhaseShare(name=name, share=estimate_of(share, []), per_batch_s=0.02 * share) for name, share in SHARES.items()
    ]


def result(joules: float, *devices: str, standard: float = 0.0) -> EnergyResult:
    gross: Estimate = estimate_of(joules, [])
    return EnergyResult(
        name="cpu",
        gross=gross,
        net=None,
        idle=None,
        missing="",
        windows=(0,),
        sensors=tuple(map(sensor, devices)),
        methods=("counter",),
        sources=("edges",),
    )


def energies(phases: tuple[PhaseShare, ...]) -> dict[str, float]:
    return {phase.name: phase.energies["cpu"].value for phase in phases if "cpu" in phase.energies}


def test_each_phase_has_its_power_times_its_time() -> None:
    gross = 0.02 * sum(WATTS[name] * share for name, share in SHARES.items())
    phases, rest = with_energies(
        shares(), [window(9, 0.0, kind="phase", phase_powers=(powers(),))], [result(gross, "socket0")], RATE
    )
    assert energies(phases) == {name: pytest.approx(0.02 * share * WATTS[name]) for name, share in SHARES.items()}
    assert rest == {}


@pytest.mark.parametrize("gross", [1.5, 1.94, 3.0])
def test_the_phases_add_up_to_the_energy_of_the_measure_windows(gross: float) -> None:
    """Whatever the phase pass itself needed; and with a phase that is not resolved, together with the rest."""
    fits = powers(other=500.0)
    phases, rest = with_energies(
        shares(), [window(9, 0.0, kind="phase", phase_powers=(fits,))], [result(gross, "socket0")], RATE
    )
    found = energies(phases)
    assert "other" not in found
    assert math.fsum(found.values()) + rest["cpu"].value == pytest.approx(gross)


def test_the_power_of_the_pass_itself_is_part_of_the_uncertainty() -> None:
    exact = 0.02 * sum(WATTS[name] * share for name, share in SHARES.items())
    own = window(9, 0.0, kind="phase", phase_powers=(powers(),))
    (same, *_), _ = with_energies(shares(), [own], [result(exact, "socket0")], RATE)
    (more, *_), _ = with_energies(shares(), [own], [result(exact * 1.5, "socket0")], RATE)
    assert more.energies["cpu"].standard > 5 * same.energies["cpu"].standard


def test_a_component_needs_the_powers_of_all_its_sensors() -> None:
    own = window(9, 0.0, kind="phase", phase_powers=(powers(),))
    phases, rest = with_energies(shares(), [own], [result(2.0, "socket0", "socket1")], RATE)
    assert energies(phases) == {}
    assert rest == {}
    both = window(9, 0.0, kind="phase", phase_powers=(powers(), powers("socket1")))
    phases, _ = with_energies(shares(), [both], [result(4.0, "socket0", "socket1")], RATE)
    assert math.fsum(energies(phases).values()) == pytest.approx(4.0)


def test_without_a_phase_pass_there_are_no_energies() -> None:
    phases, rest = with_energies(shares(), [window(9, 0.0, kind="phase")], [result(2.0, "socket0")], RATE)
    assert (energies(phases), rest) == ({}, {})


def test_phases_of_a_component_without_energy_have_none() -> None:
    zero = PhasePowers(
        exporter="a:1",
        scope="device",
        collector="rapl",
        component="cpu",
        device="socket0",
        domain="package",
        watts=dict.fromkeys(WATTS, 0.0),
        standard_watts=dict.fromkeys(WATTS, 0.0),
        intervals=500,
    )
    own = window(9, 0.0, kind="phase", phase_powers=(zero,))
    phases, rest = with_energies(shares(), [own], [result(0.0, "socket0")], RATE)
    assert energies(phases) == {}
    assert rest["cpu"].value == 0.0
