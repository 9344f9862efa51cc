"""What differs between configurations, of one run or of several, and whether that is more than doubt allows.

Every quantity (joules per inference of each component, throughput, latency) of a configuration B is set against
the same of a baseline A at the same batch size: the difference B - A and its share of A, each with an expanded
uncertainty of 95 % coverage by the GUM (JCGM 100:2008, 5.2 for what is correlated). A difference is ``significant``
only when the intervals of both exclude 0.

What cancels, because it is one and the same error in A and B (correlation 1):

* the published accuracy of a sensor, where A and B were measured by the same sensors of the same machine. It is
  taken for one scale factor, whatever the load: of the difference in joules it leaves accuracy x difference, of the
  difference in percent nothing. A sensor that errs otherwise at other powers is not covered by that;
  ``cancel=False`` keeps both in full.
* the idle power that was subtracted (net only), where it came from the same idle windows: it leaves its
  watts x the difference in seconds per inference.

The scatter between rounds is *paired* where A and B are of one run and have the same rounds: every round goes over all
configurations in an order of its own, so what the machine is like in a round is in both, and leaves the differences
B - A of the rounds. Their scatter is the component of type A, with n - 1 degrees of freedom. Whether to pair is settled
by how the run was made and never by what comes out: with nothing common to the rounds a pair costs degrees of freedom
(n - 1 instead of up to 2 n - 2: with 3 rounds the factor is 4.3 instead of 2.8). Across runs, and for results that were
stored without their rounds, the scatters of A and of B are independent.

What does not cancel and is combined as independent:

* refresh and resolution of a sensor: another phase in each window;
* what power did beside the edges of windows, interpolation, clocks: perhaps alike in both, but nobody knows;
* the accuracy of a power model (``estimated``) or of an unknown method: such an error depends on the load;
* everything of other sensors: across machines nothing cancels.

Source: GUM, equations 13 and 16 for the two terms; Welch-Satterthwaite for the degrees of freedom.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from joulewatch_harness.analysis.energy.window_energy import ACCURACY
from joulewatch_harness.analysis.results.model import COMPONENTS, IDLE_BASELINE, REPEATS, TOTAL, BudgetLine, Estimate
from joulewatch_harness.analysis.sources.series import is_loopback
from joulewatch_harness.errors import ConfigError, RecordError
from joulewatch_harness.gum import coverage_factor, effective_dof, standard_error
from joulewatch_harness.names import unknown

READS_SCHEMA: Final = 1
GROSS: Final = "gross"
NET: Final = "net"
NODE: Final = "node "
"""In front of the name of a whole server's sensor."""

Kind = Literal["energy", "throughput", "latency"]
Verdict = Literal["significant", "no significant difference", "undecided", "missing"]
SIGNIFICANT: Final = "significant"

_MODELLED: Final = frozenset({"estimated", "unknown"})
"""Methods whose error is not one scale factor."""
_REAL: Final = frozenset({"counter", "integrated"})
_LATENCIES: Final = ("p50", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One quantity of one configuration at one batch size."""

    kind: Kind
    name: str
    """Component, ``total``, ``node ...``; ``throughput``; ``p50``, ``p99``."""
    basis: str
    """``gross`` or ``net`` of energies, else empty."""
    unit: str
    estimate: Estimate | None
    missing: str = ""
    sensors: frozenset[str] = frozenset()
    """Named so that the same sensor has the same name in every run of its machine."""
    methods: frozenset[str] = frozenset()
    idle: tuple[str, tuple[int, ...]] = ("", ())
    """Run and indexes of the idle windows that were subtracted."""
    run: str = ""
    """Whose rounds these are: those of one run can be paired."""

    @property
    def key(self) -> tuple[Kind, str, str]:
        return self.kind, self.name, self.basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An analysed run, read from the document of ``joulewatch analyze --format json``."""

    id: str
    hardware: str
    document: Mapping[str, Any]
    groups: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """Configuration -> batch size -> its entry in the document."""

    @property
    def configurations(self) -> tuple[str, ...]:
        return tuple(self.groups)


@dataclass(frozen=True, slots=True)
class Side:
    """One configuration of one run."""

    run: Run
    configuration: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as it was loaded."""
        group = next(iter(self.run.groups[self.configuration].values()))
        found: Mapping[str, Any] = group["configuration"]
        return found

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self.run.groups[self.configuration]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity of B against the same of A, at one batch size."""

    batch_size: int
    kind: Kind
    name: str
    basis: str
    unit: str
    a: Estimate | None
    b: Estimate | None
    difference: Estimate | None
    """B - A."""
    percent: Estimate | None
    """Of A; None where A may be 0."""
    verdict: Verdict
    text: str = ""
    """Why there is no verdict."""
    cancelled: tuple[str, ...] = ()
    """Items that are one error in both."""
    paired_rounds: int = 0
    """Rounds whose differences tell the scatter; 0: the rounds of A and of B count as independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """B against A at every batch size that both have."""

    a: Side
    b: Side
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs, each against the baseline."""

    pairs: tuple[Pair, ...]
    methods: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())


# Reading


def read_document(document: Any, where: str) -> Run:
    """Take the JSON of a result apart.

    Args:
        document: As ``report.result_document`` makes it and ``result.json`` holds it.
        where: What an error names.

    Raises:
        RecordError: it is no such document, or of a version that is not known.
    """
    if not isinstance(document, Mapping) or "schema_version" not in document or "results" not in document:
        raise RecordError(f"{where}: is no result of a run: 'joulewatch analyze RUN --format json' makes one")
    if document["schema_version"] != READS_SCHEMA:
        raise RecordError(
            f"{where}: its schema_version is {document['schema_version']!r}, this joulewatch reads {READS_SCHEMA}"
        )
    try:
        groups: dict[str, dict[int, Mapping[str, Any]]] = {}
        for item in document["results"]:
            groups.setdefault(item["configuration"]["name"], {})[int(item["batch_size"])] = item
        run = document["run"]
        provenance = run["provenance"]
        cpu = provenance.get("cpu")
        model = provenance.get("hardware") or (cpu.get("model", "") if isinstance(cpu, Mapping) else "")
        return Run(id=str(run["id"]), hardware=str(model), document=document, groups=groups)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{where}: is a broken result: {type(error).__name__}: {error}") from error


def measures(side: Side, batch_size: int) -> dict[tuple[Kind, str, str], Measure]:
    """Everything that one configuration has to tell at one batch size.

    Raises:
        RecordError: the document lacks a field.
    """
    group = side.run.groups[side.configuration][batch_size]
    try:
        found = list(_energies(side.run, group))
        found.append(
            Measure(
                kind="throughput",
                name="throughput",
                basis="",
                unit="1/s",
                estimate=_estimate(group["throughput"]),
                run=side.run.id,
            )
        )
        found += _latencies(side.run, group)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"run {side.run.id}, {side.configuration}, batch {batch_size}: broken result: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {item.key: item for item in found}


def _energies(run: Run, group: Mapping[str, Any]) -> Iterable[Measure]:
    energy = group["energy"]
    named = [(item["name"], item) for item in (energy["total"], *energy["components"])]
    # A node sensor's own name has its exporter in front, which on the same machine may be another each time.
    named += [(NODE + item["name"].partition("/")[2], item) for item in energy["nodes"]]
    for name, item in named:
        for basis in (GROSS, NET):
            idle = item["idle"]
            missing = item["missing"] or ("no idle window to subtract" if basis == NET else "no number")
            estimate = _estimate(item[basis])
            yield Measure(
                kind="energy",
                name=name,
                basis=basis,
                unit="J",
                estimate=estimate,
                missing="" if estimate is not None else missing,
                sensors=frozenset(_sensor_name(run, sensor) for sensor in item["sensors"]),
                methods=frozenset(item["methods"]),
                idle=(run.id, tuple(idle["windows"])) if idle is not None and basis == NET else ("", ()),
                run=run.id,
            )


def _latencies(run: Run, group: Mapping[str, Any]) -> Iterable[Measure]:
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
            estimate = replace(_combined(float(latency[f"{name}_s"]), lines), rounds=by_round)
        yield Measure(
            kind="latency",
            name=name,
            basis="",
            unit="s",
            estimate=estimate,
            missing="" if estimate is not None else "no latency",
            run=run.id,
        )


def _rounds(data: Mapping[str, Any]) -> dict[int, float]:
    """Round -> its own value; results stored by an older joulewatch have none."""
    return {int(number): float(value) for number, value in data.items()}


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    if data is None:
        return None
    lines = tuple(
        BudgetLine(
            name=item["name"],
            kind=item["type"],
            standard=float(item["standard_uncertainty"]),
            dof=math.inf if item["degrees_of_freedom"] is None else float(item["degrees_of_freedom"]),
            systematic=bool(item["systematic"]),
            text=item["text"],
        )
        for item in data["budget"]
    )
    dof = data["degrees_of_freedom"]
    return Estimate(
        value=float(data["value"]),
        standard=float(data["standard_uncertainty"]),
        expanded=float(data["expanded_uncertainty"]),
        factor=float(data["coverage_factor"]),
        dof=math.inf if dof is None else float(dof),
        budget=lines,
        rounds=_rounds(data.get("rounds", {})),
    )


def _sensor_name(run: Run, sensor: str) -> str:
    """The sensor with its machine instead of its exporter's address, where that is this machine's loopback."""
    exporter, _, rest = sensor.partition("/")
    host = run.document["run"]["provenance"].get("host")
    if is_loopback(exporter):
        # A machine is told by its name and its processor; one without a name is never the same as another.
        exporter = f"{host} {run.hardware}" if host else f"run {run.id}"
    return f"{exporter}/{rest}"


# Choosing


def pick(run: Run, word: str) -> list[str]:
    """The configurations of a run that a word means: its name, a part of its name, or a pattern with ``*``.

    Raises:
        ConfigError: none, or several without a pattern.
    """
    names = run.configurations
    if word in names:
        return [word]
    if any(sign in word for sign in "*?["):
        found = [name for name in names if fnmatch.fnmatchcase(name, word)]
    else:
        found = [name for name in names if word in name.split("/")] or [name for name in names if word in name]
        if len(found) > 1:
            raise ConfigError(f"{word!r} is not one configuration of run {run.id}: {', '.join(found)}")
    if not found:
        raise ConfigError(f"run {run.id}: {unknown('configuration', word, names)}")
    return found


def pairs_of(chosen: Sequence[tuple[Run, Sequence[str]]]) -> list[tuple[Side, Side]]:
    """What to set against what; the first one chosen is the baseline of all others.

    Args:
        chosen: Runs, each with the configurations that were named; none named means all.

    Raises:
        ConfigError: there is nothing to set against each other, or nobody can know what.
    """
    for run, _ in chosen:
        if not run.configurations:
            raise ConfigError(f"run {run.id} has no result: nothing was measured in it")
    if len(chosen) > 1 and not any(names for _, names in chosen):
        return _pairs_by_name([run for run, _ in chosen])
    sides = [Side(run, name) for run, names in chosen for name in (names or run.configurations)]
    unique = list({(id(side.run), side.configuration): side for side in sides}.values())
    if len(unique) < 2:
        (run, _) = chosen[0]
        raise ConfigError(
            f"run {run.id}: only {unique[0].configuration} is chosen: name a second configuration of it "
            f"(there are: {', '.join(run.configurations)}) or another run"
        )
    return [(unique[0], other) for other in unique[1:]]


def _pairs_by_name(runs: Sequence[Run]) -> list[tuple[Side, Side]]:
    first, pairs = runs[0], []
    for other in runs[1:]:
        common = [name for name in first.configurations if name in other.groups]
        if common:
            pairs += [(Side(first, name), Side(other, name)) for name in common]
        elif len(first.configurations) == len(other.configurations) == 1:
            pairs.append((Side(first, first.configurations[0]), Side(other, other.configurations[0])))
        else:
            raise ConfigError(
                f"runs {first.id} and {other.id} have no configuration in common ({', '.join(first.configurations)} "
                f"and {', '.join(other.configurations)}): name one after each run, such as "
                f"'joulewatch compare {first.id} {first.configurations[0]} {other.id} {other.configurations[0]}'"
            )
    return pairs


# Comparing


def compare(pairs: Sequence[tuple[Side, Side]], *, mixed: bool = False, cancel: bool = True) -> Comparison:
    """Set every pair against each other.

    Args:
        pairs: From ``pairs_of``.
        mixed: Compare energies that were measured with energies that were not; a note says so.
        cancel: Errors that A and B share cancel (see the module); False: nothing does.

    Raises:
        ConfigError: two sides have no batch size in common, or one was measured and the other was not.
    """
    done = []
    methods: set[str] = set()
    for a, b in pairs:
        sizes = [size for size in a.batch_sizes if size in b.batch_sizes]
        if not sizes:
            raise ConfigError(
                f"{a.configuration} (run {a.run.id}) has batch sizes {_list(a.batch_sizes)}, {b.configuration} "
                f"(run {b.run.id}) has {_list(b.batch_sizes)}: none in common, "
                "and across batch sizes nothing is compared"
            )
        rows: list[Row] = []
        notes = list(_notes(a, b))
        for size in sizes:
            first, second = measures(a, size), measures(b, size)
            told = _method_note(a, b, first, second, mixed=mixed)
            if told and told not in notes:
                notes.append(told)
            totals = [found.get(("energy", TOTAL, GROSS)) for found in (first, second)]
            methods |= {method for item in totals if item is not None for method in item.methods}
            rows += [
                compare_measures(size, first.get(key), second.get(key), cancel=cancel) for key in _keys(first, second)
            ]
        done.append(Pair(a=a, b=b, rows=tuple(rows), notes=tuple(notes)))
    return Comparison(tuple(done), frozenset(methods), tuple(_common_notes(done, cancel=cancel)))


def compare_measures(batch_size: int, a: Measure | None, b: Measure | None, *, cancel: bool = True) -> Row:
    """One quantity of B against the same of A; at least one of them is there."""
    item = a or b
    assert item is not None
    first, second = (None if one is None else one.estimate for one in (a, b))
    row = Row(
        batch_size=batch_size,
        kind=item.kind,
        name=item.name,
        basis=item.basis,
        unit=item.unit,
        a=first,
        b=second,
        difference=None,
        percent=None,
        verdict="missing",
    )
    if a is None or b is None or first is None or second is None:
        why = [
            f"{name}: {'is not measured there' if one is None else one.missing}"
            for name, one in (("A", a), ("B", b))
            if one is None or one.estimate is None
        ]
        return replace(row, text="; ".join(why))
    shared = _shared(a, b) if cancel else (lambda _: False)
    paired = _paired_rounds(a, b)
    difference = _difference(first, second, shared, 1.0, 1.0, paired)
    percent = None
    if first.value > 0 and first.expanded < first.value:
        # First order, as everywhere in the GUM: d(B/A) = dB/A - B dA/A².
        scale = 100 / first.value
        percent = _difference(first, second, shared, scale * second.value / first.value, scale, paired)
        percent = _with_value(percent, scale * (second.value - first.value))
    both = {line.name for line in first.budget} & {line.name for line in second.budget}
    cancelled = tuple(sorted(name for name in both if shared(name)))
    row = replace(row, difference=difference, percent=percent, cancelled=cancelled, paired_rounds=len(paired))
    if not all(any(line.name == REPEATS for line in one.budget) for one in (first, second)):
        text = "fewer than two rounds: nothing is known of the scatter"
        return replace(row, verdict="undecided", text=text)
    apart = all(abs(one.value) > one.expanded for one in (difference, percent) if one is not None)
    verdict: Verdict = SIGNIFICANT if apart else "no significant difference"
    return replace(row, verdict=verdict)


def _paired_rounds(a: Measure, b: Measure) -> tuple[int, ...]:
    """The rounds whose differences are taken: of one run, and the same ones in A and B."""
    assert a.estimate is not None
    assert b.estimate is not None
    first, second = a.estimate.rounds, b.estimate.rounds
    same = a.run == b.run and first.keys() == second.keys() and len(first) > 1
    return tuple(sorted(first)) if same else ()


def _shared(a: Measure, b: Measure) -> Callable[[str], bool]:
    """Which items of the two budgets are one and the same error."""
    same_sensors = bool(a.sensors) and a.sensors == b.sensors and not (a.methods | b.methods) & _MODELLED
    same_idle = bool(a.idle[1]) and a.idle == b.idle and a.sensors == b.sensors

    def shared(name: str) -> bool:
        return (same_sensors and name.startswith(ACCURACY)) or (same_idle and name == IDLE_BASELINE)

    return shared


def _difference(
    a: Estimate,
    b: Estimate,
    shared: Callable[[str], bool],
    weight_a: float,
    weight_b: float,
    paired: Sequence[int],
) -> Estimate:
    """``b * weight_b - a * weight_a`` with the budget of both; what is shared is subtracted before it is squared."""
    lines = []
    if paired:
        scatter = standard_error([weight_b * b.rounds[number] - weight_a * a.rounds[number] for number in paired])
        text = f"scatter of the differences in {len(paired)} rounds"
        lines.append(
            BudgetLine(
                name=f"{REPEATS}, paired", kind="A", standard=scatter, dof=len(paired) - 1, systematic=False, text=text
            )
        )
    other = {line.name: line for line in b.budget if shared(line.name)}
    for line in a.budget:
        if paired and line.name == REPEATS:
            continue
        partner = other.pop(line.name, None)
        if partner is None:
            lines.append(_weighted(line, "A", weight_a))
            continue
        # A scale factor's error has the sign of what it scales: net energies may be negative.
        signs = [math.copysign(1.0, one.value) if line.name.startswith(ACCURACY) else 1.0 for one in (a, b)]
        left = abs(signs[1] * partner.standard * weight_b - signs[0] * line.standard * weight_a)
        dof = min(line.dof, partner.dof)
        lines.append(
            BudgetLine(
                name=f"{line.name}, A and B",
                kind=line.kind,
                standard=left,
                dof=dof,
                systematic=True,
                text="one error in both: what is left",
            )
        )
    lines += [
        _weighted(line, "B", weight_b)
        for line in b.budget
        if (not shared(line.name) or line.name in other) and not (paired and line.name == REPEATS)
    ]
    return _combined(weight_b * b.value - weight_a * a.value, lines)


def _weighted(line: BudgetLine, side: str, weight: float) -> BudgetLine:
    return BudgetLine(
        name=f"{line.name}, {side}",
        kind=line.kind,
        standard=abs(weight) * line.standard,
        dof=line.dof,
        systematic=line.systematic,
        text=line.text,
    )


def _combined(value: float, lines: Sequence[BudgetLine]) -> Estimate:
    items = [(line.standard, line.dof) for line in lines]
    standard = math.sqrt(math.fsum(u * u for u, _ in items))
    if standard == 0:
        return Estimate(
            value=value,
            standard=0.0,
            expanded=0.0,
            factor=coverage_factor([(1.0, math.inf)]),
            dof=math.inf,
            budget=tuple(lines),
        )
    largest = max((line.standard for line in lines if line.name.startswith(ACCURACY)), default=0.0)
    factor = coverage_factor(items, largest)
    return Estimate(
        value=value,
        standard=standard,
        expanded=factor * standard,
        factor=factor,
        dof=effective_dof(items),
        budget=tuple(lines),
    )


def _with_value(estimate: Estimate, value: float) -> Estimate:
    return Estimate(
        value=value,
        standard=estimate.standard,
        expanded=estimate.expanded,
        factor=estimate.factor,
        dof=estimate.dof,
        budget=estimate.budget,
    )


def _keys(*found: Mapping[tuple[Kind, str, str], Measure]) -> list[tuple[Kind, str, str]]:
    """All quantities of both, energies first, the total at their head."""
    names = [TOTAL, *COMPONENTS]

    def place(key: tuple[Kind, str, str]) -> tuple[int, int, str, int]:
        kind, name, basis = key
        at = names.index(name) if name in names else len(names)
        return ("energy", "throughput", "latency").index(kind), at, name, int(basis == NET)

    return sorted({key for one in found for key in one}, key=place)


# Notes


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _notes(a: Side, b: Side) -> Iterable[str]:
    """What else differs between two sides, so that nobody takes it for the precision."""
    first, second = a.settings, b.settings
    if first.get("network") != second.get("network"):
        yield f"different networks: A is {first.get('network')}, B is {second.get('network')}"
    elif (
        first.get("model_sha256") != second.get("model_sha256")
        and first.get("precision") == second.get("precision")
        and first.get("model_sha256")
        and second.get("model_sha256")
    ):
        yield "the model files differ, at the same network and precision"
    for key, what in (("scenario", "scenarios"), ("actual_precision", "precisions"), ("runtime", "runtimes")):
        one, two = (str(item.get(key) or ("offline" if key == "scenario" else "unknown")) for item in (first, second))
        if one != two:
            yield f"different {what}: A {one}, B {two}"
    rates = [float(item.get("server_rate_per_s") or 0.0) for item in (first, second)]
    if all(rates) and rates[0] != rates[1]:
        yield f"different arrival rates: A {rates[0]:g}/s, B {rates[1]:g}/s"
    versions = [str(item.get("runtime_version") or "unknown") for item in (first, second)]
    if first.get("runtime") == second.get("runtime") and versions[0] != versions[1]:
        yield f"different versions of {first.get('runtime')}: A {versions[0]}, B {versions[1]}"
    for name, here, there in (("A", a, b), ("B", b, a)):
        lacking = [size for size in there.batch_sizes if size not in here.batch_sizes]
        if lacking:
            yield f"{name} has no batch size {_list(lacking)}: not compared"
    if a.run is not b.run:
        yield from _machine_notes(a, b)


def _machine_notes(a: Side, b: Side) -> Iterable[str]:
    machines = [
        (str(side.run.document["run"]["provenance"].get("host") or "unnamed"), side.run.hardware) for side in (a, b)
    ]
    if machines[0] != machines[1]:
        told = [f"{host} ({hardware})" if hardware else host for host, hardware in machines]
        yield f"different machines: A on {told[0]}, B on {told[1]}; no error of their sensors cancels"
    else:
        yield "two runs: the machine may have changed between them, which no scatter between rounds shows"
    for key in ("kernel", "governor", "turbo"):
        values = []
        for side in (a, b):
            provenance = side.run.document["run"]["provenance"]
            cpu = provenance.get("cpu")
            values.append(provenance.get(key) or (cpu.get(key) if isinstance(cpu, Mapping) else None))
        if values[0] != values[1]:
            yield f"different {key}: A {values[0] or 'unknown'}, B {values[1] or 'unknown'}"


def _kinds(methods: frozenset[str]) -> frozenset[str]:
    return frozenset("measured" if method in _REAL else method for method in methods)


def _method_note(
    a: Side,
    b: Side,
    first: Mapping[tuple[Kind, str, str], Measure],
    second: Mapping[tuple[Kind, str, str], Measure],
    *,
    mixed: bool,
) -> str:
    """Refuse to set measured against estimated energies, or say that it was done."""
    for key in _keys(first, second):
        one, two = first.get(key), second.get(key)
        if key[0] != "energy" or one is None or two is None or one.estimate is None or two.estimate is None:
            continue
        kinds = _kinds(one.methods), _kinds(two.methods)
        if kinds[0] == kinds[1]:
            continue
        told = [" and ".join(sorted(kind)) or "unknown" for kind in kinds]
        text = (
            f"the energy ({key[1]}) of A, {a.configuration} in run {a.run.id}, is {told[0]}, "
            f"that of B, {b.configuration} in run {b.run.id}, is {told[1]}"
        )
        if not mixed:
            raise ConfigError(f"{text}: these are not compared; --mixed does it all the same")
        return f"NOT ALIKE: {text}"
    if (total := ("energy", TOTAL, GROSS)) in first and total in second:
        parts = [
            sorted(name for kind, name, basis in found if kind == "energy" and basis == GROSS)
            for found in (first, second)
        ]
        names = [[name for name in part if name != TOTAL and not name.startswith(NODE)] for part in parts]
        if names[0] != names[1]:
            return f"the totals are not of the same parts: A of {_list(names[0])}; B of {_list(names[1])}"
    return ""


def _common_notes(pairs: Sequence[Pair], *, cancel: bool) -> Iterable[str]:
    rows = [row for pair in pairs for row in pair.rows]
    # With one component only, its verdict is the total's once more.
    verdicts = len(
        {
            (number, row.batch_size, row.kind, row.basis, row.difference.value)
            for number, pair in enumerate(pairs)
            for row in pair.rows
            if row.difference is not None and row.verdict in (SIGNIFICANT, "no significant difference")
        }
    )
    if any(name.startswith(ACCURACY) for row in rows for name in row.cancelled):
        yield (
            "The accuracy of the sensors is the same error in A and B, a scale factor: it is in the difference only "
            "as far as that goes, and not in the percentage. --uncorrelated counts it in full."
        )
    counts = sorted({row.paired_rounds for row in rows if row.difference is not None})
    if counts and counts[0]:
        yield (
            f"Rounds are paired ({_list(counts)} of them): the scatter is that of B - A in each round, so what a round "
            "has in common is in neither."
        )
    elif len(counts) > 1:
        yield "Some rounds are paired, others (not the same ones in A and B, or of two runs) count as independent."
    elif counts:
        yield "Rounds are not paired (two runs, or not the same ones in A and B): their scatters count as independent."
    if not cancel:
        yield "Nothing cancels (--uncorrelated): errors that A and B share are counted in full, twice."
    if verdicts > 1:
        chance = verdicts / 20
        yield (
            f"Each verdict has 95 % coverage: if nothing differed, about {chance:.2g} of {verdicts} would still be "
            "significant, by chance."
        )
    for run in {id(side.run): side.run for pair in pairs for side in (pair.a, pair.b)}.values():
        errors = sorted({item["reason"] for item in run.document["findings"] if item["severity"] == "error"})
        if errors:
            yield f"Run {run.id}: its audit found errors: {_list(errors)}."
