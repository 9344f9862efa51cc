"""Differences between configurations, of one run or of several, and whether they are significant.

Every quantity (joules per inference of each component, throughput, latency) of a configuration B is compared with the
same quantity of a baseline A at the same batch size: the difference B - A and its share of A, each with an expanded
uncertainty of 95 % coverage by the GUM (JCGM 100:2008; 5.2 for correlated quantities). A difference is
``significant`` only if the intervals of both exclude 0.

Errors that cancel, because they are the same in A and B (correlation 1):

* the published accuracy of a sensor, if A and B were measured by the same sensors of the same machine. It is treated
  as one scale factor, independent of the load: it contributes accuracy x difference to the difference in joules, and
  nothing to the difference in percent. A sensor whose error depends on the power is not covered by that;
  ``cancel=False`` counts both errors in full.
* the calibration of a sensor, in the same case: its errors are those of a straight line, so what remains is known, and
  also which errors of A and B have opposite signs.
* the idle power that was subtracted (net and attributed), if it is from the same idle windows: it contributes its
  watts x the difference in seconds per inference.

The scatter between rounds is *paired* if A and B are of one run and have the same rounds: every round visits all
configurations in random order, so the state of the machine in a round affects both, and cancels in the differences
B - A of the rounds. Their scatter is the type A component, with n - 1 degrees of freedom. The decision to pair depends
on how the run was made, never on the result: if the rounds have nothing in common, pairing costs degrees of freedom
(n - 1 instead of up to 2 n - 2; with 3 rounds the factor is 4.3 instead of 2.8). Across runs, and for results stored
without their rounds, the scatters of A and B are independent.

Two runs differ by more than their rounds show, because the state of the machine changes between them. A side may be
several runs of one plan: their means are then the repeats, and three runs or more a side decide. If a side is a single
run and the other side is another run, a standard uncertainty of 1 % for the change between runs is assumed, and the
result states it.

Rounds that end at a target end when chance makes their scatter small. The factor for the scatter is then Student's t at
97 %, as for the results of such a run; at 95 % up to 10 % of the comparisons of equal configurations were significant.

Errors that do not cancel and are combined as independent:

* refresh and resolution of a sensor, which have another phase in each window;
* the power next to the edges of windows, interpolation and clocks, which may be similar in both, but that is unknown;
* the accuracy of a power model (``estimated``) or of an unknown method, which depends on the load;
* everything about different sensors: nothing cancels across machines.

Source: GUM, equations 13 and 16 for two terms; Welch-Satterthwaite for the degrees of freedom.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from joulewatch_harness.analysis.energy.calibrated import CALIBRATION
from joulewatch_harness.analysis.energy.window_energy import ACCURACY
from joulewatch_harness.analysis.results.model import (
    COMPONENTS,
    IDLE_BASELINE,
    REPEATS,
    TOTAL,
    BudgetLine,
    Estimate,
)
from joulewatch_harness.analysis.results.stored_results import (
    ATTRIBUTED,
    GROSS,
    NET,
    NODE,
    Kind,
    Measure,
    Run,
    Side,
    common_covers,
    kinds_of,
    listed,
    machine_of,
    measures,
)
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.gum import COVERAGE, standard_error
from joulewatch_harness.names import unknown

Verdict = Literal["significant", "no significant difference", "undecided", "missing"]
SIGNIFICANT: Final = "significant"
NOT_COMPARABLE: Final = "NOT COMPARABLE"
"""Start of a note about energies of different methods."""

BETWEEN_RUNS: Final = "between runs"
ASSUMED_BETWEEN_RUNS: Final = 0.01
"""Assumed relative standard uncertainty between two runs of one plan on one machine; at least that was seen."""
_BASES: Final = ("", GROSS, NET, ATTRIBUTED)
_MODELLED: Final = frozenset({"estimated", "unknown"})
"""Methods whose error is not a constant scale factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity of B compared with A, at one batch size."""

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
    """Difference in percent of A; None if A may be 0."""
    verdict: Verdict
    text: str = ""
    """Why there is no verdict."""
    cancelled: tuple[str, ...] = ()
    """Budget components that are the same error in A and B."""
    paired_rounds: int = 0
    """Number of rounds whose differences give the scatter; 0: the scatters of A and B are independent."""
    coverage: float = COVERAGE
    """Of Student's factor for the repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """B compared with A at every batch size that both have."""

    a: Side
    b: Side
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs, each with the same baseline."""

    pairs: tuple[Pair, ...]
    methods: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())


# Choosing


def pick(run: Run, word: str) -> list[str]:
    """Return the configurations of a run that match a word: a name, part of a name, or a pattern with ``*``.

    Raises:
        ConfigError: No configuration matches, or several match a word that is not a pattern.
    """
    names = run.configurations
    if word in names:
        return [word]
    if any(sign in word for sign in "*?["):
        matches = [name for name in names if fnmatch.fnmatchcase(name, word)]
    else:
        matches = [name for name in names if word in name.split("/")] or [name for name in names if word in name]
        if len(matches) > 1:
            raise ConfigError(f"{word!r} matches several configurations of run {run.id}: {', '.join(matches)}")
    if not matches:
        raise ConfigError(f"run {run.id}: {unknown('configuration', word, names)}")
    return matches


def pairs_of(chosen: Sequence[tuple[Run, Sequence[str]]]) -> list[tuple[Side, Side]]:
    """Return the pairs to compare; the first configuration is the baseline of all others.

    Args:
        chosen: Runs, each with the configurations that were named; none means all.

    Raises:
        ConfigError: There is nothing to compare, or the choice is ambiguous.
    """
    for run, _ in chosen:
        if not run.configurations:
            raise ConfigError(f"run {run.id} has no results: it has no measure window")
    if len(chosen) > 1 and not any(names for _, names in chosen):
        return _pairs_by_name([run for run, _ in chosen])
    sides = [Side(run, name) for run, names in chosen for name in (names or run.configurations)]
    unique = list({(id(side.run), side.configuration): side for side in sides}.values())
    if len(unique) < 2:
        (run, _) = chosen[0]
        others = [name for name in run.configurations if name != unique[0].configuration]
        second = f"name a second configuration ({', '.join(others)}) or another run" if others else "name another run"
        raise ConfigError(f"run {run.id}: only {unique[0].configuration} is chosen: {second}")
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
                f"and {', '.join(other.configurations)}): name one after each run, for example "
                f"'joulewatch compare {first.id} {first.configurations[0]} {other.id} {other.configurations[0]}'"
            )
    return pairs


# Comparing


def compare(pairs: Sequence[tuple[Side, Side]], *, mixed: bool = False, cancel: bool = True) -> Comparison:
    """Compare every pair.

    Args:
        pairs: From ``pairs_of``.
        mixed: Compare measured energies with others; a note states it.
        cancel: Errors that A and B share cancel (see the module); False: nothing cancels.

    Raises:
        ConfigError: Two sides have no batch size in common, or one is measured and the other is not.
    """
    compared = []
    methods: set[str] = set()
    for a, b in pairs:
        sizes = [size for size in a.batch_sizes if size in b.batch_sizes]
        if not sizes:
            raise ConfigError(
                f"{a.configuration} (run {a.run.id}) has batch sizes {listed(a.batch_sizes)}, {b.configuration} "
                f"(run {b.run.id}) has {listed(b.batch_sizes)}: there is none in common to compare"
            )
        rows: list[Row] = []
        notes = list(_notes(a, b))
        for size in sizes:
            of_a, of_b = measures(a, size), measures(b, size)
            note = _method_note(a, b, of_a, of_b, mixed=mixed)
            if note and note not in notes:
                notes.append(note)
            for quantities in (of_a, of_b):
                total = quantities.get(("energy", TOTAL, GROSS))
                methods |= total.methods if total is not None else set()
            rows += [compare_measures(size, of_a.get(key), of_b.get(key), cancel=cancel) for key in _keys(of_a, of_b)]
        compared.append(Pair(a=a, b=b, rows=tuple(rows), notes=tuple(notes)))
    return Comparison(tuple(compared), frozenset(methods), tuple(_common_notes(compared, cancel=cancel)))


def compare_measures(batch_size: int, a: Measure | None, b: Measure | None, *, cancel: bool = True) -> Row:
    """Compare one quantity of B with A; at least one of them is given."""
    quantity = a or b
    assert quantity is not None
    row = Row(
        batch_size=batch_size,
        kind=quantity.kind,
        name=quantity.name,
        basis=quantity.basis,
        unit=quantity.unit,
        a=a.estimate if a is not None else None,
        b=b.estimate if b is not None else None,
        difference=None,
        percent=None,
        verdict="missing",
    )
    if a is None or b is None or a.estimate is None or b.estimate is None:
        why = [
            f"{name}: {'not measured' if side is None else side.missing}"
            for name, side in (("A", a), ("B", b))
            if side is None or side.estimate is None
        ]
        return replace(row, text="; ".join(why))
    shared = _shared(a, b) if cancel else (lambda _: False)
    rounds = _paired_rounds(a, b)
    coverage = max(a.coverage, b.coverage)
    between = _between_runs(a, b)
    estimate_a, estimate_b = (_with_lines(side.estimate, lines) for side, lines in zip((a, b), between, strict=True))
    value_a, value_b = estimate_a.value, estimate_b.value
    covers = common_covers((estimate_a, estimate_b))
    difference = replace(_difference(estimate_a, estimate_b, shared, 1.0, 1.0, rounds, coverage), covers=covers)
    percent = None
    if value_a > 0 and (a.estimate.expanded or 0.0) < value_a:
        # First order, as everywhere in the GUM: d(B/A) = dB/A - B dA/A².
        scale = 100 / value_a
        percent = _difference(estimate_a, estimate_b, shared, scale * value_b / value_a, scale, rounds, coverage)
        percent = replace(percent, value=scale * (value_b - value_a), covers=covers)
    names_a, names_b = ({line.name for line in estimate.budget} for estimate in (estimate_a, estimate_b))
    row = replace(
        row,
        difference=difference,
        percent=percent,
        cancelled=tuple(sorted(name for name in names_a & names_b if shared(name))),
        paired_rounds=len(rounds),
        coverage=coverage,
    )
    if REPEATS not in names_a or REPEATS not in names_b:
        return replace(
            row,
            difference=replace(difference, expanded=None),
            percent=None if percent is None else replace(percent, expanded=None),
            verdict="undecided",
            text="fewer than two rounds, so the scatter is not known",
        )
    changes = [change for change in (difference, percent) if change is not None]
    significant = all(change.expanded is not None and abs(change.value) > change.expanded for change in changes)
    if significant:
        return replace(row, verdict=SIGNIFICANT)
    text = "run-to-run repeatability unknown" if any(between) else ""
    return replace(row, verdict="no significant difference", text=text)


def _between_runs(a: Measure, b: Measure) -> tuple[tuple[BudgetLine, ...], tuple[BudgetLine, ...]]:
    """Return the assumed change between runs of each side; none within one run, and none if the runs were repeated."""
    if a.run == b.run:
        return (), ()

    def lines(side: Measure) -> tuple[BudgetLine, ...]:
        if side.repeated:
            return ()
        text = f"assumed change from run to run: {100 * ASSUMED_BETWEEN_RUNS:g} % (standard uncertainty)"
        standard = ASSUMED_BETWEEN_RUNS * side.magnitude
        return (BudgetLine(name=BETWEEN_RUNS, kind="B", standard=standard, dof=math.inf, systematic=True, text=text),)

    return lines(a), lines(b)


def _with_lines(estimate: Estimate | None, lines: tuple[BudgetLine, ...]) -> Estimate:
    assert estimate is not None
    return replace(estimate, budget=(*estimate.budget, *lines))


def _paired_rounds(a: Measure, b: Measure) -> tuple[int, ...]:
    """Return the rounds to pair: A and B must be of one run and have the same rounds."""
    assert a.estimate is not None
    assert b.estimate is not None
    first, second = a.estimate.rounds, b.estimate.rounds
    same = a.run == b.run and first.keys() == second.keys() and len(first) > 1
    return tuple(sorted(first)) if same else ()


def _shared(a: Measure, b: Measure) -> Callable[[str], bool]:
    """Return which components of the two budgets are the same error."""
    same_sensors = bool(a.sensors) and a.sensors == b.sensors and not (a.methods | b.methods) & _MODELLED
    same_idle = bool(a.idle[1]) and a.idle == b.idle and a.sensors == b.sensors

    def shared(name: str) -> bool:
        return (same_sensors and name.startswith((ACCURACY, *CALIBRATION))) or (same_idle and name == IDLE_BASELINE)

    return shared


def _difference(
    a: Estimate,
    b: Estimate,
    shared: Callable[[str], bool],
    weight_a: float,
    weight_b: float,
    paired: Sequence[int],
    coverage: float,
) -> Estimate:
    """Return ``b * weight_b - a * weight_a``; shared components are subtracted before they are squared."""
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
        # The error of a scale factor has the sign of the scaled value: net energies may be negative.
        scaled = line.name.startswith(ACCURACY)
        signs = [
            math.copysign(1.0, estimate.value) if scaled else one.sign for estimate, one in ((a, line), (b, partner))
        ]
        rest = abs(signs[1] * partner.standard * weight_b - signs[0] * line.standard * weight_a)
        lines.append(
            replace(
                line,
                name=f"{line.name}, A and B",
                standard=rest,
                dof=min(line.dof, partner.dof),
                systematic=True,
                text="the same error in both: the rest that does not cancel",
            )
        )
    lines += [
        _weighted(line, "B", weight_b)
        for line in b.budget
        if (not shared(line.name) or line.name in other) and not (paired and line.name == REPEATS)
    ]
    return estimate_of(weight_b * b.value - weight_a * a.value, lines, coverage=coverage)


def _weighted(line: BudgetLine, side: str, weight: float) -> BudgetLine:
    return replace(line, name=f"{line.name}, {side}", standard=abs(weight) * line.standard)


def _keys(*sides: Mapping[tuple[Kind, str, str], Measure]) -> list[tuple[Kind, str, str]]:
    """Return the keys of all quantities, energies first, starting with the total."""
    names = [TOTAL, *COMPONENTS]

    def place(key: tuple[Kind, str, str]) -> tuple[int, int, str, int]:
        kind, name, basis = key
        at = names.index(name) if name in names else len(names)
        return ("energy", "throughput", "latency").index(kind), at, name, _BASES.index(basis)

    return sorted({key for quantities in sides for key in quantities}, key=place)


# Notes


def _notes(a: Side, b: Side) -> Iterator[str]:
    """Yield the other differences between two sides, which may explain a difference in the numbers."""
    of_a, of_b = a.settings, b.settings
    same_model = of_a.get("model_sha256") == of_b.get("model_sha256")
    if of_a.get("network") != of_b.get("network"):
        yield f"different networks: A is {of_a.get('network')}, B is {of_b.get('network')}"
    elif (
        not same_model
        and of_a.get("model_sha256")
        and of_b.get("model_sha256")
        and of_a.get("precision") == of_b.get("precision")
    ):
        yield "different model files, with the same network and precision"
    for key, plural, default in (
        ("scenario", "scenarios", "offline"),
        ("actual_precision", "precisions", "unknown"),
        ("runtime", "runtimes", "unknown"),
    ):
        value_a, value_b = (str(settings.get(key) or default) for settings in (of_a, of_b))
        if value_a != value_b:
            yield f"different {plural}: A {value_a}, B {value_b}"
    rate_a, rate_b = (float(settings.get("server_rate_per_s") or 0.0) for settings in (of_a, of_b))
    if rate_a and rate_b and rate_a != rate_b:
        yield f"different arrival rates: A {rate_a:g}/s, B {rate_b:g}/s"
    version_a, version_b = (str(settings.get("runtime_version") or "unknown") for settings in (of_a, of_b))
    if of_a.get("runtime") == of_b.get("runtime") and version_a != version_b:
        yield f"different versions of {of_a.get('runtime')}: A {version_a}, B {version_b}"
    for name, side, other in (("A", a, b), ("B", b, a)):
        lacking = [size for size in other.batch_sizes if size not in side.batch_sizes]
        if lacking:
            yield f"{name} has no batch size {listed(lacking)}: not compared"
    if a.run is not b.run:
        yield from _machine_notes(a, b)


def _machine_notes(a: Side, b: Side) -> Iterator[str]:
    provenance_a, provenance_b = (side.run.document["run"]["provenance"] for side in (a, b))
    machine_a, machine_b = machine_of(a.run), machine_of(b.run)
    if machine_a != machine_b:
        yield f"different machines: A on {machine_a}, B on {machine_b}; the errors of their sensors do not cancel"
    elif not (a.run.repeats and b.run.repeats):
        yield "two runs: a change of the machine between them does not appear in the scatter between rounds"
    for key in ("kernel", "governor", "turbo"):
        value_a, value_b = (_of_machine(provenance, key) for provenance in (provenance_a, provenance_b))
        if value_a != value_b:
            yield f"different {key}: A {value_a or 'unknown'}, B {value_b or 'unknown'}"
    limits_a, limits_b = _gpu_limits(provenance_a), _gpu_limits(provenance_b)
    is_same = limits_a == limits_b
    if limits_a.keys() != limits_b.keys():  # the GPUs of another machine have other names
        is_same = sorted(limits_a.values()) == sorted(limits_b.values())
    if limits_a and limits_b and not is_same:
        yield f"different power limits of the GPUs: A {_watts(limits_a)}, B {_watts(limits_b)}"


def _gpu_limits(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Return GPU -> its power limit in watts; those that are not known are missing."""
    gpus = provenance.get("gpus")
    known = sorted(gpus.items()) if isinstance(gpus, Mapping) else ()
    limits = {name: settings.get("limit_watts") for name, settings in known if isinstance(settings, Mapping)}
    return {name: watts for name, watts in limits.items() if isinstance(watts, int | float)}


def _watts(limits: Mapping[str, float]) -> str:
    return f"{listed([f'{watts:g}' for watts in limits.values()])} W"


def _of_machine(provenance: Mapping[str, Any], key: str) -> Any:
    cpu = provenance.get("cpu")
    return provenance.get(key) or (cpu.get(key) if isinstance(cpu, Mapping) else None)


def _method_note(
    a: Side,
    b: Side,
    of_a: Mapping[tuple[Kind, str, str], Measure],
    of_b: Mapping[tuple[Kind, str, str], Measure],
    *,
    mixed: bool,
) -> str:
    """Return a note about energies of different methods or totals of different parts.

    Raises:
        ConfigError: One energy is measured and the other is not, and ``mixed`` is False.
    """
    for key in _keys(of_a, of_b):
        energy_a, energy_b = of_a.get(key), of_b.get(key)
        if key[0] != "energy" or energy_a is None or energy_b is None:
            continue
        kinds_a, kinds_b = kinds_of(energy_a.methods), kinds_of(energy_b.methods)
        if energy_a.estimate is None or energy_b.estimate is None or kinds_a == kinds_b:
            continue
        name_a, name_b = (" and ".join(sorted(kinds)) or "unknown" for kinds in (kinds_a, kinds_b))
        text = (
            f"the energy ({key[1]}) of A, {a.configuration} in run {a.run.id}, is {name_a}; "
            f"that of B, {b.configuration} in run {b.run.id}, is {name_b}"
        )
        if not mixed:
            raise ConfigError(f"{text}: they are not comparable; --mixed compares them anyway")
        return f"{NOT_COMPARABLE}: {text}"
    parts_a, parts_b = (_parts_of_total(quantities) for quantities in (of_a, of_b))
    total = ("energy", TOTAL, GROSS)
    if total in of_a and total in of_b and parts_a != parts_b:
        return f"the totals have different parts: A {listed(parts_a)}; B {listed(parts_b)}"
    return ""


def _parts_of_total(quantities: Iterable[tuple[Kind, str, str]]) -> list[str]:
    return sorted(
        name
        for kind, name, basis in quantities
        if kind == "energy" and basis == GROSS and name != TOTAL and not name.startswith(NODE)
    )


def _common_notes(pairs: Sequence[Pair], *, cancel: bool) -> Iterator[str]:
    rows = [row for pair in pairs for row in pair.rows]
    if any(name.startswith(ACCURACY) for row in rows for name in row.cancelled):
        yield (
            "The accuracy of the sensors is the same scale factor in A and B: it contributes to the difference in "
            "proportion to the difference, and nothing to the percentage. --uncorrelated counts it in full."
        )
    counts = sorted({row.paired_rounds for row in rows if row.difference is not None})
    if counts and counts[0]:
        yield (
            f"Rounds are paired ({listed(counts)} of them): the scatter is that of B - A in each round, so effects "
            "common to a round cancel."
        )
    elif len(counts) > 1:
        yield "Some rounds are paired; others (two runs, or different rounds in A and B) are independent."
    elif counts:
        yield "Rounds are not paired (two runs, or different rounds in A and B): their scatters are independent."
    if any(line.name.startswith(BETWEEN_RUNS) for row in rows if row.difference for line in row.difference.budget):
        yield (
            f"A change of {100 * ASSUMED_BETWEEN_RUNS:g} % (standard uncertainty) from run to run is assumed. "
            "To measure it, give three runs on each side: RUN1,RUN2,RUN3."
        )
    if not cancel:
        yield "No errors cancel (--uncorrelated): errors that A and B share count in full on both sides."
    verdicts = len(
        {
            # The verdict of a single component repeats that of the total.
            (number, row.batch_size, row.kind, row.basis, row.difference.value)
            for number, pair in enumerate(pairs)
            for row in pair.rows
            if row.difference is not None and row.verdict in (SIGNIFICANT, "no significant difference")
        }
    )
    if verdicts > 1:
        yield (
            f"Each verdict has 95 % coverage: if nothing differed, about {verdicts / 20:.2g} of {verdicts} would still "
            "be significant, by chance."
        )
    runs = [run for pair in pairs for side in (pair.a, pair.b) for run in side.run.repeats or (side.run,)]
    for run in {id(run): run for run in runs}.values():
        errors = sorted({finding["reason"] for finding in run.document["findings"] if finding["severity"] == "error"})
        if errors:
            yield f"Run {run.id}: the audit has errors: {listed(errors)}."
