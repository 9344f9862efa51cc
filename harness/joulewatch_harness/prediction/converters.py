"""Convert published tables and results of runs to the rows of ``table.py``.

- ``edge_cnn_energy.csv`` (MLPerf, open division; scope wall): ``hardware`` is the device, ``framework`` the runtime.
- ``mlperf_inference_closed_power.csv`` (scope wall): ``SystemName`` is the device, framework and scenario the runtime.
- ``mlperf_tiny_energy.csv`` (scope wall): ``Board Name`` is the device.
- ``finn_rfsoc2x2_measured.csv`` (scope rails): ``board`` is the device.
- ``result.json`` of a run (scope devices): the accelerator that computed is the device, or else the processor.

Tables are recognised by their columns. Only the first one has the features of its networks; rows of the others
cannot be fitted without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.analysis.results.stored_results import Run
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks import BUILTIN
from joulewatch_harness.prediction.features import (
    FEATURES,
    Features,
    family_of,
    features_from_details,
    features_of_builtin,
    features_of_model,
)
from joulewatch_harness.prediction.table import COLUMNS, TEXTS, Network, Row, networks_of, read_csv, rows_of

Converter = Callable[[Mapping[str, str]], dict[str, str]]
"""Returns the documented columns of a row."""


def read_table(path: Path) -> list[Row]:
    """Read a CSV file with the columns ``table.COLUMNS``, or one that a converter knows.

    Raises:
        ConfigError: The file cannot be read, or a row is not valid; the text names the file and the rows.
    """
    lines, converted = _read(path)
    return rows_of(lines, str(path), (*TEXTS, "joules_per_inference", *(() if converted else FEATURES)))


def read_networks(path: Path) -> list[Network]:
    """Read the networks of such a file; their energies are ignored.

    Raises:
        ConfigError: The file cannot be read, or a row is not valid.
    """
    return networks_of(_read(path)[0], str(path))


def _read(path: Path) -> tuple[Mapping[int, Mapping[str, str]], bool]:
    """Return the rows, and whether they were converted; documented columns that are there replace converted ones."""
    lines = read_csv(path)
    header = set(next(iter(lines.values())))
    convert = next((convert for needed, convert in _CONVERTERS if needed <= header), None)
    if convert is None:
        return lines, False
    try:
        converted = {
            number: {**convert(line), **{name: line[name] for name in COLUMNS if name in line}}
            for number, line in lines.items()
        }
    except KeyError as error:
        raise ConfigError(f"{path}: missing columns: {error.args[0]}") from error
    return converted, True


def _edge(line: Mapping[str, str]) -> dict[str, str]:
    return {
        "device": line["hardware"],
        "runtime": line["framework"],
        "scope": "wall",
        "joules_per_inference": _scaled(line["energy_mj_per_inference"], 1e-3),
        "seconds_per_inference": _scaled(line["latency_p90_ms"], 1e-3),
    }


def _closed(line: Mapping[str, str]) -> dict[str, str]:
    value = line["performance"]
    samples = 8 if line["Scenario"] == "MultiStream" else 1
    return {
        "network": line["Model"],
        "device": line["SystemName"],
        "platform": line["Platform"],
        "runtime": f"{line['framework']}, {line['Scenario']}",
        "precision": "unknown",
        "scope": "wall",
        "joules_per_inference": line["joules_per_sample"],
        "seconds_per_inference": _scaled(value, 1e-3 / samples)
        if line["perf_units"] == "Latency (ms)"
        else _inverse(value),
    }


def _tiny(line: Mapping[str, str]) -> dict[str, str]:
    return {
        "network": line["benchmark"],
        "device": line["Board Name"],
        "platform": f"{line['Submitter']}, {line['mlperf_tiny_round']}",
        "runtime": line["Inference Framework"] or "unknown",
        "precision": "unknown",
        "scope": "wall",
        "joules_per_inference": _scaled(line["energy_uj_per_inference"], 1e-6),
        "seconds_per_inference": _inverse(line["throughput_inferences_per_second"]),
    }


def _finn(line: Mapping[str, str]) -> dict[str, str]:
    return {
        "device": line["board"],
        "platform": line["experiment"],
        "runtime": "FINN",
        "precision": "quantized",
        "scope": "rails",
        "joules_per_inference": _scaled(line["meas_energy_mj_per_inference"], 1e-3),
        "seconds_per_inference": _inverse(line["meas_fps"]),
    }


_CONVERTERS: Final[tuple[tuple[set[str], Converter], ...]] = (
    ({"hardware", "framework", "energy_mj_per_inference", "latency_p90_ms"}, _edge),
    ({"SystemName", "joules_per_sample", "perf_units"}, _closed),
    ({"Board Name", "energy_uj_per_inference"}, _tiny),
    ({"board", "meas_energy_mj_per_inference"}, _finn),
)


def _scaled(text: str, factor: float) -> str:
    try:
        return repr(float(text) * factor)
    except ValueError:
        return text


def _inverse(text: str) -> str:
    try:
        return repr(1.0 / float(text))
    except (ValueError, ZeroDivisionError):
        return ""


def rows_of_run(run: Run) -> list[Row]:
    """Return a row for each configuration and batch size of a run that has an energy.

    Raises:
        ConfigError: The features of a network are unknown, or the run has no energies.
    """
    rows = []
    for name, sizes in run.groups.items():
        for batch_size, group in sizes.items():
            settings = group["configuration"]
            total = group["energy"]["total"]
            if total["gross"] is None:
                continue
            rate = group["throughput"]
            rows.append(
                Row(
                    network=network_of(settings),
                    family=settings["network"] if settings["network"] in BUILTIN else family_of(network_of(settings)),
                    device=device_of(run, settings),
                    platform=str(run.document["run"]["provenance"].get("host") or ""),
                    runtime=settings["runtime"],
                    precision=settings.get("actual_precision") or settings["precision"],
                    batch_size=batch_size,
                    scope="devices",
                    joules=float(total["gross"]["value"]),
                    seconds=None if rate is None else 1.0 / float(rate["value"]),
                    features=_run_features(run, settings),
                    method="+".join(sorted(total["methods"])),
                    idle_watts=(total["idle"] or {}).get("power_watts"),
                    where=f"run {run.id}, {name}, batch {batch_size}",
                )
            )
    if not rows:
        raise ConfigError(f"run {run.id} has no energies")
    return rows


def network_of(settings: Mapping[str, Any]) -> str:
    """Return the name of a configuration's network, with the options that change it."""
    network = str(settings["network"])
    entry = BUILTIN.get(network)
    if entry is None:
        return Path(network).stem if network.endswith(".onnx") else network
    options = settings.get("options") or {}
    words = [f"{key}={options[key]}" for key in entry.options if key in options]
    return " ".join([network, *words])


def device_of(run: Run, settings: Mapping[str, Any]) -> str:
    """Return the name of the hardware that computed: the accelerator that the runtime named, else the processor."""
    device = str(settings.get("device") or "cpu")
    if device.lower().startswith("cpu"):
        return run.hardware or "unknown"
    cards = [str(card).partition(" at ")[0] for card in run.document["run"]["provenance"].get("accelerators") or ()]
    number = device.rpartition(":")[2]
    place = int(number) if number.isdecimal() else 0
    return cards[place] if place < len(cards) else device


def _run_features(run: Run, settings: Mapping[str, Any]) -> Features:
    stored = features_from_details(settings.get("details") or {})
    if stored is not None:
        return stored
    network, options = settings["network"], settings.get("options") or {}
    if network in BUILTIN:
        return features_of_builtin(network, {key: options[key] for key in BUILTIN[network].options if key in options})
    from joulewatch_harness.runtimes.shared.inputs import InputOptions

    path = Path(str(options.get("model") or network))
    if path.suffix == ".onnx" and path.is_file():
        return features_of_model(path, {key: options[key] for key in InputOptions.keys() if key in options})  # noqa: SIM118
    raise ConfigError(
        f"run {run.id}: the run has no features of network {network} and its model file is not there; "
        "measure it again, or write a table with its features"
    )
