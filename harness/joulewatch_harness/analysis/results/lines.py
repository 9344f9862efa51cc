"""Lines of a figure over several runs: one per network, runtime, precision and hardware, over batch size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from joulewatch_harness.analysis.results.model import TOTAL, Estimate
from joulewatch_harness.analysis.results.phases import has_other_phases, outside_execution
from joulewatch_harness.analysis.results.stored_results import GROSS, Run, Side, measures
from joulewatch_harness.errors import ConfigError, RecordError, shown

MEASURED: Final = frozenset({"counter", "integrated"})
READS_PREDICTIONS: Final = 1
_SCOPES: Final = {"wall": "whole server", "devices": "all devices", "rails": "power rails", "net": "net of idle power"}
_ACCELERATORS: Final = ("gpu", "fpga")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value with its interval."""

    value: float
    low: float | None = None
    high: float | None = None
    """None: the uncertainty is not known."""

    @classmethod
    def of(cls, estimate: Estimate | None) -> Value | None:
        """Return an estimate with its expanded uncertainty (95 % coverage)."""
        if estimate is None:
            return None
        half = estimate.expanded
        if half is None:
            return cls(value=estimate.value)
        return cls(value=estimate.value, low=estimate.value - half, high=estimate.value + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePoint:
    """One batch size."""

    batch_size: int
    energy: Value | None
    """Joules per inference."""
    throughput: Value | None
    """Inferences per second."""
    driver_share: float | None = None
    """Share of the time in drivers and copies; None: the batches have no such phases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the figure."""

    label: str
    """Unique in the figure; it contains the method if that is not a measurement."""
    hardware: str
    network: str
    run: str
    """Empty for a prediction."""
    methods: frozenset[str]
    accuracy_known: bool
    """Whether the intervals include the accuracy of every sensor."""
    points: tuple[LinePoint, ...]
    predicted: bool = False


def lines_of(sides: Sequence[Side], *, main_device: bool = False) -> list[Line]:
    """Return a line per configuration.

    Args:
        sides: Configurations of runs.
        main_device: Count only the component that runs the network: the CPU, the GPU or the FPGA. Otherwise the
            energies are the sums over all device sensors.

    Raises:
        ConfigError: ``main_device``, but a configuration does not show which component it runs on.
        RecordError: A stored result is broken.
    """
    components = [_main_component(side) if main_device else TOTAL for side in sides]
    hardware = [_hardware(side.run, component) for side, component in zip(sides, components, strict=True)]
    several = len(set(hardware)) > 1
    names = [
        f"{side.configuration} on {device}" if several and device else side.configuration
        for side, device in zip(sides, hardware, strict=True)
    ]
    lines = []
    for side, component, device, name in zip(sides, components, hardware, names, strict=True):
        text = f"{name}, run {side.run.id}" if names.count(name) > 1 else name
        lines.append(_line(side, component, device, text))
    return lines


def _line(side: Side, component: str, hardware: str, label: str) -> Line:
    points, methods, known = [], set[str](), True
    for size in side.batch_sizes:
        found = measures(side, size)
        energy = found.get(("energy", component, GROSS))
        if energy is not None:
            methods |= energy.methods
            known &= energy.estimate is None or "accuracy" in energy.estimate.covers
        point = LinePoint(
            batch_size=size,
            energy=None if energy is None else Value.of(energy.estimate),
            throughput=Value.of(found["throughput", "throughput", ""].estimate),
            driver_share=_driver_share(side, size),
        )
        points.append(point)
    doubt = sorted(methods - MEASURED)
    return Line(
        label=f"{label} ({', '.join(doubt)})" if doubt else label,
        hardware=hardware,
        network=str(side.settings["network"]),
        run=side.run.id,
        methods=frozenset(methods),
        accuracy_known=known,
        points=tuple(points),
    )


def _driver_share(side: Side, batch_size: int) -> float | None:
    """Return the share of the time outside the execution; None if the batches have no such phase."""
    try:
        phases = side.run.groups[side.configuration][batch_size].get("phases") or ()
        shares = {str(phase["name"]): float(phase["share"]["value"]) for phase in phases}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"run {side.run.id}: broken result: {type(error).__name__}: {error}") from error
    return outside_execution(shares) if has_other_phases(shares) else None


def _main_component(side: Side) -> str:
    """Return the component that runs the network.

    Raises:
        ConfigError: Neither the device of the configuration nor its sensors decide it.
    """
    settings = side.settings
    # A run that is rebuilt from Prometheus has no device, but the provider (CUDAExecutionProvider) and the runtime.
    device = str(settings.get("device") or settings.get("provider") or "").lower()
    runtime = str(settings.get("runtime"))
    group = next(iter(side.run.groups[side.configuration].values()))
    names = {str(energy["name"]) for energy in group["energy"]["components"]}
    if device.startswith("cpu"):
        return "cpu"
    if runtime == "finn" or device.startswith("fpga"):
        return "fpga"
    if runtime == "tensorrt" or device.startswith(("cuda", "gpu", "tensorrt")):
        return "gpu"
    accelerators = [name for name in _ACCELERATORS if name in names]
    if len(accelerators) == 1 and device:
        return accelerators[0]
    if not accelerators:
        return "cpu"
    raise ConfigError(
        f"--main-device: run {side.run.id} does not show which device {side.configuration} ran on, and measured "
        f"{', '.join(sorted(names))}; omit --main-device"
    )


def _hardware(run: Run, component: str) -> str:
    """Return the devices whose energy a line shows."""
    if component == TOTAL:
        return run.measured_hardware
    models = Counter(model for model, _ in sorted(set(_models(run.document, component))))
    text = ", ".join(f"{count}x {model}" if count > 1 else model for model, count in models.items())
    return text or run.measured_hardware


def _models(document: Mapping[str, Any], component: str) -> Iterator[tuple[str, str]]:
    """Yield the model and the name of each device of a component."""
    for sensor in document.get("sensors") or ():
        # The model of an estimate is the power model.
        is_device = sensor.get("scope") == "device" and sensor.get("method") != "estimated"
        if is_device and sensor.get("component") == component and sensor.get("model"):
            # Some models end with the address and the driver: NVIDIA A100 @ 0000:01:00.0, driver 550.54.15.
            yield str(sensor["model"]).partition(" @ ")[0], f"{sensor.get('exporter')}/{sensor.get('device')}"


def predicted_lines(document: Any, where: str) -> list[Line]:
    """Return a line per network, runtime, precision and device of predictions.

    Args:
        document: From ``joulewatch predict --format json``.
        where: Its name in errors.

    Raises:
        RecordError: The document is not one of predictions, or its version is not known.
    """
    if not isinstance(document, Mapping) or "predictions" not in document:
        raise RecordError(f"{where}: not predictions; 'joulewatch predict NETWORK --format json' writes them")
    version = document.get("schema_version")
    if version != READS_PREDICTIONS:
        raise RecordError(f"{where}: schema_version is {shown(version)}; this joulewatch reads {READS_PREDICTIONS}")
    try:
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in document["predictions"]:
            name = f"{row['network']}/{row['runtime']}/{row['precision']} on {row['device']}"
            rows.setdefault(f"{name} (predicted, {_SCOPES.get(row['scope'], row['scope'])})", []).append(row)
        return [
            Line(
                label=label,
                hardware=str(members[0]["device"]),
                network=str(members[0]["network"]),
                run="",
                methods=frozenset({"predicted"}),
                accuracy_known=True,
                points=tuple(
                    LinePoint(
                        batch_size=int(row["batch_size"]),
                        energy=_predicted(row["joules_per_inference"]),
                        throughput=_predicted(row["inferences_per_second"]),
                    )
                    for row in sorted(members, key=lambda row: int(row["batch_size"]))
                ),
                predicted=True,
            )
            for label, members in rows.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{where}: broken predictions: {type(error).__name__}: {error}") from error


def _predicted(interval: Mapping[str, Any] | None) -> Value | None:
    if interval is None:
        return None
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return Value(value=float(interval["median"]))
    return Value(value=float(interval["median"]), low=float(low), high=float(high))
