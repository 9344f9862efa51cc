"""Rank devices by the energy of an inference at a given rate, with the power that they draw between inferences.

At a rate of N inferences per second, a device with energy e per inference and throughput T is idle for 1/N - 1/T
seconds per inference:

    energy at rate N = e + idle power × (1/N - 1/T)

Energies and idle powers are drawn from their intervals. The share of the draws in which one device needs less than
another is the probability that it is better.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.prediction.cards import Card, Fact, find_card
from joulewatch_harness.prediction.features import Features
from joulewatch_harness.prediction.fit import DeviceModel, Fit
from joulewatch_harness.prediction.fpga import RUNTIME as FINN
from joulewatch_harness.prediction.fpga import WITH_READING, WITHOUT_READING
from joulewatch_harness.prediction.predict import Interval, Prediction, Request, predict

DECIDED: Final = 0.9
"""Probability from which on the first device is recommended."""
DRAWS: Final = 20_000
SEED: Final = 0
NINETY_PERCENT: Final = 1.6449
"""Half-width of a 90 % interval, in standard deviations of a normal distribution."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The power of a device between inferences."""

    watts: float
    measured: bool

    @property
    def half_width(self) -> float:
        """Of the 90 % interval, as a logarithm."""
        return WITH_READING if self.measured else WITHOUT_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the network."""

    prediction: Prediction
    idle: Idle | None
    """None: not known, anything between nothing and the power under load."""

    @property
    def joules(self) -> float:
        """Per inference, without the time between inferences."""
        return self.prediction.joules.median

    @property
    def seconds(self) -> float:
        assert self.prediction.throughput is not None
        return 1 / self.prediction.throughput.median

    @property
    def longest_seconds(self) -> float:
        """Upper end of the interval of the seconds."""
        throughput = self.prediction.throughput
        assert throughput is not None
        return self.seconds if throughput.low is None else 1 / throughput.low

    @property
    def idle_watts(self) -> float:
        """The idle power, or half the power under load if it is not known."""
        return self.joules / self.seconds / 2 if self.idle is None else self.idle.watts

    @property
    def title(self) -> str:
        one = self.prediction
        return f"{one.device}, {one.runtime}, {one.precision}, batch {one.batch_size}"

    def latency(self, rate: float) -> float:
        """Return the time from the first request of a batch to its results: until the batch is full, and its run.

        It is the upper end of the interval, so that a limit is kept with a probability of 95 %.
        """
        size = self.prediction.batch_size
        return (size - 1) / rate + size * self.longest_seconds

    def at_rate(self, rate: float) -> float:
        """Return the energy of an inference, with the time between inferences."""
        return self.joules + self.idle_watts * (1 / rate - self.seconds)

    def idle_share(self, rate: float) -> float:
        """Return the share of the energy that is drawn between inferences."""
        return 1 - self.joules / self.at_rate(rate)

    def draws(self, rate: float, place: int, fixed: str = "") -> Floats:
        """Draw energies at a rate.

        Args:
            rate: Inferences per second.
            place: Number of the candidate: energies of different candidates are independent.
            fixed: ``energy`` or ``idle``: take its median.
        """
        energy_z = np.random.default_rng((SEED, place)).standard_normal(DRAWS)
        # Candidates on one device share its idle power.
        rng = np.random.default_rng((SEED, zlib.crc32(self.prediction.device.encode())))
        idle_z, unit = rng.standard_normal(DRAWS), rng.random(DRAWS)
        sigma = self._sigma()
        energy = self.joules * np.exp(0.0 if fixed == "energy" else sigma * energy_z)
        if fixed == "idle":
            watts = np.full(DRAWS, self.idle_watts)
        elif self.idle is None:
            watts = unit * self.joules / self.seconds
        else:
            # Power at rest is most of the energy of an FPGA, so both are wrong together.
            same = self.prediction.runtime == FINN
            watts = self.idle.watts * np.exp(self.idle.half_width / NINETY_PERCENT * (energy_z if same else idle_z))
        found: Floats = energy + watts * max(1 / rate - self.seconds, 0.0)
        return found

    def _sigma(self) -> float:
        low, high = self.prediction.joules.low, self.prediction.joules.high
        if low is None or high is None:
            return 0.0
        return math.log(high / low) / 2 / NINETY_PERCENT

    @property
    def validated(self) -> bool:
        return self.prediction.joules.low is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A candidate in the ranking."""

    candidate: Candidate
    joules: Interval
    """Per inference at the rate."""
    watts: float
    """Mean power at the rate."""
    latency_s: float
    idle_share: float
    better: float | None
    """Probability that the first candidate needs less; None for the first."""
    break_even: float | None
    """Rate at which it needs as much as the first, if both can reach it; None for one on the same device."""
    better_above: bool
    """Whether it needs less than the first above the break-even rate, not below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The ranking for one network at one rate."""

    network: str
    rate: float
    places: tuple[Place, ...]
    excluded: Mapping[str, str]
    """Candidate -> why it cannot be used."""
    decided: bool
    rival: Place | None
    """The candidate that is the most likely to need less than the first; None: there is only one."""
    settle: str
    """The measurement that would make the comparison with the rival most certain; empty if decided."""


def candidates_of_fit(
    fit: Fit, network: tuple[str, str, Features], devices: Sequence[str], own_cards: Sequence[Card]
) -> tuple[list[Candidate], dict[str, str]]:
    """Return a candidate for each model of the fit and batch size, and why models are excluded.

    Args:
        fit: The measured devices.
        network: Name, family and features.
        devices: Only these; empty: all.
        own_cards: Cards that replace those of joulewatch.

    Raises:
        ConfigError: A device is not in the fit, or one of ``devices`` has neither a card nor a measured idle power.
    """
    refuse_unknown("--devices", "device", devices, {model.device for model in fit.models})
    name, family, features = network
    found: list[Candidate] = []
    excluded: dict[str, str] = {}
    for model in fit.models:
        if devices and model.device not in devices:
            continue
        title = f"{model.device}, {model.runtime}, {model.precision}"
        if model.scope == "net":
            excluded[title] = "its energies are net of idle power, which counts here"
            continue
        request = Request(
            network=name, family=family, features=features, device=model.device, runtime=model.runtime,
            precision=model.precision,
        )  # fmt: skip
        try:
            predictions = predict(fit, request)
        except PredictionRefusedError as error:
            excluded[title] = str(error)
            continue
        idle = idle_of(model.device, model.scope, own_cards, _measured_with_energies(model))
        if idle is None and devices and not _has_card(model.device, own_cards):
            raise ConfigError(
                f"--devices: {model.device} has no card, and its energies came without an idle power; 'joulewatch "
                "device --from-run RUN > FILE.yaml' writes one for --card"
            )
        found += [Candidate(prediction=one, idle=idle) for one in predictions]
    return found, excluded


def idle_of(device: str, scope: str, own_cards: Sequence[Card], measured: float | None = None) -> Idle | None:
    """Return the idle power of a device for energies of this scope; None: not known.

    Args:
        device: Its name.
        scope: Of its energies.
        own_cards: Cards that replace all else.
        measured: Idle power that was measured with the energies; it replaces the card of joulewatch.
    """
    own = next((card for card in own_cards if device in (card.name, card.title, *card.devices)), None)
    if own is None and measured is not None:
        return Idle(watts=measured, measured=True)
    card = own or _shipped_card(device)
    return None if card is None else _idle(card, scope)


def _shipped_card(device: str) -> Card | None:
    try:
        return find_card(device)
    except ConfigError:
        return None


def _has_card(device: str, own_cards: Sequence[Card]) -> bool:
    own = any(device in (card.name, card.title, *card.devices) for card in own_cards)
    return own or _shipped_card(device) is not None


def _measured_with_energies(model: DeviceModel) -> float | None:
    """Return the median of the idle powers that the runs, or the column ``idle_watts``, had."""
    watts = [row.idle_watts for row in model.rows if row.idle_watts]
    return float(np.median(watts)) if watts else None


def _idle(card: Card, scope: str) -> Idle | None:
    fact: Fact | None = card.fact("idle_watts")
    if scope == "devices":
        # The energy of a run includes the processor that drives an accelerator, so its idle power is needed too.
        whole = card.fact("machine_idle_watts")
        fact = whole or (fact if card.kind in ("cpu", "fpga") else None)
    wanted = {"devices": "device"}.get(scope, scope)
    return None if fact is None or fact.scope != wanted else Idle(watts=fact.value, measured=fact.status == "measured")


def recommend(
    candidates: Sequence[Candidate], rate: float, max_latency_s: float, excluded: Mapping[str, str]
) -> Recommendation:
    """Rank the candidates; of the batch sizes of one device, runtime and precision, the best one counts.

    Raises:
        PredictionRefusedError: No candidate keeps the limits, or their energies are of different scopes.
    """
    reasons = dict(excluded)
    best: dict[tuple[str, str, str], Candidate] = {}
    for one in candidates:
        reason = _reason(one, rate, max_latency_s)
        if reason:
            reasons[one.title] = reason
            continue
        key = (one.prediction.device, one.prediction.runtime, one.prediction.precision)
        if key not in best or one.at_rate(rate) < best[key].at_rate(rate):
            best[key] = one
    if not best:
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items()) or "no device"
        raise PredictionRefusedError(f"no device keeps the limits at {rate:g}/s: {listed}")
    scopes = sorted({one.prediction.scope for one in best.values()})
    if len(scopes) > 1:
        raise PredictionRefusedError(
            f"energies of several scopes ({', '.join(scopes)}) cannot be ranked; choose devices of one with --devices"
        )
    ranked = sorted(best.values(), key=lambda one: one.at_rate(rate))
    draws = [one.draws(rate, number) for number, one in enumerate(ranked)]
    places = tuple(_place(ranked, draws, number, rate) for number in range(len(ranked)))
    rival = min(places[1:], key=lambda place: place.better or 0.0, default=None)
    pair = [ranked[0], *([] if rival is None else [rival.candidate])]
    sure = rival is None or (rival.better or 0.0) >= DECIDED
    decided = sure and all(one.validated for one in pair)
    return Recommendation(
        network=ranked[0].prediction.network,
        rate=rate,
        places=places,
        excluded=reasons,
        decided=decided,
        rival=rival,
        settle="" if decided else _settle(pair, rate),
    )


def _reason(one: Candidate, rate: float, max_latency_s: float) -> str:
    """Return why a candidate does not keep the limits; empty if it does."""
    if one.prediction.throughput is None:
        return "its throughput is not known: no times were measured"
    if 1 / one.longest_seconds < rate:
        return f"too slow: {1 / one.longest_seconds:.4g}/s at least"
    latency = one.latency(rate)
    return f"latency {latency:.4g} s (waiting for a batch, and its run)" if latency > max_latency_s else ""


def _place(ranked: Sequence[Candidate], draws: Sequence[Floats], number: int, rate: float) -> Place:
    one, first = ranked[number], ranked[0]
    low, high = (float(np.quantile(draws[number], share)) for share in (0.05, 0.95))
    break_even, above = (None, False) if number == 0 else _break_even(one, first)
    median = one.at_rate(rate)
    return Place(
        candidate=one,
        joules=Interval(median=median, low=low if one.validated else None, high=high if one.validated else None),
        watts=median * rate,
        latency_s=one.latency(rate),
        idle_share=one.idle_share(rate),
        better=None if number == 0 else float(np.mean(draws[0] < draws[number])),
        break_even=break_even,
        better_above=above,
    )


def _break_even(one: Candidate, first: Candidate) -> tuple[float | None, bool]:
    """Return the rate at which both need the same energy, and whether ``one`` needs less above it."""
    idle = one.idle_watts - first.idle_watts
    load = (first.joules - first.idle_watts * first.seconds) - (one.joules - one.idle_watts * one.seconds)
    same = one.prediction.device == first.prediction.device
    if same or load == 0 or not 0 < idle / load <= min(1 / one.seconds, 1 / first.seconds):
        return None, False
    return idle / load, load > 0


def _settle(pair: Sequence[Candidate], rate: float) -> str:
    """Return the measurement that reduces the uncertainty of the difference the most."""
    for one in pair:
        if not one.validated:
            return _energy_text(one)
    remaining: dict[str, float] = {}
    for one in pair:
        texts: tuple[tuple[str, Callable[[Candidate], str]], ...] = (("energy", _energy_text), ("idle", _idle_text))
        for fixed, text in texts:
            found = [other.draws(rate, place, fixed if other is one else "") for place, other in enumerate(pair)]
            remaining[text(one)] = min(remaining.get(text(one), math.inf), float(np.var(found[0] - found[-1])))
    return min(remaining, key=remaining.__getitem__)


def _energy_text(one: Candidate) -> str:
    predicted = one.prediction
    how = "joulewatch profile --runtime finn" if predicted.runtime == FINN else "joulewatch profile"
    return f"measure {predicted.network} on {predicted.device} with {predicted.runtime}, {predicted.precision}: {how}"


def _idle_text(one: Candidate) -> str:
    predicted = one.prediction
    if predicted.scope == "devices":
        how = "joulewatch profile, then joulewatch device --from-run RUN > FILE.yaml"
    else:
        how = f"idle_watts in a card FILE.yaml, scope {predicted.scope}"
    return f"measure the idle power of {predicted.device}: {how}, and --card FILE.yaml"
