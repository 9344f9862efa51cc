"""Analyzed runs as stored in ``result.json``: their quantities, and several repeated runs as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from joulewatch_harness.analysis.results.model import REPEATS, BudgetLine, Coverage, Estimate
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.analysis.sources.series import is_loopback
from joulewatch_harness.errors import ConfigError, RecordError, shown
from joulewatch_harness.gum import COVERAGE, mean, standard_error
from joulewatch_harness.plan.network_names import short_names
from joulewatch_harness.plan.target import repeats_coverage

READS_SCHEMA: Final = 1
GROSS: Final = "gross"
NET: Final = "net"
ATTRIBUTED: Final = "attributed"
NODE: Final = "node "
"""Prefix of the name of a whole server's sensor."""

Kind = Literal["energy", "throughput", "latency"]
_REAL: Final = frozenset({"counter", "integrated"})
_LATENCIES: Final = ("p50", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One quantity of one configuration at one batch size."""

    kind: Kind
    name: str
    """A component, ``total`` or ``node ...``; ``throughput``; ``p50`` or ``p99``."""
    basis: str
    """``gross``, ``net`` or ``attributed`` for energies, else empty."""
    unit: str
    estimate: Estimate | None
    missing: str = ""
    sensors: frozenset[str] = frozenset()
    """Sensors, with names that are the same in every run of a machine."""
    methods: frozenset[str] = frozenset()
    idle: tuple[str, tuple[int, ...]] = ("", ())
    """Run and indexes of the subtracted idle windows."""
    run: str = ""
    """Run of the rounds, or runs that are repeats; rounds of one run can be paired, and so can the same runs."""
    magnitude: float = 0.0
    """Value of which a change between runs is a share: of a net energy, the gross energy."""
    repeated: bool = False
    """Whether the scatter is that of several runs."""
    coverage: float = COVERAGE
    """Of Student's factor for the repeats; more than 95 % if the number of rounds depended on their scatter."""

    @property
    def key(self) -> tuple[Kind, str, str]:
        return self.kind, self.name, self.basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An analysed run, read from the document of ``joulewatch analyze --format json``."""

    id: str
    hardware: str
    """Processor of the harness's machine, which identifies it together with its host name."""
    document: Mapping[str, Any]
    groups: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """Configuration -> batch size -> entry in the document."""
    repeats: tuple[Run, ...] = ()
    """The repeated runs that this one combines; empty: a single run."""

    @property
    def configurations(self) -> tuple[str, ...]:
        return tuple(self.groups)

    @property
    def measured_hardware(self) -> str:
        """The machines whose energy was measured, for display."""
        return str(self.document["run"].get("hardware") or self.hardware)

    @property
    def repeats_coverage(self) -> float:
        return repeats_coverage(self.document["run"].get("plan") or {})


@dataclass(frozen=True, slots=True)
class Side:
    """One configuration of one run."""

    run: Run
    configuration: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as it was loaded."""
        group = next(iter(self.run.groups[self.configuration].values()))
        settings: Mapping[str, Any] = group["configuration"]
        return settings

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self.run.groups[self.configuration]))


def read_document(document: Any, where: str) -> Run:
    """Read the JSON document of a result.

    Args:
        document: As made by ``to_json.result_document`` and stored in ``result.json``.
        where: Its name in errors.

    Raises:
        RecordError: The document is not a result, or its version is not known.
    """
    if not isinstance(document, Mapping) or "schema_version" not in document or "results" not in document:
        raise RecordError(f"{where}: not the result of a run; 'joulewatch analyze RUN --format json' writes one")
    if document["schema_version"] != READS_SCHEMA:
        raise RecordError(
            f"{where}: schema_version is {shown(document['schema_version'])}; this joulewatch reads {READS_SCHEMA}"
        )
    try:
        configurations = [group["configuration"] for group in document["results"]]
        # Results of an older joulewatch have the path of a model file as the network.
        old = [(str(item["network"]), str(item["runtime"])) for item in configurations if not item.get("path")]
        names = short_names(old)
        groups: dict[str, dict[int, Mapping[str, Any]]] = {}
        for group, item in zip(document["results"], configurations, strict=True):
            network = item["network"] if item.get("path") else names[str(item["network"]), str(item["runtime"])]
            named = {**group, "configuration": {**item, "network": network}}
            groups.setdefault(item["name"], {})[int(group["batch_size"])] = named
        run = document["run"]
        provenance = run["provenance"]
        cpu = provenance.get("cpu")
        model = provenance.get("hardware") or (cpu.get("model", "") if isinstance(cpu, Mapping) else "")
        return Run(id=str(run["id"]), hardware=str(model), document=document, groups=groups)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{where}: broken result: {type(error).__name__}: {error}") from error


def repeated(runs: Sequence[Run]) -> Run:
    """Return several runs of one plan as one; it has the configurations and batch sizes that all of them have.

    Raises:
        ConfigError: A run is given twice, there is nothing in common, or the runs are of different machines, networks
            or sensors.
    """
    ids = [run.id for run in runs]
    for number in ids:
        if ids.count(number) > 1:
            raise ConfigError(f"run {number} is given twice as a repeat of itself")
    first = runs[0]
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for name, sizes in first.groups.items():
        common = {size: group for size, group in sizes.items() if all(size in run.groups.get(name, {}) for run in runs)}
        if common:
            groups[name] = common
    if not groups:
        raise ConfigError(f"runs {listed(ids)} are not repeats: they have no configuration and batch size in common")
    for other in runs[1:]:
        for (what, value), (_, other_value) in zip(_identity(first, groups), _identity(other, groups), strict=True):
            if value != other_value:
                raise ConfigError(
                    f"runs {first.id} and {other.id} are not repeats: {what} is {value or 'unknown'} and "
                    f"{other_value or 'unknown'}; give them as two sides, without a comma"
                )
    return replace(first, id="+".join(ids), groups=groups, repeats=tuple(runs))


def _identity(run: Run, groups: Mapping[str, Iterable[int]]) -> Iterator[tuple[str, str]]:
    """Yield what a run has in common with its repeats: name and value.

    Raises:
        RecordError: A field is missing in the document.
    """
    try:
        yield "the machine", machine_of(run)
        for name, sizes in groups.items():
            for group in (run.groups[name][size] for size in sizes):
                for key in ("network", "model_sha256", "actual_precision", "runtime", "runtime_version"):
                    yield f"{key} of {name}", str(group["configuration"].get(key) or "")
                total = group["energy"]["total"]
                # Without the exporter, whose address may differ.
                yield f"sensors of {name}", listed(sorted(sensor.partition("/")[2] for sensor in total["sensors"]))
                yield f"method of {name}", listed(sorted(kinds_of(frozenset(total["methods"]))))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"run {run.id}: broken result: {type(error).__name__}: {error}") from error


def measures(side: Side, batch_size: int) -> dict[tuple[Kind, str, str], Measure]:
    """Return all quantities of one configuration at one batch size.

    Raises:
        RecordError: A field is missing in the document.
    """
    if side.run.repeats:
        parts = [measures(Side(run, side.configuration), batch_size) for run in side.run.repeats]
        common = [key for key in parts[0] if all(key in part for part in parts)]
        return {key: over_runs([part[key] for part in parts]) for key in common}
    group = side.run.groups[side.configuration][batch_size]
    try:
        throughput = Measure(
            kind="throughput",
            name="throughput",
            basis="",
            unit="1/s",
            estimate=(throughput_estimate := _estimate(group["throughput"])),
            run=side.run.id,
            magnitude=0.0 if throughput_estimate is None else throughput_estimate.value,
        )
        quantities = [*_energies(side.run, group), throughput, *_latencies(side.run, group)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"run {side.run.id}, {side.configuration}, batch {batch_size}: broken result: "
            f"{type(error).__name__}: {error}"
        ) from error
    coverage = side.run.repeats_coverage
    return {quantity.key: replace(quantity, coverage=coverage) for quantity in quantities}


def over_runs(measures: Sequence[Measure]) -> Measure:
    """Return the mean of one quantity over several runs; the scatter between the runs includes that of their rounds."""
    estimates = [measure.estimate for measure in measures if measure.estimate is not None]
    joined = replace(
        measures[0],
        sensors=frozenset().union(*(measure.sensors for measure in measures)),
        methods=frozenset().union(*(measure.methods for measure in measures)),
        idle=("+".join(measure.idle[0] for measure in measures), sum((measure.idle[1] for measure in measures), ())),
        run="+".join(measure.run for measure in measures),
        magnitude=mean([measure.magnitude for measure in measures]),
        repeated=True,
        coverage=COVERAGE,
    )
    if len(estimates) < len(measures):
        missing = next(measure for measure in measures if measure.estimate is None)
        return replace(joined, estimate=None, missing=f"run {missing.run}: {missing.missing}")
    values = [estimate.value for estimate in estimates]
    count = len(values)
    text = f"scatter of {count} runs"
    lines = [
        BudgetLine(name=REPEATS, kind="A", standard=standard_error(values), dof=count - 1, systematic=False, text=text)
    ]
    others: dict[str, list[BudgetLine]] = {}
    for estimate in estimates:
        for line in estimate.budget:
            if line.name != REPEATS:
                others.setdefault(line.name, []).append(line)
    for parts in others.values():
        # The same error in every run adds linearly; independent errors average out.
        standards = [line.sign * line.standard for line in parts]
        whole = math.fsum(standards) if parts[0].systematic else math.hypot(*standards)
        lines.append(replace(parts[0], standard=abs(whole) / count, sign=-1 if whole < 0 else 1))
    estimate = estimate_of(mean(values), lines, dict(enumerate(values)))
    covers = [part for part in common_covers(estimates) if part != "repeats"]
    return replace(joined, estimate=replace(estimate, covers=(*covers, "repeats") if covers else ()))


def common_covers(estimates: Iterable[Estimate]) -> tuple[Coverage, ...]:
    """Return what the uncertainty of each of some estimates includes; nothing in results of version 0.1.0."""
    first, *others = (estimate.covers for estimate in estimates)
    return tuple(part for part in first if all(part in other for other in others))


def _energies(run: Run, group: Mapping[str, Any]) -> Iterator[Measure]:
    energy = group["energy"]
    named = [(component["name"], component) for component in (energy["total"], *energy["components"])]
    # The name of a node sensor starts with its exporter, whose address may differ between runs on one machine.
    named += [(NODE + component["name"].partition("/")[2], component) for component in energy["nodes"]]
    for name, component in named:
        # Results of an earlier joulewatch are not attributed, nor are those of another machine.
        for basis in (GROSS, NET, ATTRIBUTED) if component.get(ATTRIBUTED) else (GROSS, NET):
            idle = component["idle"]
            without_net = component.get("net_missing") or "no idle window to subtract"
            missing = component["missing"] or (without_net if basis == NET else "no number")
            estimate, gross = _estimate(component[basis]), component[GROSS]
            yield Measure(
                kind="energy",
                name=name,
                basis=basis,
                unit="J",
                estimate=estimate,
                missing="" if estimate is not None else missing,
                sensors=frozenset(_sensor_name(run, sensor) for sensor in component["sensors"]),
                methods=frozenset(component["methods"]),
                idle=(run.id, tuple(idle["windows"])) if idle is not None and basis != GROSS else ("", ()),
                run=run.id,
                magnitude=abs(float(gross["value"])) if gross is not None else 0.0,
            )


def _latencies(run: Run, group: Mapping[str, Any]) -> Iterator[Measure]:
    latency, rounds = group["latency"], int(group["rounds"])
    for name in _LATENCIES:
        estimate = None
        if latency is not None:
            standard = latency.get(f"{name}_standard_uncertainty_s")
            lines: tuple[BudgetLine, ...] = ()
            if standard is not None and rounds > 1:
                lines = (
                    BudgetLine(
                        name=REPEATS,
                        kind="A",
                        standard=float(standard),
                        dof=rounds - 1,
                        systematic=False,
                        text=f"scatter of {rounds} rounds",
                    ),
                )
            by_round = _rounds(latency.get("rounds", {}).get(f"{name}_s", {}))
            estimate = estimate_of(float(latency[f"{name}_s"]), lines, by_round, run.repeats_coverage)
        yield Measure(
            kind="latency",
            name=name,
            basis="",
            unit="s",
            estimate=estimate,
            missing="" if estimate is not None else "no latency",
            run=run.id,
            magnitude=0.0 if estimate is None else estimate.value,
        )


def _rounds(data: Mapping[str, Any]) -> dict[int, float]:
    """Return the value of each round; results stored by an older joulewatch have none."""
    return {int(number): float(value) for number, value in data.items()}


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    if data is None:
        return None
    lines = tuple(
        BudgetLine(
            name=line["name"],
            kind=line["type"],
            standard=float(line["standard_uncertainty"]),
            dof=math.inf if line["degrees_of_freedom"] is None else float(line["degrees_of_freedom"]),
            systematic=bool(line["systematic"]),
            text=line["text"],
            sign=line.get("sign", 1),
        )
        for line in data["budget"]
    )
    dof = data["degrees_of_freedom"]
    return Estimate(
        value=float(data["value"]),
        standard=float(data["standard_uncertainty"]),
        expanded=None if data["expanded_uncertainty"] is None else float(data["expanded_uncertainty"]),
        dof=math.inf if dof is None else float(dof),
        budget=lines,
        rounds=_rounds(data.get("rounds", {})),
        covers=tuple(data.get("covers", ())),
    )


def _sensor_name(run: Run, sensor: str) -> str:
    """Return the sensor with its machine in place of its exporter's address, if that is a loopback address."""
    exporter, _, rest = sensor.partition("/")
    host = run.document["run"]["provenance"].get("host")
    if is_loopback(exporter):
        # Host name and processor identify a machine; machines without a name are all different.
        exporter = f"{host} {run.hardware}" if host else f"run {run.id}"
    return f"{exporter}/{rest}"


def machine_of(run: Run) -> str:
    """Return the host and processor of a run."""
    host = run.document["run"]["provenance"].get("host") or "unnamed"
    return f"{host} ({run.hardware})" if run.hardware else str(host)


def kinds_of(methods: frozenset[str]) -> frozenset[str]:
    """Return the methods, with one name for those that measure."""
    return frozenset("measured" if method in _REAL else method for method in methods)


def listed(values: Iterable[object]) -> str:
    """Return values with commas between them."""
    return ", ".join(map(str, values))
