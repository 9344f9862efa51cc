"""The energy of FINN accelerators on FPGAs before synthesis, from FINN's cycle estimates and the power at rest.

A FINN accelerator is a pipeline: in a steady stream, the cycles of its slowest layer are the time of an inference. The
board's power hardly depends on the design, so the power at rest, with a bitstream loaded, is most of it:

    energy = (at rest + dynamic + host) × time + (at rest + host) × driver's time per inference

FINN's cycles are right (frames/s: 3.3 % median, 25 % worst). Its resources are not, so the dynamic power that is
estimated from its LUTs is rough; the interval of the power covers it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness import files
from joulewatch_harness.errors import LONGEST_VALUE, ConfigError, PredictionRefusedError, cut, shown
from joulewatch_harness.prediction.cards import Card, Fact
from joulewatch_harness.prediction.predict import Interval, Prediction
from joulewatch_harness.prediction.table import read_csv

PERFORMANCE: Final = "estimate_network_performance.json"
CYCLES: Final = "estimate_layer_cycles.json"
RESOURCES: Final = "estimate_layer_resources.json"
POWER: Final = "estimate_power_empirical.json"
"""FINN+ only: mW of each layer above the power at rest."""
CYCLE_FACTOR: Final = 1.03
CYCLE_LIMITS: Final = (0.99, 1.25)
"""Measured time / FINN's cycles: the median, and the range, of the designs that were measured on RFSoC 2x2."""
WITHOUT_READING: Final = math.log(1.35)
WITH_READING: Final = math.log(1.15)
"""Half-widths of the power: from documents only, and with a reading of the card at rest, with a bitstream loaded."""
JOULES_PER_LUT_AND_CYCLE: Final = 7.1e-14
"""Dynamic energy per LUT that FINN estimates: least squares over 8 designs on RFSoC 2x2 (UltraScale+, 100 MHz)."""
VALIDATED_ON: Final = "rfsoc2x2"
RUNTIME: Final = "FINN"
PRECISION: Final = "quantized"
TABLE_COLUMNS: Final = frozenset({"network", "clock_mhz", "est_max_cycles", "est_lut"})
_SCOPES: Final = {"device": "devices", "rails": "rails", "wall": "wall"}
_DEPTHWISE: Final = ("VVAU", "VectorVector")
_DENSE: Final = ("MVAU", "MatrixVector", "StreamingFCLayer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A FINN accelerator that need not have been synthesized."""

    network: str
    cycles: float
    """Of the slowest layer, for one inference."""
    clock_hertz: float
    slowest: str = ""
    """Name of the slowest layer; empty: unknown."""
    luts: float | None = None
    """FINN's estimate for the whole design."""
    dynamic_watts: float | None = None
    """FINN+'s empirical estimate."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the accelerator is used."""

    batch_sizes: tuple[int, ...] = (1,)
    driver_seconds: float | None = None
    """Time that the driver adds to each batch: packing, copying, launching; None: not known."""
    host_watts: float | None = None
    """Power of the host; None: not included."""
    precision: str = PRECISION


def is_design(path: Path) -> bool:
    """Return whether this is a folder, or a table with FINN's estimates."""
    if path.suffix == ".csv" and path.is_file():
        return next(iter(read_csv(path).values())).keys() >= TABLE_COLUMNS
    return path.is_dir()


def read_designs(path: Path, folding: Path | None = None, clock_hertz: float | None = None) -> list[Design]:
    """Read a report folder of FINN, an ONNX file with a folding, or a table with FINN's estimates.

    Args:
        path: A build or its folder ``report``; ``MODEL.onnx``; a CSV file with ``TABLE_COLUMNS``.
        folding: FINN's folding file, for an ONNX file.
        clock_hertz: None: as in the reports.

    Raises:
        ConfigError: A file is missing or not valid, or the clock is not known.
    """
    if path.suffix == ".csv":
        if clock_hertz is not None:
            raise ConfigError(f"{path}: the table has the clocks; omit --clock-mhz")
        return [_design_of_row(line, f"{path} row {number}") for number, line in read_csv(path).items()]
    if folding is None:
        return [_read_reports(path, clock_hertz)]
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: --folding needs a model file MODEL.onnx")
    if clock_hertz is None:
        raise ConfigError(f"{path}: the clock is not known: give it with --clock-mhz")
    return [_read_folding(path, folding, clock_hertz)]


def _design_of_row(line: Mapping[str, str], where: str) -> Design:
    def number(name: str) -> float:
        try:
            return _positive(float(line[name]), f"{where}: {name}")
        except ValueError as error:
            raise ConfigError(f"{where}: {name} must be a number, got {shown(line[name])}") from error

    return Design(
        network=line["network"],
        cycles=number("est_max_cycles"),
        clock_hertz=number("clock_mhz") * 1e6,
        luts=number("est_lut") if line["est_lut"] else None,
    )


def _read_reports(path: Path, clock_hertz: float | None) -> Design:
    folder = next((place for place in (path, path / "report") if (place / CYCLES).is_file()), None)
    folder = folder or next((place for place in (path, path / "report") if (place / PERFORMANCE).is_file()), None)
    if folder is None:
        raise ConfigError(
            f"{path}: no {CYCLES} and no {PERFORMANCE} here or in report/: build with the FINN output ESTIMATE_REPORTS"
        )
    layers = _numbers(folder / CYCLES)
    performance = _read(folder / PERFORMANCE)
    slowest = max(layers, key=layers.__getitem__) if layers else str(performance.get("max_cycles_node_name", ""))
    cycles = layers[slowest] if layers else _number(performance, "max_cycles", folder / PERFORMANCE)
    if layers and performance and _number(performance, "max_cycles", folder / PERFORMANCE) != cycles:
        raise ConfigError(
            f"{folder}: {CYCLES} has {cycles:.0f} cycles for the slowest layer ({slowest}), {PERFORMANCE} has "
            f"{performance['max_cycles']}: the files are from different builds"
        )
    if clock_hertz is None:
        if not performance:
            raise ConfigError(f"{folder}: without {PERFORMANCE} the clock is not known: give it with --clock-mhz")
        clock_hertz = cycles * _number(performance, "estimated_throughput_fps", folder / PERFORMANCE)
    resources = _read(folder / RESOURCES).get("total", {})
    luts = _number(resources, "LUT", folder / RESOURCES, least=0.0) if resources else None
    dynamic, notes = _empirical_power(folder / POWER)
    return Design(
        network=(folder.parent if folder.name == "report" else folder).resolve().name,
        cycles=cycles,
        clock_hertz=clock_hertz,
        slowest=slowest,
        luts=luts,
        dynamic_watts=dynamic,
        notes=notes,
    )


def _empirical_power(path: Path) -> tuple[float | None, tuple[str, ...]]:
    """Return FINN+'s dynamic power of all layers; None if there is no such file."""
    milliwatts = _numbers(path)
    if not milliwatts:
        return None, ()
    without = sum(value == 0 for value in milliwatts.values())
    text = f"FINN+ has no power model for {without} of {count_of(len(milliwatts), 'layer')}, which count as 0 W"
    return sum(milliwatts.values()) * 1e-3, (text,) if without else ()


def _read_folding(path: Path, folding: Path, clock_hertz: float) -> Design:
    """Return the design of an ONNX file: cycles = MW/SIMD × MH/PE × positions of the output, for each layer."""
    from joulewatch_harness.networks.cost import cost_of
    from joulewatch_harness.networks.graphs import read_model

    cost = cost_of(read_model(path))
    layers = [node for node in cost.nodes if node.macs]
    content = _read(folding)
    if not content:
        raise ConfigError(f"{folding}: no such file")
    units = {name: unit for name, unit in content.items() if name.startswith((*_DENSE, *_DEPTHWISE))}
    if len(units) != len(layers):
        raise ConfigError(
            f"{folding}: {count_of(len(units), 'matrix unit')} (MVAU, VVAU), but {path.name} has "
            f"{count_of(len(layers), 'layer')} with "
            "multiply-accumulates"
        )
    cycles: dict[str, float] = {}
    for (name, unit), layer in zip(units.items(), layers, strict=True):
        if layer.depthwise != name.startswith(_DEPTHWISE):
            raise ConfigError(f"{folding}: {name} does not fit to {layer.name} of {path.name}, a {layer.op}")
        pe, simd = (_number(unit, key, folding) for key in ("PE", "SIMD"))
        shape = layer.shape or (1,)
        channels = shape[-1] if layer.op in ("MatMul", "Gemm") else shape[1]
        rows = layer.macs / (math.prod(shape) / cost.batch)
        if channels % pe or rows % simd:
            raise ConfigError(
                f"{folding}: {name}: PE {pe:g} must divide the number of output channels of {layer.name} ({channels}), "
                f"and SIMD {simd:g} its number of inputs per output ({rows:g})"
            )
        cycles[name] = layer.macs / (pe * simd)
    slowest = max(cycles, key=cycles.__getitem__)
    return Design(
        network=path.stem,
        cycles=cycles[slowest],
        clock_hertz=clock_hertz,
        slowest=slowest,
        notes=("only matrix units are counted: a slower layer of another kind would set the pace",),
    )


def predict_designs(designs: Sequence[Design], card: Card, setting: Setting) -> list[Prediction]:
    """Return a prediction for each design and batch size.

    Raises:
        ConfigError: The card is not that of an FPGA, or the host cannot be added to its power.
        PredictionRefusedError: The power of the card at rest is not known.
    """
    if card.kind != "fpga":
        raise ConfigError(f"{card.title} is not an FPGA (kind {card.kind}): FINN designs do not run on it")
    rest = card.fact("idle_watts")
    if rest is None:
        raise PredictionRefusedError(
            f"{card.title}: its power at rest is not known; read it once with a bitstream loaded ('joulewatch device "
            "--from-run RUN' takes it from a run), and give the card with --device FILE.yaml"
        )
    if setting.host_watts is not None and rest.scope != "device":
        raise ConfigError(
            f"{card.title}: its power at rest is that of {_covered(rest)}; the power of the host cannot be added to it"
        )
    return [_predict(design, card, rest, setting, size) for design in designs for size in setting.batch_sizes]


def _predict(design: Design, card: Card, rest: Fact, setting: Setting, batch_size: int) -> Prediction:
    host = setting.host_watts or 0.0
    dynamic, basis = _dynamic(design)
    driver_s = (setting.driver_seconds or 0.0) / batch_size
    stream_s = CYCLE_FACTOR * design.cycles / design.clock_hertz
    stream_joules = (rest.value + dynamic + host) * stream_s
    driver_joules = (rest.value + host) * driver_s
    joules = stream_joules + driver_joules
    share = driver_joules / joules
    measured = rest.status == "measured"
    power = WITH_READING if measured else WITHOUT_READING
    low, high = (limit / CYCLE_FACTOR for limit in CYCLE_LIMITS)
    seconds = Interval(median=stream_s + driver_s, low=stream_s * low + driver_s, high=stream_s * high + driver_s)
    notes = [
        f"power: {rest.value:.4g} W at rest ({rest.status}, {_covered(rest)}), {dynamic:.3g} W dynamic ({basis}), "
        + (f"{host:.4g} W host" if setting.host_watts is not None else "host not included"),
        f"slowest layer: {design.slowest or 'not named'}, {design.cycles:.0f} cycles at "
        f"{design.clock_hertz / 1e6:.4g} MHz, in a steady stream",
    ]
    if card.name != VALIDATED_ON:
        notes.append(f"the interval was checked on {VALIDATED_ON} only, with 8 designs")
    if setting.driver_seconds is None:
        notes.append(
            "without the driver, which took 40 to 99 % of the time on an Alveo U280; measure its phases with "
            "'joulewatch profile --runtime finn' and give their seconds per batch with --driver-seconds"
        )
    return Prediction(
        network=design.network,
        device=card.title,
        runtime=RUNTIME,
        precision=setting.precision,
        scope=_SCOPES[rest.scope or "device"],
        batch_size=batch_size,
        joules=Interval(
            median=joules,
            low=joules * ((1 - share) * low + share) * math.exp(-power),
            high=joules * ((1 - share) * high + share) * math.exp(power),
        ),
        throughput=seconds.inverse(),
        regime="driver" if share > 0.5 else "compute",
        shares={"compute": 1 - share, "driver": share},
        parts=(
            ("power, read at rest" if measured else "power, without a reading at rest", power),
            (
                f"cycles × {CYCLE_FACTOR:g} ({CYCLE_LIMITS[0]:g} to {CYCLE_LIMITS[1]:g})",
                math.log((1 - share) * high + share),
            ),
        ),
        notes=(*notes, *design.notes),
    )


def _dynamic(design: Design) -> tuple[float, str]:
    """Return the dynamic power, and where it is from."""
    if design.dynamic_watts is not None:
        return design.dynamic_watts, "FINN+'s empirical models"
    if design.luts is not None:
        return JOULES_PER_LUT_AND_CYCLE * design.luts * design.clock_hertz, f"from {design.luts:.0f} estimated LUTs"
    return 0.0, "not known"


def _covered(rest: Fact) -> str:
    return {"rails": "some supply rails", "wall": "the whole board"}.get(rest.scope or "", "the card")


def _read(path: Path) -> Mapping[str, Any]:
    """Return a JSON object; empty if there is no such file."""
    try:
        content = json.loads(files.read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: not a JSON object")
    return content


def _numbers(path: Path) -> dict[str, float]:
    """Return the number of each layer: ``{"MVAU_0": 64}`` or ``{"MVAU_0": {"power": 64}}``."""
    numbers = {}
    for name, value in _read(path).items():
        if isinstance(value, Mapping) and len(value) == 1:
            (value,) = value.values()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"{path}: {cut(name, LONGEST_VALUE)} must be a number >= 0, got {shown(value)}")
        if name != "total":
            numbers[name] = float(value)
    return numbers


def _number(content: Any, key: str, path: Path, least: float | None = None) -> float:
    value = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{path}: {key} must be a number, got {shown(value)}")
    return float(value) if value == least else _positive(float(value), f"{path}: {key}")


def _positive(value: float, where: str) -> float:
    if not 0 < value < math.inf:
        raise ConfigError(f"{where} must be a number > 0, got {value:g}")
    return value
