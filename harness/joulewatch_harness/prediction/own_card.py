"""A card of a user's own device, from a run: its idle power, and the rates that it reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.results.stored_results import Run
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.cards import Card, Kind, Source, Value
from joulewatch_harness.prediction.converters import device_of

_SOURCE: Final = "run"
_MEASURED: Final = frozenset({"counter", "integrated"})
_ACCELERATORS: Final[tuple[Kind, ...]] = ("gpu", "fpga")
OPERATIONS_PER_MAC: Final = 2


def card_of_run(run: Run, today: str) -> Card:
    """Return a card of the device that computed.

    Runs do not store the power limit, so the card has no thermal design power. The largest rate of a run is only a
    lower bound of the peak, and has a separate field.

    Args:
        run: An analysed run.
        today: Date for ``Source.opened``.

    Raises:
        ConfigError: The run measured several devices, or it has neither an idle power nor a rate.
    """
    groups = [group for sizes in run.groups.values() for group in sizes.values()]
    names = sorted({device_of(run, group["configuration"]) for group in groups})
    if len(names) != 1:
        raise ConfigError(
            f"run {run.id} measured {count_of(len(names), 'device')} ({', '.join(names)}): give a run of one device"
        )
    kind = _kind(groups, run)
    idle = _idle(run, kind, groups)
    observed = _observed(groups)
    if idle is None and not observed:
        raise ConfigError(f"run {run.id} has neither an idle power nor a throughput: nothing to put on a card")
    started = datetime.fromtimestamp(float(run.document["run"]["started_at_s"]), UTC)
    return Card(
        name=re.sub(r"[^a-z0-9]+", "-", names[0].lower()).strip("-") or "unknown",
        title=names[0],
        kind=kind,
        devices=(names[0],),
        note="" if idle is not None else "The run has no idle power: it had no valid idle window.",
        sources={_SOURCE: Source(title=f"joulewatch run {run.id}", date=f"{started:%Y-%m-%d}", opened=today)},
        observed_operations_per_second=observed,
        idle_watts=idle,
        machine_idle_watts=_idle(run, "total", groups),
    )


def _kind(groups: list[Mapping[str, Any]], run: Run) -> Kind:
    """Return the component that computed, as the sensors name it."""
    if all(str(group["configuration"].get("device") or "cpu").lower().startswith("cpu") for group in groups):
        return "cpu"
    measured = {str(sensor["component"]) for sensor in run.document["sensors"]}
    return next((kind for kind in _ACCELERATORS if kind in measured), "gpu")


def _idle(run: Run, part: str, groups: list[Mapping[str, Any]]) -> Value | None:
    """Return the idle power of a component, or of all devices (``total``)."""
    idle = run.document["idle"].get(part)
    if idle is None or idle["power_watts"] <= 0:
        return None
    methods = sorted({
        method
        for group in groups
        for component in (*group["energy"]["components"], group["energy"]["total"])
        if component["name"] == part
        for method in component["methods"]
    })  # fmt: skip
    return Value(
        value=_rounded(idle["power_watts"]),
        source=_SOURCE,
        status="measured" if methods and _MEASURED.issuperset(methods) else "estimated",
        scope="device",
        note=f"standard uncertainty {idle['standard_uncertainty_watts']:.2g} W; {idle['text']}; "
        f"method: {', '.join(methods) or 'unknown'}",
    )


def _observed(groups: list[Mapping[str, Any]]) -> dict[str, Value]:
    """Return the largest rate for each precision: throughput × multiply-accumulates × 2."""
    largest: dict[str, tuple[float, str]] = {}
    for group in groups:
        settings, rate = group["configuration"], group["throughput"]
        macs = float((settings.get("details") or {}).get("macs_per_inference") or 0.0)
        if rate is None or macs <= 0:
            continue
        operations = float(rate["value"]) * macs * OPERATIONS_PER_MAC
        precision = str(settings.get("actual_precision") or settings["precision"])
        text = f"lower bound of the peak: {settings['name']}, batch size {group['batch_size']}"
        largest[precision] = max(largest.get(precision, (0.0, "")), (operations, text))
    return {
        precision: Value(value=_rounded(operations), source=_SOURCE, status="measured", note=text)
        for precision, (operations, text) in largest.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
