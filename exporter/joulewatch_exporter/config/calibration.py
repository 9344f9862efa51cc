"""Calibrations of sensors against a reference, and of workloads: the files that ``joulewatch calibrate`` writes.

The exporter publishes a calibration next to the raw values of its sensor, and never applies it: the analysis and the
recording rules do, once. A calibration belongs to one sensor. It is used only if the machine, all labels and the model
of the sensor are those in the file. Where a label identifies the device (the UUID of a GPU), a device that was
exchanged has no calibration; where it names a place (``socket0``), a device of another model has none.

A ratio of workloads belongs to one component of one machine.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.catalog import CALIBRATION_PARAMETERS
from joulewatch_exporter.config.strict import build, check_keys, convert, mapping, read_yaml
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import SensorInfo

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedSensor:
    """Identity of the sensor that was calibrated."""

    host: str
    """The machine: its nodename, or the target's name of a remote BMC."""
    scope: str
    collector: str
    component: str
    device: str
    domain: str
    model: str = ""
    """As in ``joulewatch_sensor_info``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The meter that a sensor was compared with."""

    name: str
    accuracy: float | None = None
    """Relative half-width; None: unknown."""

    def __post_init__(self) -> None:
        """Check the accuracy.

        Raises:
            ValueError: It is not a share.
        """
        if self.accuracy is not None and not 0 <= self.accuracy < 1:
            raise ValueError(f"accuracy: {self.accuracy:g} is not a share from 0 to 1, such as 0.01 for 1 %")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One entry of a file: true power = gain * power + offset_watts.

    The uncertainties do not include the accuracy of the reference.
    """

    sensor: CalibratedSensor
    reference: Reference
    date: str
    """ISO 8601 with a time zone; identifies the calibration."""
    gain: float
    offset_watts: float
    gain_standard_uncertainty: float
    offset_standard_uncertainty_watts: float
    gain_offset_covariance_watts: float
    linearity_watts: float
    """Standard deviation of the true power from the line, beyond the uncertainty of the comparison."""
    lowest_watts: float
    """Calibrated range of the power that the sensor reports."""
    highest_watts: float
    windows: int = 0
    """Number of windows that were compared."""
    run: str = ""
    sum_of: int = 1
    """Number of sensors whose sum was compared. Each has the gain, and an equal share of all watts but the range."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is impossible; the text begins with its key.
        """
        if not self.gain > 0:
            raise ValueError(f"gain: {self.gain:g} is not above 0")
        for name in ("gain_standard_uncertainty", "offset_standard_uncertainty_watts", "linearity_watts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name):g} is below 0")
        limit = self.gain_standard_uncertainty * self.offset_standard_uncertainty_watts
        if abs(self.gain_offset_covariance_watts) > limit * (1 + 1e-6):
            raise ValueError(
                f"gain_offset_covariance_watts: {self.gain_offset_covariance_watts:g} exceeds the product of the two "
                "standard uncertainties"
            )
        if not self.lowest_watts < self.highest_watts:
            raise ValueError(f"lowest_watts: {self.lowest_watts:g} is not below highest_watts")
        _check_date(self.date)

    @property
    def parameters(self) -> tuple[tuple[str, float], ...]:
        """The values that the exporter publishes, by the label ``parameter``."""
        return tuple((name, float(getattr(self, name))) for name in CALIBRATION_PARAMETERS)

    @property
    def text(self) -> str:
        """The calibration for people."""
        return f"{self.date}, {self.reference.name}: gain {self.gain:.4g}, offset {self.offset_watts:+.3g} W"

    def exchanged_text(self, collector: str, info: SensorInfo) -> str:
        """Return why this calibration is not used for a sensor of another model."""
        return (
            f"{collector} {info.quantity.device} {info.quantity.domain}: not calibrated: the calibration of "
            f"{self.date} is of the model {self.sensor.model!r}, not {info.model!r}; calibrate this one"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRatio:
    """The energies per processor second of two workloads on one machine differ at most by this factor."""

    host: str
    """Its nodename."""
    component: Literal["cpu", "memory"]
    ratio: float
    date: str
    """ISO 8601 with a time zone."""
    run: str = ""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is impossible; the text begins with its key.
        """
        if not self.ratio >= 1:
            raise ValueError(f"ratio: {self.ratio:g} is below 1")
        _check_date(self.date)

    @property
    def text(self) -> str:
        """The ratio for people."""
        return (
            f"{self.component}: workloads differ by a factor of up to {self.ratio:g} per processor second, {self.date}"
        )


def _check_date(date: str) -> None:
    try:
        is_complete = datetime.datetime.fromisoformat(date).tzinfo is not None
    except ValueError:
        is_complete = False
    if not is_complete:
        raise ValueError(f"date: {date!r} is not a time with its zone, such as 2026-11-28T10:00:00Z")


class Calibrations:
    """The calibrations of all files, and which sensor each belongs to."""

    def __init__(
        self, entries: Sequence[Calibration] = (), ratios: Sequence[WorkloadRatio] = (), *, nodename: str = ""
    ) -> None:
        self.entries = tuple(entries)
        self.ratios = tuple(one for one in ratios if one.host == nodename)
        """Those of this machine."""
        self._nodename = nodename
        # A file of a whole cluster is searched for each sensor of each scrape in which a sensor changed.
        self._by_sensor = {dataclasses.replace(entry.sensor, model=""): entry for entry in entries}

    def of(self, collector: str, info: SensorInfo) -> Calibration | None:
        """Return the calibration of a sensor; None if it has none."""
        entry = self._of_any_model(collector, info)
        return entry if entry is not None and entry.sensor.model == info.model else None

    def of_another_model(self, collector: str, info: SensorInfo) -> Calibration | None:
        """Return a calibration that would be of this sensor, if its model were the same: the device was exchanged."""
        entry = self._of_any_model(collector, info)
        return entry if entry is not None and entry.sensor.model != info.model else None

    def _of_any_model(self, collector: str, info: SensorInfo) -> Calibration | None:
        quantity = info.quantity
        return self._by_sensor.get(
            CalibratedSensor(
                host=info.host(self._nodename),
                scope=quantity.scope,
                collector=collector,
                component=quantity.component,
                device=quantity.device,
                domain=quantity.domain,
            )
        )

    def of_this_host(self) -> tuple[Calibration, ...]:
        """Return the calibrations of this machine's own sensors."""
        return tuple(entry for entry in self.entries if entry.sensor.host == self._nodename)


NO_CALIBRATIONS: Final = Calibrations()


def load_calibrations(paths: Iterable[Path], nodename: str) -> Calibrations:
    """Read calibration files.

    Raises:
        ConfigError: A file cannot be read, is not a calibration file, or two entries are of one sensor.
    """
    known: dict[object, Path] = {}
    entries: list[Calibration] = []
    ratios: list[WorkloadRatio] = []

    def add(identity: object, name: str, where: str) -> None:
        if identity in known:
            raise ConfigError(f"{where}: {name} is calibrated in {known[identity]} too; keep one of them")
        known[identity] = path

    for path in paths:
        source = str(path)
        data = mapping(read_yaml(path), source, "")
        check_keys(data, ("version", "calibrations", "workload_ratios"), source, "")
        version = convert(data.get("version"), int, source, "version")
        if version != FORMAT_VERSION:
            raise ConfigError(f"{source}: version: {version} is not known to this exporter; it reads {FORMAT_VERSION}")
        for number, item in enumerate(_items(data, source, "workload_ratios")):
            where = f"workload_ratios[{number}]"
            ratio = build(WorkloadRatio, item, source, where)
            add((ratio.host, ratio.component), f"{ratio.component} of {ratio.host}", f"{source}: {where}")
            ratios.append(ratio)
        for number, item in enumerate(_items(data, source, "calibrations")):
            where = f"calibrations[{number}]"
            entry = build(Calibration, item, source, where)
            sensor = dataclasses.replace(entry.sensor, model="")
            name = f"{sensor.collector} {sensor.device} {sensor.domain} of {sensor.host}"
            add(sensor, name, f"{source}: {where}")
            entries.append(entry)
    return Calibrations(entries, ratios, nodename=nodename)


def _items(data: Mapping[str, object], source: str, key: str) -> Sequence[object]:
    """Return the entries of a list; a file without ratios must have calibrations."""
    if key not in data and (key == "workload_ratios" or "workload_ratios" in data):
        return ()
    items = data.get(key)
    if not isinstance(items, list) or not items:
        entry = "calibration" if key == "calibrations" else "ratio"
        raise ConfigError(f"{source}: {key}: must be a list with at least one {entry}")
    return items
