"""Rank devices by the energy of an inference at a given rate, with the power that they draw between inferences.

At a rate of N inferences per second, a device with energy e per inference and throughput T is idle for 1/N - 1/T
seconds per inference:

    energy at rate N = e + idle power × (1/N - 1/T)

Energies and idle powers are drawn from their intervals. The share of the draws in which one device needs less than
another is the probability that it is better.

An idle power that is not known is never guessed: it is between 0 W and the power under load. The energy is then a range
without a median, the range's upper end gives the place in the ranking, and a probability is the least one in the range.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.prediction.cards import Card, Fact, find_card
from joulewatch_harness.prediction.features import Features
from joulewatch_harness.prediction.fit import DeviceModel, Fit
from joulewatch_harness.prediction.fpga import RUNTIME as FINN
from joulewatch_harness.prediction.fpga import WITH_READING, WITHOUT_READING
from joulewatch_harness.prediction.predict import Prediction, Request, predict

DECIDED: Final = 0.9
"""Probability from which on the first device is recommended."""
DRAWS: Final = 20_000
SEED: Final = 0
NINETY_PERCENT: Final = 1.6449
"""Half-width of a 90 % interval, in standard deviations of a normal distribution."""

Floats = NDArray[np.float64]
End = Literal["least", "most"]
"""An end of the range of an idle power that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The power of a device between inferences."""

    watts: float
    """If it is not known, the most that it can be."""
    measured: bool
    known: bool = True

    @property
    def half_width(self) -> float:
        """Of the 90 % interval, as a logarithm."""
        return WITH_READING if self.measured else WITHOUT_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the network."""

    prediction: Prediction
    idle: Idle | None
    """None: not known. ``recommend`` replaces it by its upper limit."""

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
    def load_watts(self) -> float:
        return self.joules / self.seconds

    @property
    def rest(self) -> Idle:
        """The idle power; if it is not known, at most the power under load."""
        return self.idle or Idle(watts=self.load_watts, measured=False, known=False)

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
        """Return the energy of an inference with the time between inferences, the most of it without an idle power."""
        return self.joules + self.rest.watts * (1 / rate - self.seconds)

    def idle_share(self, rate: float) -> float:
        """Return the share of the energy that is drawn between inferences."""
        return 1 - self.joules / self.at_rate(rate)

    def draws(self, rate: float, place: int, *, end: End = "most", fixed: str = "") -> Floats:
        """Draw energies at a rate.

        Args:
            rate: Inferences per second.
            place: Number of the candidate: energies of different candidates are independent.
            end: Which end of an idle power that is not known.
            fixed: ``energy`` or ``idle``: take its median.
        """
        energy_z = np.random.default_rng((SEED, place)).standard_normal(DRAWS)
        # Candidates on one device share its idle power.
        rng = np.random.default_rng((SEED, zlib.crc32(self.prediction.device.encode())))
        energy = self.joules * np.exp(0.0 if fixed == "energy" else self._sigma() * energy_z)
        if not self.rest.known:
            watts = np.full(DRAWS, self.rest.watts if end == "most" else 0.0)
        elif fixed == "idle":
            watts = np.full(DRAWS, self.rest.watts)
        else:
            # Power at rest is most of the energy of an FPGA, so both are wrong together.
            z = energy_z if self.prediction.runtime == FINN else rng.standard_normal(DRAWS)
            watts = self.rest.watts * np.exp(self.rest.half_width / NINETY_PERCENT * z)
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
class Exclusion:
    """Why a candidate cannot be used."""

    kind: str
    """The same for all candidates with this reason."""
    text: str
    excess: float = 0.0
    """How far it is from the limit, as a logarithm."""


NOT_PREDICTED: Final = "cannot be predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A candidate in the ranking."""

    candidate: Candidate
    joules: float | None
    """Median per inference at the rate; None: the idle power is not known."""
    low: float | None
    """Ends of the 90 % interval, over all idle powers that are possible; None: no validated interval."""
    high: float | None
    watts: float | None
    """Mean power at the rate."""
    latency_s: float
    idle_share: float | None
    better: float | None
    """Probability that the first candidate needs less, at least; None for the first."""
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
    excluded: Mapping[str, Exclusion]
    """Candidate -> why it cannot be used."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Device that was asked for and has no number -> the run that gives one."""
    decided: bool
    rival: Place | None
    """The candidate that is the most likely to need less than the first; None: there is only one."""
    settle: str
    """The measurement that would make the comparison with the rival most certain; empty if decided."""


def candidates_of_fit(
    fit: Fit, network: tuple[str, str, Features], devices: Sequence[str], own_cards: Sequence[Card]
) -> tuple[list[Candidate], dict[str, Exclusion]]:
    """Return a candidate for each model of the fit and batch size, and why models are excluded.

    Args:
        fit: The measured devices.
        network: Name, family and features.
        devices: Only these, and those with a card, which have no candidate; empty: all.
        own_cards: Cards that replace those of joulewatch.

    Raises:
        ConfigError: A device is not in the fit, or one of ``devices`` has neither a card nor a measured idle power.
    """
    of_fit = {model.device for model in fit.models}
    refuse_unknown("--devices", "device", [name for name in devices if not _has_card(name, own_cards)], of_fit)
    wanted = {alias for name in devices for alias in _names(name, own_cards)}
    name, family, features = network
    found: list[Candidate] = []
    excluded: dict[str, Exclusion] = {}
    for model in fit.models:
        if devices and model.device not in wanted:
            continue
        title = f"{model.device}, {model.runtime}, {model.precision}"
        if model.scope == "net":
            excluded[title] = Exclusion(
                kind=NOT_PREDICTED, text="its energies are net of idle power, which counts here"
            )
            continue
        request = Request(
            network=name, family=family, features=features, device=model.device, runtime=model.runtime,
            precision=model.precision,
        )  # fmt: skip
        try:
            predictions = predict(fit, request)
        except PredictionRefusedError as error:
            excluded[title] = Exclusion(kind=NOT_PREDICTED, text=str(error).removeprefix(f"{model.title}: "))
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
    own = _own_card(device, own_cards)
    if own is None and measured is not None:
        return Idle(watts=measured, measured=True)
    card = own or _shipped_card(device)
    return None if card is None else _idle(card, scope)


def _shipped_card(device: str) -> Card | None:
    try:
        return find_card(device)
    except ConfigError:
        return None


def _own_card(device: str, own_cards: Sequence[Card]) -> Card | None:
    return next((card for card in own_cards if device in (card.name, card.title, *card.devices)), None)


def _has_card(device: str, own_cards: Sequence[Card]) -> bool:
    return (_own_card(device, own_cards) or _shipped_card(device)) is not None


def _names(device: str, own_cards: Sequence[Card]) -> set[str]:
    """Return the names of a device: this one, and those on its card."""
    card = _own_card(device, own_cards) or _shipped_card(device)
    return {device} if card is None else {device, card.name, card.title, *card.devices}


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


def without_numbers(
    devices: Sequence[str], candidates: Sequence[Candidate], run: str, own_cards: Sequence[Card] = ()
) -> dict[str, str]:
    """Return the devices that were asked for and have no candidate, with the run that gives one.

    Args:
        devices: Names, or cards.
        candidates: Those that can be predicted.
        run: The arguments of ``joulewatch profile`` that measure the network.
        own_cards: Cards that replace those of joulewatch.
    """
    predicted = {one.prediction.device for one in candidates}
    missing = {}
    for name in devices:
        if not _names(name, own_cards) & predicted:
            card = _shipped_card(name)
            title = name if card is None else card.title
            where = "" if card is None or card.kind != "gpu" else " --runtime tensorrt"
            missing[title] = f"joulewatch profile {run}{where} on it; with a second network, joulewatch fit ranks it"
    return missing


def recommend(
    candidates: Sequence[Candidate],
    rate: float,
    max_latency_s: float,
    excluded: Mapping[str, Exclusion],
    unknown: Mapping[str, str] | None = None,
) -> Recommendation:
    """Rank the candidates; of the batch sizes of one device, runtime and precision, the best one counts.

    Args:
        candidates: All that can be predicted.
        rate: Inferences per second.
        max_latency_s: Limit of ``Candidate.latency``.
        excluded: Why others cannot be predicted.
        unknown: Devices that were asked for and have no number; without them nothing is decided.

    Raises:
        PredictionRefusedError: No candidate keeps the limits, or their energies are of different scopes.
    """
    reasons = dict(excluded)
    kept = []
    for one in candidates:
        reason = _reason(one, rate, max_latency_s)
        if reason is None:
            kept.append(one)
        else:
            reasons[one.title] = reason
    best: dict[tuple[str, str, str], Candidate] = {}
    for one in _with_limits(kept):
        key = (one.prediction.device, one.prediction.runtime, one.prediction.precision)
        if key not in best or one.at_rate(rate) < best[key].at_rate(rate):
            best[key] = one
    if not best:
        texts = [*excluded_texts(reasons), *(f"{name}: {text}" for name, text in (unknown or {}).items())]
        raise PredictionRefusedError(f"no device keeps the limits at {rate:g}/s: {'; '.join(texts) or 'no device'}")
    scopes = sorted({one.prediction.scope for one in best.values()})
    if len(scopes) > 1:
        raise PredictionRefusedError(
            f"energies of several scopes ({', '.join(scopes)}) cannot be ranked; choose devices of one with --devices"
        )
    ranked = sorted(best.values(), key=lambda one: one.at_rate(rate))
    places = tuple(_place(ranked, number, rate) for number in range(len(ranked)))
    rival = min(places[1:], key=lambda place: place.better or 0.0, default=None)
    pair = [ranked[0], *([] if rival is None else [rival.candidate])]
    sure = rival is None or (rival.better or 0.0) >= DECIDED
    decided = sure and all(one.validated for one in pair) and not unknown
    settle = ""
    if not sure or not all(one.validated for one in pair):
        settle = _settle(pair, rate)
    elif unknown:
        settle = "; ".join(f"{name}: {text}" for name, text in list(unknown.items())[:1])
    return Recommendation(
        network=ranked[0].prediction.network,
        rate=rate,
        places=places,
        excluded=reasons,
        unknown=unknown or {},
        decided=decided,
        rival=rival,
        settle=settle,
    )


def _with_limits(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with a limit of an idle power that is not known: the device's least power under load."""
    least: dict[str, float] = {}
    for one in candidates:
        name = one.prediction.device
        least[name] = min(least.get(name, math.inf), one.load_watts)
    return [
        dataclasses.replace(one, idle=Idle(watts=least[one.prediction.device], measured=False, known=False))
        if one.idle is None
        else one
        for one in candidates
    ]


def _reason(one: Candidate, rate: float, max_latency_s: float) -> Exclusion | None:
    """Return why a candidate does not keep the limits; None if it does."""
    if one.prediction.throughput is None:
        return Exclusion(kind=NOT_PREDICTED, text="its throughput is not known: no times were measured")
    reached = 1 / one.longest_seconds
    if reached < rate:
        return Exclusion(kind="too slow", text=f"too slow: {reached:.4g}/s at least", excess=math.log(rate / reached))
    latency = one.latency(rate)
    if latency <= max_latency_s:
        return None
    text = f"latency {latency:.4g} s (waiting for a batch, and its run)"
    return Exclusion(kind="above the latency limit", text=text, excess=math.log(latency / max_latency_s))


def excluded_texts(excluded: Mapping[str, Exclusion]) -> list[str]:
    """Return one text for each kind of reason, with the candidate that is nearest to the limit."""
    kinds: dict[str, list[tuple[float, str]]] = {}
    for name, one in excluded.items():
        kinds.setdefault(one.kind, []).append((one.excess, f"{name}: {one.text}"))
    return [
        min(texts)[1]
        if len(texts) == 1
        else f"{len(texts)} {kind}, the nearest is {min(texts)[1]}"
        if kind != NOT_PREDICTED
        else f"{len(texts)} {kind}, such as {min(texts)[1]}"
        for kind, texts in kinds.items()
    ]


def _place(ranked: Sequence[Candidate], number: int, rate: float) -> Place:
    one, first = ranked[number], ranked[0]
    low = float(np.quantile(one.draws(rate, number, end="least"), 0.05)) if one.validated else None
    high = float(np.quantile(one.draws(rate, number, end="most"), 0.95)) if one.validated else None
    break_even, above = (None, False) if number == 0 else _break_even(one, first)
    median = one.at_rate(rate) if one.rest.known else None
    return Place(
        candidate=one,
        joules=median,
        low=low,
        high=high,
        watts=None if median is None else median * rate,
        latency_s=one.latency(rate),
        idle_share=None if median is None else one.idle_share(rate),
        better=None if number == 0 else _least_probability(first, one, number, rate),
        break_even=break_even,
        better_above=above,
    )


def _least_probability(first: Candidate, one: Candidate, number: int, rate: float) -> float:
    """Return the probability that the first needs less, for the idle powers that are worst for it."""
    ends: tuple[tuple[End, End], ...] = (("most", "least"),)
    if first.prediction.device == one.prediction.device:
        # They share the idle power, in which the difference is linear.
        ends = (("least", "least"), ("most", "most"))
    return min(
        float(np.mean(first.draws(rate, 0, end=mine) < one.draws(rate, number, end=other))) for mine, other in ends
    )


def _break_even(one: Candidate, first: Candidate) -> tuple[float | None, bool]:
    """Return the rate at which both need the same energy, and whether ``one`` needs less above it."""
    if not (one.rest.known and first.rest.known):
        return None, False
    idle = one.rest.watts - first.rest.watts
    load = (first.joules - first.rest.watts * first.seconds) - (one.joules - one.rest.watts * one.seconds)
    same = one.prediction.device == first.prediction.device
    if same or load == 0 or not 0 < idle / load <= min(1 / one.seconds, 1 / first.seconds):
        return None, False
    return idle / load, load > 0


def _settle(pair: Sequence[Candidate], rate: float) -> str:
    """Return the measurement that reduces the uncertainty of the difference the most.

    The range of an idle power that is not known counts like an interval: by the spread that it alone causes.
    """
    for one in pair:
        if not one.validated:
            return _energy_text(one)
    causes: dict[str, float] = {}
    times: dict[str, float] = {}
    for place, one in enumerate(pair):
        text = _energy_text(one)
        causes[text] = max(causes.get(text, 0.0), float(np.std(one.draws(rate, place, fixed="idle"))))
        # Two candidates on one device share its idle power, which counts for the difference of their idle times.
        text = _idle_text(one)
        idle_s = max(1 / rate - one.seconds, 0.0)
        times[text] = idle_s if text not in times else abs(times[text] - idle_s)
        spread = one.rest.half_width / NINETY_PERCENT if one.rest.known else 1 / math.sqrt(12)
        causes[text] = one.rest.watts * spread * times[text]
    return max(causes, key=causes.__getitem__)


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
