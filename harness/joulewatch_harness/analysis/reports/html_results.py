"""The results of one run in the report: energies, phases of a batch, and uncertainty budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from joulewatch_harness.analysis.reports import html_charts as charts
from joulewatch_harness.analysis.reports import to_text, whose_text
from joulewatch_harness.analysis.reports.html_figure import energy_cell
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag
from joulewatch_harness.analysis.reports.html_parts import (
    Unit,
    make_details,
    make_notes,
    make_table,
)
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.model import OTHER_PHASE, GroupResult, RunResult
from joulewatch_harness.analysis.results.numbers import (
    UNKNOWN_ACCURACY,
    UNKNOWN_ACCURACY_TEXT,
    energy_text,
    freedom_text,
    plain,
    prefix_for,
    with_uncertainty,
)
from joulewatch_harness.analysis.results.phases import EXECUTE_PHASE, has_phases
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.plan.scenario import IDLE_PHASE


def results_section(result: RunResult, unit: Unit) -> Markup:
    names = list(dict.fromkeys(component.name for group in result.groups for component in group.components))
    # A single component is the total.
    components = names if len(names) > 1 else []
    one_exporter = len({record.exporter for record in result.sensors}) == 1
    primary = {str(SensorId.of(record)) for record in result.sensors if record.primary}
    others = list(dict.fromkeys(energy.name for group in result.groups for energy in (*group.nodes, *group.parts)))

    def named(name: str, energies: str) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str | None:
            found = group.components if energies == "components" else (*group.nodes, *group.parts)
            return energy_cell(unit, {energy.name: energy for energy in found}.get(name))

        shown = "/".join(name.split("/")[-2:]) if one_exporter else name
        return Column(f"{shown} (primary)" if name in primary else shown, cell)

    def per_joule(group: GroupResult) -> str | None:
        value = group.total.inferences_per_joule
        return None if value is None else plain(value.value, value.expanded or 0.0)

    attributed: list[Column[GroupResult]] = []
    if whose_text.has_attributed(result):
        attributed = [Column("attributed", lambda group: unit.text(group.total.attributed))]
    # The most important columns first: a phone shows about four.
    columns: list[Column[GroupResult]] = [
        Column("batch", lambda group: group.batch_size),
        Column("total", lambda group: energy_cell(unit, group.total)),
        Column("net", lambda group: unit.text(group.total.net)),
        *attributed,
        Column("inf/s", lambda group: None if group.throughput is None else with_uncertainty(group.throughput)),
        *(named(name, "components") for name in components),
        Column("inf/J", per_joule),
        Column("p50/p99 ms", to_text.milliseconds_cell),
        Column("rounds", to_text.rounds_cell),
    ]

    def heading(group: GroupResult) -> str:
        return group.configuration.name

    caption = f"Energies in {unit.name} per inference; ±: 95 % coverage; p50/p99: latency of a batch"
    parts = [make_table(caption, columns, result.groups, heading)]
    if UNKNOWN_ACCURACY in parts[0]:
        parts.append(tag("p", f"{UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}.", class_="notes"))
    notes = [*to_text.single_round_lines(result), *to_text.idle_lines(result), *whose_text.attributed_lines(result)]
    notes += [*to_text.rounds_lines(result)]
    parts.append(make_notes([*notes, *to_text.setup_lines(result), *to_text.missing_lines(result)]))
    shared = [group for group in result.groups if group.total.shares]
    if shared:
        caption = f"Whose energy, {unit.name} per inference (measuring: harness, exporters, Prometheus; system: kernel)"
        parts.append(make_table(caption, whose_text.shares_columns(shared, unit.scale), shared, heading))
    if result.interference:
        caption = (
            f"Interference: each network alone, and together with the others (attributed {unit.name} per inference)"
        )
        columns_of = whose_text.interference_columns(unit.scale)
        parts.append(make_table(caption, columns_of, result.interference, lambda row: row.configuration))
    parts += _counts(result)
    if others:
        caption = f"Whole servers and parts of devices, {unit.name} per inference (never added to the total)"
        parts.append(
            make_table(caption, [columns[0], *(named(name, "others") for name in others)], result.groups, heading)
        )
    return join(*parts)


def _counts(result: RunResult) -> Iterator[Markup]:
    """Yield a table per unit of work other than the inference, such as output tokens."""
    for name in dict.fromkeys(count.name for group in result.groups for count in group.counts):
        rows = [(group, count) for group in result.groups for count in group.counts if count.name == name]
        exponent, letter = prefix_for(count.gross.value for _, count in rows if count.gross is not None)
        caption = f"{name.replace('_', ' ')}: total and net in {letter}J each; per inf: per inference"
        yield make_table(caption, to_text.count_columns(10.0**-exponent), rows, lambda row: row[0].configuration.name)


def phases_section(result: RunResult) -> Markup:
    """Return the shares of the time, for configurations whose batches have phases other than the execution."""
    parts = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups if has_phases(group)):
        groups = [group for group in result.groups if group.configuration.name == name and group.phases]
        phases = list(dict.fromkeys(phase.name for group in groups for phase in group.phases))
        # The execution is first, so that its shares can be compared.
        phases.sort(key=lambda phase: phase != EXECUTE_PHASE)
        spare = [one for one in phases if one not in (EXECUTE_PHASE, OTHER_PHASE, IDLE_PHASE)]
        colours = {**{one: charts.colour(number + 3) for number, one in enumerate(spare)}, EXECUTE_PHASE: "s2"}

        columns: list[Column[GroupResult]] = [
            Column("batch", lambda group: group.batch_size),
            _share_bar(phases, colours),
            *map(_share, phases),
        ]
        legend = [tag("li", charts.swatch(colours.get(one, "plain")), one) for one in phases]
        parts += [
            make_table(f"{name}: share of the time per phase, %", columns, groups),
            tag("ul", *legend, class_="legend"),
        ]
    if parts:
        rows, exponent, letter = to_text.phase_energy_rows(result)
        if rows:
            caption = (
                f"Energy per phase, {letter}J per inference, gross (n.r.: not resolved; rest: all of these together)"
            )
            energy_columns = to_text.phase_energy_columns(rows, 10.0**-exponent)
            parts.append(make_table(caption, energy_columns, rows, lambda row: row[0].configuration.name))
        else:
            parts.append(tag("p", to_text.NO_PHASE_ENERGY, class_="notes"))
    return join(*parts)


def _share(phase: str) -> Column[GroupResult]:
    def cell(group: GroupResult) -> str | None:
        shares = _shares(group)
        return f"{100 * shares[phase]:.1f}" if phase in shares else None

    return Column(phase, cell)


def _share_bar(phases: Sequence[str], colours: Mapping[str, str]) -> Column[GroupResult]:
    def bar(group: GroupResult) -> Markup:
        shares = _shares(group)
        return charts.share_bar((colours.get(phase, "plain"), shares[phase]) for phase in phases if phase in shares)

    return Column("share", bar, text=True)


def _shares(group: GroupResult) -> dict[str, float]:
    return {phase.name: phase.share.value for phase in group.phases}


def budgets_section(result: RunResult, unit: Unit, *, expanded: bool) -> Markup:
    parts = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups):
        tables = []
        for group in result.groups:
            gross = group.total.gross
            if group.configuration.name == name and gross is not None:
                factor = "" if gross.factor is None else f", k = {gross.factor:.3g}, {freedom_text(gross.dof)}"
                caption = f"Batch {group.batch_size}: {energy_text(gross, unit.scale)} {unit.name}{factor}"
                rows = sorted(gross.budget, key=lambda line: -line.standard)
                columns = to_text.budget_columns(gross.standard**2, unit.scale, unit.name)
                tables.append(make_table(caption, columns, rows))
        if tables:
            parts.append(make_details(name, *tables, expanded=expanded))
    if not parts:
        return Markup("")
    text = "Components of the uncertainty of the total. u: standard uncertainty; share: of the variance of the mean."
    return join(tag("p", text, class_="notes"), *parts)
