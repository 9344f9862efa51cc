from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.reports import figure, to_csv, to_json, to_text
from joulewatch_harness.analysis.reports.figure import _foot_lines, write_figure
from joulewatch_harness.analysis.reports.figure_parts import set_ticks
from joulewatch_harness.analysis.results import numbers
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.model import Estimate, RunResult, SetupResult
from joulewatch_harness.analysis.results.phases import outside_execution
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.delivery.results import publish, published_at_s, result_samples
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.records import CalibrationRecord, Note, PhaseTime, SensorRecord, Setup
from support.synthetic import EXPORTER, TWO_SOCKETS, ListSource, World, make_world, sensor

ESTIMATED = (sensor("socket0", "package", collector="estimate", method="estimated", accuracy=0.5, model="EPYC table"),)


def result_of(world: World) -> RunResult:
    assert world.record is not None
    return analyze_run(world.record, ListSource(world.scrapes()))


@pytest.fixture(scope="module")
def measured() -> RunResult:
    return result_of(make_world(TWO_SOCKETS, noise=0.01))


@pytest.fixture(scope="module")
def estimated() -> RunResult:
    return result_of(make_world(ESTIMATED, noise=0.01))


def estimate(value: float, expanded: float) -> Estimate:
    return Estimate(value=value, standard=expanded / 2, expanded=expanded, dof=math.inf, budget=())


NODES = (
    sensor("bmc", "total", "node", "node", collector="ipmi", primary=False, host="node1"),
    sensor("psys", "total", "node", "node", primary=True, host="node1"),
)


def test_the_primary_node_sensor_is_marked_and_published() -> None:
    result = result_of(make_world((TWO_SOCKETS[0], *NODES), batch_sizes=(1,)))
    text = to_text.render_table(result, width=120)
    assert "psys/total (primary)" in text and "bmc/total" in text and "bmc/total (primary)" not in text
    assert f"node: psys/total (primary): rapl on {EXPORTER}" in text
    document = to_json.result_document(result)
    assert [(one["primary"], one["host"]) for one in document["sensors"] if one["scope"] == "node"] == [
        (False, "node1"), (True, "node1"),
    ]  # fmt: skip
    jsonschema.validate(document, to_json.schema())
    psys = next(node for node in result.groups[0].nodes if "psys" in node.name)
    assert psys.gross is not None
    published = [
        item.value
        for item in result_samples(result, 1000.0)
        if item.name == catalog.RESULT_ENERGY.name and {("component", "node"), ("basis", "gross")} <= set(item.labels)
    ]
    assert published[0] == psys.gross.value and len(published) == len(result.groups)
    both = (dataclasses.replace(NODES[0], primary=None), dataclasses.replace(NODES[1], primary=None))
    unknown = result_of(make_world((TWO_SOCKETS[0], *both), batch_sizes=(1,)))
    assert not any(("component", "node") in item.labels for item in result_samples(unknown, 1000.0))


def published_nodes(*nodes: SensorRecord) -> int:
    """Return how many energies of a run with these node sensors are published as component ``node``."""
    result = result_of(make_world((TWO_SOCKETS[0], *nodes), configurations=("a/b/c",), batch_sizes=(1,)))
    assert len(result.groups[0].nodes) == len(nodes)
    names = (catalog.RESULT_ENERGY.name, ("component", "node"), ("basis", "gross"))
    return sum(item.name == names[0] and set(names[1:]) <= set(item.labels) for item in result_samples(result, 1000.0))


def test_the_bmc_of_another_machine_is_not_published_as_the_node() -> None:
    far = sensor("far", "total", "node", "node", collector="redfish", primary=True, host="node7")
    assert published_nodes(NODES[1]) == 1
    assert published_nodes(far) == 0
    assert published_nodes(NODES[1], far) == 1, "the own one, although both are primary"
    assert published_nodes(dataclasses.replace(far, host="")) == 1, "not known whose it is"


@pytest.mark.parametrize(
    ("dof", "text"),
    [
        (1.0, "1 degree of freedom"),
        (1.02, "1.02 degrees of freedom"),
        (2.0, "2 degrees of freedom"),
        (math.inf, "many degrees of freedom"),
    ],
)
def test_degrees_of_freedom(dof: float, text: str) -> None:
    assert numbers.freedom_text(dof) == text


@pytest.mark.parametrize(
    ("value", "expanded", "text"),
    [
        (12.3456, 0.5678, "12.35 ± 0.57"),
        (12.3456, 0.0996, "12.35 ± 0.10"),
        (123.456, 12.3, "123 ± 12"),
        (174.2, 99.7, "174 ± 100"),
        (0.0, 0.0, "0"),
        (3.14159, 0.0, "3.142"),
    ],
)
def test_two_digits_of_the_uncertainty_are_shown(value: float, expanded: float, text: str) -> None:
    assert numbers.with_uncertainty(estimate(value, expanded)) == text


def test_si_prefixes() -> None:
    assert numbers.prefix_for([0.003, 0.02, 0.5]) == (-3, "m")
    assert numbers.prefix_for([2e-7]) == (-9, "n")
    assert numbers.prefix_for([1e-6]) == (-6, "µ")
    assert numbers.prefix_for([]) == (0, "")
    assert numbers.prefix_for([0.002, 0.003, 1300.3]) == (0, ""), "not 1300300 mJ"
    assert numbers.quantity(0.00342, "J") == "3.420 mJ"


def test_the_table_fits_a_terminal_and_names_the_sensors(measured: RunResult) -> None:
    text = to_text.render_table(measured, width=80)
    assert all(len(line) <= 80 for line in text.splitlines()), text
    for word in ("net/onnxruntime/fp32", "net/onnxruntime/int8", "mJ per inference", "energy counter", "psys/total"):
        assert word in text
    assert "ESTIMATED" not in text and "2x AMD EPYC 7763" in text
    assert "±" in text and "with this network loaded" in " ".join(text.split())


def test_the_uncertainty_of_components_is_in_json_and_csv(measured: RunResult) -> None:
    """The table has no room for it and states where it is."""
    assert "JSON and CSV have the ± of the components." in " ".join(to_text.render_table(measured).split())
    first = json.loads(to_json.render_json(measured))["results"][0]["energy"]["components"]
    line = next(csv.DictReader(io.StringIO(to_csv.render_csv(measured))))
    assert [component["name"] for component in first] == ["cpu", "memory"]
    for component in first:
        for basis in ("gross", "net"):
            expanded = component[basis]["expanded_uncertainty"]
            written = line[f"{component['name']}_{basis}_uncertainty_joules_per_inference"]
            assert expanded > 0 and float(written) == pytest.approx(expanded, rel=0.01)
    single = result_of(make_world(TWO_SOCKETS[:1], batch_sizes=(1,)))
    assert "± of the components" not in to_text.render_table(single)


def test_component_columns_are_dropped_on_a_narrow_terminal(measured: RunResult) -> None:
    text = to_text.render_table(measured, width=50)
    assert "Omitted to fit 50 columns: cpu, memory, inf/J." in " ".join(text.split())
    assert "  cpu  " not in text


def test_a_budget_marks_what_the_scatter_of_the_rounds_includes(measured: RunResult) -> None:
    """A line is either the scatter or what is random within a round; the shares of all others add up to 100 %."""
    text = to_text.render_table(measured, width=120, budget=True)
    lines = text.partition("batch 1, gross: ")[2].partition("batch 1, net: ")[0].splitlines()
    (refresh,) = [line for line in lines if line.startswith("  refresh")]
    (repeats,) = [line for line in lines if line.startswith("  repeats")]
    assert ("in repeats" in refresh) != ("in others" in repeats)
    numbers = [float(match[1]) for line in lines if (match := re.search(r" [AB] +[\d.e-]+ +(\d+\.\d) ", line))]
    assert len(numbers) > 1 and sum(numbers) == pytest.approx(100, abs=0.3)


def test_calibrated_sensors_are_listed_apart(tmp_path: Path) -> None:
    first, second = TWO_SOCKETS[:2]
    values = dict.fromkeys(catalog.CALIBRATION_PARAMETERS, 1.0) | {"highest_watts": 500.0}
    known = CalibrationRecord.of_metrics(values, {"reference": "WT310", "date": "2026-11-28T10:00:00Z"})
    world = make_world((dataclasses.replace(first, calibration=known), second), batch_sizes=(1,))
    lines = to_text.render_table(result_of(world), width=200).splitlines()
    rapl = f"rapl on {EXPORTER}, energy counter"
    assert f"  device: socket0/package: {rapl} (calibrated 2026-11-28T10:00:00Z with WT310, accuracy unknown)" in lines
    assert f"  device: socket1/package: {rapl}" in lines


def test_estimates_are_marked_in_every_format(estimated: RunResult, tmp_path: Path) -> None:
    text = to_text.render_table(estimated, width=80, budget=True)
    assert text.count("!!! Energies ESTIMATED from a power model, not measured !!!") == 2
    assert "accuracy (estimate)" in text and "EPYC table" in text
    document = to_json.result_document(estimated)
    assert document["estimated"] is True and document["emulated"] is False
    rows = list(csv.DictReader(io.StringIO(to_csv.render_csv(estimated))))
    assert {row["total_method"] for row in rows} == {"estimated"}
    write_figure(estimated, tmp_path / "figure.svg")
    assert "ESTIMATED from a power model" in (tmp_path / "figure.svg").read_text()
    assert numbers.warning_line(["counter", "estimated"]).startswith("!!! Some energies ESTIMATED")
    assert numbers.warning_line(["emulated"]) == "!!! Energies from an EMULATED machine, not from hardware !!!"
    assert numbers.warning_line(["counter", "integrated"]) == ""


def test_the_json_matches_its_schema(measured: RunResult, estimated: RunResult) -> None:
    schema = to_json.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == to_json.SCHEMA_VERSION
    for result in (measured, estimated, result_of(make_world([], batch_sizes=(1,)))):
        document = json.loads(to_json.render_json(result))
        jsonschema.validate(document, schema)
    group = json.loads(to_json.render_json(measured))["results"][0]
    total = group["energy"]["total"]
    assert total["gross"]["unit"] == "J" and total["gross"]["budget"] and total["methods"] == ["counter"]
    assert total["gross"]["value"] > total["net"]["value"] > 0


def test_the_csv_is_in_base_units(measured: RunResult) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv.render_csv(measured))))
    assert len(rows) == len(measured.groups)
    total = measured.groups[0].total.gross
    assert total is not None
    assert float(rows[0]["total_gross_joules_per_inference"]) == pytest.approx(total.value, rel=1e-8)
    assert float(rows[0]["latency_p99_seconds"]) > float(rows[0]["latency_p50_seconds"])


def test_the_table_shows_the_configuration_as_loaded(measured: RunResult) -> None:
    """Version, provider, precision, threads and the state of tuning affect the meaning of the numbers."""
    (first, *_) = measured.groups
    details = {"threads": "2", "tuning": "UNTUNED", "model_file": "not shown here"}
    loaded = dataclasses.replace(
        first.configuration, runtime_version="9.8", device="cpu", actual_precision="bf16", details=details
    )
    groups = tuple(dataclasses.replace(group, configuration=loaded) for group in measured.groups)
    text = " ".join(to_text.render_table(dataclasses.replace(measured, groups=groups), width=400).split())
    assert f"{loaded.name}: {loaded.runtime} 9.8, " in text
    assert "cpu, bf16, threads: 2, tuning: UNTUNED" in text
    assert "not shown here" not in text


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({}, "Rounds: neither the target of the plan nor why they ended is stored; the run's journal has it."),
        (
            {"max_relative_uncertainty": 0.05},
            "Rounds (until ±5 % of the total: repeats only, t at 97 %): why they ended is not stored; the run's "
            "journal has it.",
        ),
        ({"rounds": 3}, "Rounds: net/onnxruntime/fp32: batch 1: 3 rounds fixed"),
    ],
)
def test_the_table_states_that_the_end_of_the_rounds_is_not_stored(plan: dict[str, float], text: str) -> None:
    """The annotations in Prometheus have the target, if there is one, and no notes."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    record = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, plan=plan))
    table = to_text.render_table(analyze_run(record, ListSource(world.scrapes())))
    assert text in " ".join(table.split())


def test_the_table_states_why_the_rounds_of_each_cell_ended() -> None:
    world = make_world(TWO_SOCKETS)
    assert world.record is not None
    texts = {
        1: "±4.1 % after 8 rounds",
        8: "±4.1 % after 8 rounds",
        64: "target not reached after 90 s: 6 rounds, ±9 %",
    }
    record = dataclasses.replace(
        world.record,
        header=dataclasses.replace(world.record.header, plan={"max_relative_uncertainty": 0.05}),
        notes=tuple(
            Note(at_s=1.0, reason="rounds_ended", text=text, configuration="net/onnxruntime/fp32", batch_size=size)
            for size, text in texts.items()
        ),
    )
    result = analyze_run(record, ListSource(world.scrapes()))
    text = to_text.render_table(result, width=120)
    assert (
        "Rounds (until ±5 % of the total: repeats only, t at 97 %):\n"
        "  net/onnxruntime/fp32: batch 1, 8: ±4.1 % after 8 rounds; batch 64: target not reached after 90 s: 6 rounds, "
        "±9 %\n"
    ) in text
    document = json.loads(to_json.render_json(result))
    jsonschema.validate(document, to_json.schema())
    assert [group["rounds_ended"] for group in document["results"]] == [*texts.values(), "", "", ""]


def test_a_fixed_number_of_rounds_is_stated(measured: RunResult) -> None:
    header = dataclasses.replace(measured.record.header, plan={"rounds": 3})
    record = dataclasses.replace(measured.record, header=header)
    text = to_text.render_table(analyze_run(record, None))
    assert "Rounds:\n  net/onnxruntime/fp32: batch 1, 8, 64: 3 rounds fixed\n" in text


def test_a_fixed_number_of_rounds_that_was_not_reached_is_stated(measured: RunResult) -> None:
    """A run that was stopped, or a configuration that failed, has fewer rounds than the plan."""
    header = dataclasses.replace(measured.record.header, plan={"rounds": 5})
    record = dataclasses.replace(measured.record, header=header)
    text = to_text.render_table(analyze_run(record, None))
    assert "batch 1, 8, 64: ended early: 3 of 5 rounds\n" in text


def test_a_missing_energy_is_a_word_and_never_zero(measured: RunResult) -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), edges=False)
    assert world.record is not None
    result = analyze_run(world.record, None)
    text = to_text.render_table(result)
    assert "missing" in text and "no_samples" in text
    rows = list(csv.DictReader(io.StringIO(to_csv.render_csv(result))))
    assert rows[0]["total_gross_joules_per_inference"] == ""
    jsonschema.validate(json.loads(to_json.render_json(result)), to_json.schema())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_suffix_selects_the_format_of_the_figure(measured: RunResult, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure{suffix}"
    figure.write_figure(measured, path, net=True)
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_net_energies_that_cannot_be_drawn_are_noted_and_have_no_legend(measured: RunResult, tmp_path: Path) -> None:
    def without_net(result: RunResult, count: int) -> RunResult:
        groups = [
            dataclasses.replace(group, total=dataclasses.replace(group.total, net=None)) if number < count else group
            for number, group in enumerate(result.groups)
        ]
        return dataclasses.replace(result, groups=tuple(groups))

    count = len(measured.groups)
    for missing in (0, 1, count):
        result = without_net(measured, missing)
        write_figure(result, tmp_path / "net.svg", net=True)
        _, texts = heights(tmp_path / "net.svg")
        assert ("net of idle power" in texts) == (missing < count)
        note = f"Net energy is missing or not positive, so not drawn: {missing} of {count} points"
        assert (note in _foot_lines(result, 0, net=True)) == (missing > 0)
        assert not any("Net" in line for line in _foot_lines(result, 0))


@pytest.mark.parametrize(("low", "high"), [(6.3, 13.9), (1.02, 1.9), (5.1, 6.3), (2.1, 9.9), (5.1, 19), (1.1, 99)])
def test_the_axis_of_energies_has_at_least_two_labels(low: float, high: float) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    set_ticks(axes)
    assert sum(low <= value <= high for value in axes.yaxis.get_majorticklocs()) >= 2


def test_a_figure_without_energies_and_with_bad_names(tmp_path: Path) -> None:
    nothing = result_of(make_world([], batch_sizes=(1,)))
    write_figure(nothing, tmp_path / "nothing.svg")
    assert "no energy" in (tmp_path / "nothing.svg").read_text()
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        write_figure(nothing, tmp_path / "figure.jpg")
    with pytest.raises(ConfigError, match="does not exist"):
        write_figure(nothing, tmp_path / "none" / "figure.png")


def test_results_are_published_with_method_and_basis(measured: RunResult) -> None:
    samples = result_samples(measured, 1000.0)
    energies = [item for item in samples if item.name == "joulewatch_result_energy_per_inference_joules"]
    labels = [dict(item.labels) for item in energies]
    assert {item["component"] for item in labels} == {"cpu", "memory", "total", "node"}
    assert {item["basis"] for item in labels} == {"gross", "net"}
    assert {item["method"] for item in labels} == {"counter"}
    assert {item["batch_size"] for item in labels} == {"1", "8", "64"}
    assert {item.at_ms for item in samples} == {1_000_000}


def test_results_of_an_old_run_are_published_at_its_end(measured: RunResult) -> None:
    end = measured.record.end
    assert end is not None
    assert published_at_s(measured, end.ended_at_s + 60) == end.ended_at_s + 60
    assert published_at_s(measured, end.ended_at_s + 7200) == end.ended_at_s
    killed = dataclasses.replace(measured, record=dataclasses.replace(measured.record, end=None))
    assert published_at_s(killed, end.ended_at_s + 7200) == measured.record.windows[-1].end_s
    assert callable(publish)


# Setups and phases


def many(count: int) -> tuple[str, ...]:
    return tuple(f"net/runtime{number // 3}/precision{number % 3}" for number in range(count))


def with_phases(world: World, name: str, *, execute: float) -> World:
    """Add phases to one configuration: the driver uses the time outside the execution."""
    assert world.record is not None
    around = 1 - execute
    windows = tuple(
        dataclasses.replace(
            one,
            phases={
                "pack": PhaseTime(one.batches, 0.7 * around * one.duration_s),
                "copy_in": PhaseTime(one.batches, 0.3 * around * one.duration_s),
                "execute": PhaseTime(one.batches, execute * one.duration_s),
                "other": PhaseTime(one.batches, 0.0),
            },
        )
        if one.configuration == name and one.kind == "measure"
        else one
        for one in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    return world


def test_setups_have_their_own_line() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1, 64))
    assert world.record is not None
    windows = list(world.record.windows)
    fp32, int8 = (item.name for item in world.record.configurations)
    # The idle windows with a network loaded become the windows of loading and tuning: 96 W for 3 s.
    for phase, batch_size in (("load", 0), ("prepare", 64)):
        at = next(i for i, one in enumerate(windows) if "loaded" in one.flags)
        windows[at] = dataclasses.replace(
            windows[at], kind="setup", phase=phase, batch_size=batch_size, configuration=int8, flags=()
        )
    short = (
        Setup(configuration=fp32, phase="load", duration_s=0.4),
        Setup(configuration=int8, phase="prepare", duration_s=0.2, batch_size=1, details={"tuning": "UNTUNED"}),
    )
    world.record = dataclasses.replace(world.record, windows=tuple(windows), setups=short)
    result = result_of(world)
    lines = to_text.render_table(result, width=140).splitlines()
    (line,) = [line for line in lines if line.startswith("Setup")]
    number = r"\d+(\.\d+)? ± \d+(\.\d+)?† J"
    assert re.fullmatch(
        rf"Setup, excluded from the results above: {int8} load 3 s, {number}; batch 64 prepare 3 s, {number}", line
    )
    assert "    batch 1: tuning: UNTUNED" in lines
    document = json.loads(to_json.render_json(result))
    jsonschema.validate(document, to_json.schema())
    assert list(document["setup"]) == [fp32, int8]
    assert document["setup"][fp32] == [
        {"phase": "load", "batch_size": 0, "duration_s": 0.4, "window": None, "details": {}, "energy": None}
    ]
    load, first, tuned = document["setup"][int8]
    assert (load["phase"], first["window"], tuned["batch_size"]) == ("load", None, 64)
    gross = tuned["energy"]["total"]["gross"]
    assert gross["unit"] == "J" and gross["expanded_uncertainty"] > 0
    assert gross["value"] == pytest.approx(3 * 96, rel=0.02)
    assert [one["name"] for one in tuned["energy"]["components"]] == ["cpu", "memory"]


def test_short_setups_are_not_shown(measured: RunResult) -> None:
    short = dataclasses.replace(
        measured,
        setups=(SetupResult(configuration="net/onnxruntime/fp32", phase="load", batch_size=0, duration_s=0.3),),
    )
    for result in (measured, short):
        assert "Setup" not in to_text.render_table(result)
    jsonschema.validate(json.loads(to_json.render_json(short)), to_json.schema())


def test_the_time_outside_the_execution_is_shown(tmp_path: Path) -> None:
    world = with_phases(make_world(TWO_SOCKETS, batch_sizes=(1, 8)), "net/onnxruntime/int8", execute=0.03)
    result = result_of(world)
    lines = to_text.render_table(result, width=100).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Share of the time per phase, %"))
    assert lines[at + 1] == "net/onnxruntime/int8"
    assert lines[at + 2].split() == ["batch", "pack", "copy_in", "execute", "other", "outside", "execute"]
    assert lines[at + 3].split() == ["1", "67.9", "29.1", "3.0", "0.0", "97.0"]
    document = json.loads(to_json.render_json(result))
    jsonschema.validate(document, to_json.schema())
    actual = {item["name"]: item["share"]["value"] for item in document["results"][-1]["phases"]}
    assert actual == pytest.approx({"pack": 0.679, "copy_in": 0.291, "execute": 0.03, "other": 0.0})
    assert document["results"][0]["phases"] == []
    rows = list(csv.DictReader(io.StringIO(to_csv.render_csv(result))))
    assert float(rows[-1]["phase_pack_share_of_time"]) == pytest.approx(0.679)
    assert rows[0]["phase_pack_share_of_time"] == ""
    write_figure(result, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("pack", "copy_in", "execute", "Time [%]"))


def test_execution_alone_needs_no_table_of_phases(tmp_path: Path) -> None:
    world = with_phases(make_world(TWO_SOCKETS, batch_sizes=(1,)), "net/onnxruntime/int8", execute=1.0)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(
            one, phases={name: spent for name, spent in one.phases.items() if name in ("execute", "other")}
        )
        for one in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    result = result_of(world)
    assert [item.name for item in result.groups[-1].phases] == ["execute", "other"]
    assert "Share of the time per phase" not in to_text.render_table(result)
    write_figure(result, tmp_path / "figure.svg")
    assert "Time [%]" not in (tmp_path / "figure.svg").read_text()


def test_waiting_for_queries_is_not_time_outside_the_execution() -> None:
    shares = {"copy_in": 0.1, "execute": 0.2, "idle": 0.65, "other": 0.05}
    assert outside_execution(shares) == pytest.approx(0.15)
    assert outside_execution({"prefill": 0.5, "decode": 0.5}) is None


def heights(path: Path) -> tuple[float, list[str]]:
    """Return the heights of the points of an SVG, from top to bottom, and its texts."""
    text = path.read_text()
    result = re.search(r'height="([\d.]+)pt"', text)
    assert result is not None
    return float(result[1]), re.findall(r">([^<>]+)</text>", text)


def test_many_configurations_have_all_their_lines_and_a_legend_below(tmp_path: Path) -> None:
    tall = {}
    for count in (3, 8, 12):
        world = make_world(TWO_SOCKETS[:1], configurations=many(count), batch_sizes=(1, 8), rounds=2, loaded_idle=False)
        write_figure(result_of(world), tmp_path / f"{count}.svg", net=True)
        tall[count], texts = heights(tmp_path / f"{count}.svg")
        assert [texts.count(name) for name in many(count)] == [1] * count
    assert tall[3] < tall[8] < tall[12]
    drawn = (tmp_path / "12.svg").read_text()
    # The second eight lines have the colours of the first, with another line style.
    assert len(set(re.findall(r"stroke-dasharray: ([\d., ]+)", drawn))) >= 2


LONG = "a-long-name_of-a-model-in-many-parts-quantized-int8-dynamic-exported-2026-11-28-final-version"


def panels(result: RunResult) -> tuple[list[float], list[float]]:
    """Return widths and heights of the panels of a figure, in inches; no text may end outside of the figure."""
    drawn = figure.make_figure(result, net=True)
    drawn.draw_without_rendering()
    whole = drawn.bbox
    for text in (*drawn.legends, *(text for axes in drawn.axes for text in axes.texts)):
        box = text.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, text
    boxes = [axes.get_position() for axes in drawn.axes]
    wide, tall = drawn.get_size_inches()
    return [box.width * wide for box in boxes], [box.height * tall for box in boxes]


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_long_names_do_not_push_the_panels_aside(phases: bool, count: int) -> None:
    drawn = []
    for network in ("net", LONG):
        names = tuple(f"{network}/onnxruntime/fp{number}" for number in range(count))
        world = make_world(TWO_SOCKETS[:1], configurations=names, batch_sizes=(1, 8), rounds=2, loaded_idle=False)
        for name in names if phases else ():
            with_phases(world, name, execute=0.5)
        drawn.append(panels(result_of(world)))
    (short_widths, short_heights), (widths, heights) = drawn
    assert widths == pytest.approx(short_widths, rel=0.02)
    assert heights == pytest.approx(short_heights, rel=0.1)
    assert widths[0] > 5.0


def test_the_title_of_many_networks_names_the_first(measured: RunResult) -> None:
    groups = tuple(
        dataclasses.replace(group, configuration=dataclasses.replace(group.configuration, network=f"net{number}"))
        for number, group in enumerate(measured.groups[:5])
    )
    title, _ = figure._titles(dataclasses.replace(measured, groups=groups))
    assert title == "net0, net1 and 3 more on 2x AMD EPYC 7763"


def test_the_figure_refers_to_the_table_for_further_phases(tmp_path: Path) -> None:
    world = make_world(TWO_SOCKETS[:1], configurations=many(7), batch_sizes=(1, 8), rounds=2, loaded_idle=False)
    for name in many(7):
        with_phases(world, name, execute=0.5)
    result = result_of(world)
    write_figure(result, tmp_path / "figure.svg")
    _, texts = heights(tmp_path / "figure.svg")
    assert texts.count("Time [%]") == 6
    assert "The table shows the phases of 1 more configuration" in texts
    assert to_text.render_table(result).count("outside execute") == 7


def test_an_experimental_runtime_is_marked_in_the_table_and_the_json(measured: RunResult) -> None:
    warning = "TensorRT support has not been run on a GPU"
    groups = tuple(
        dataclasses.replace(
            group,
            configuration=dataclasses.replace(group.configuration, details={"experimental": warning}),
        )
        for group in measured.groups
    )
    result = dataclasses.replace(measured, groups=groups)
    assert f"EXPERIMENTAL: {warning}" in " ".join(to_text.render_table(result).split())
    assert warning in to_json.render_json(result)
    assert "EXPERIMENTAL" not in to_text.render_table(measured)


def single_round(scopes: Sequence[SensorRecord] = TWO_SOCKETS) -> RunResult:
    """Return a run of three rounds of which one is usable at batch size 1."""
    world = make_world(scopes, rounds=3, batch_sizes=(1, 64), noise=0.02)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(window, flags=("interrupted",))
        if (window.kind, window.batch_size) == ("measure", 1) and window.repeat > 0
        else window
        for window in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    return result_of(world)


def test_a_single_usable_round_is_printed_without_uncertainty() -> None:
    result = single_round()
    fp32, int8 = (item.name for item in result.record.configurations)
    text = to_text.render_table(result, width=80)
    rows = [line.split() for line in text.splitlines() if line.split()[:2] in (["1", "1/3"], ["64", "3"])]
    assert len(rows) == 4
    assert ["±" in row for row in rows] == [False, True, False, True]
    for name in (fp32, int8):
        line = f"{name}, batch 1: 1 of 3 rounds: repeatability unknown; ± is omitted."
        assert line in " ".join(text.split())
    document = json.loads(to_json.render_json(result))
    jsonschema.validate(document, to_json.schema())
    single, whole = document["results"][0], document["results"][1]
    assert (single["rounds"], single["measured_rounds"]) == (1, 3)
    assert single["energy"]["total"]["gross"]["expanded_uncertainty"] is None
    assert single["energy"]["total"]["gross"]["coverage_factor"] is None
    assert whole["energy"]["total"]["gross"]["coverage_factor"] > 1.9
    budget = to_text.render_table(result, width=200, budget=True).splitlines()
    headings = [line for line in budget if ", gross: " in line]
    assert [("(k = " in line, "batch 64" in line) for line in headings] == [(False, False), (True, True)] * 2
    assert whole["energy"]["total"]["gross"]["covers"] == ["sampling", "repeats"]
    line = next(csv.DictReader(io.StringIO(to_csv.render_csv(result))))
    assert line["total_gross_uncertainty_joules_per_inference"] == ""
    assert line["total_uncertainty_covers"] == "sampling"
    assert "Energies without an error bar: a single usable round, repeatability unknown" in _foot_lines(result, 0)


def test_an_uncertainty_without_the_accuracy_of_the_sensor_is_marked(measured: RunResult, estimated: RunResult) -> None:
    text = " ".join(to_text.render_table(measured, width=80).split())
    assert re.search(r"± \d+(\.\d+)?†", text)
    assert text.count("†: sampling and repeats only: the sensor's accuracy is unknown.") == 1
    assert "Error bars show sampling and repeats only: the sensor's accuracy is unknown" in _foot_lines(measured, 0)
    # The power model publishes its accuracy.
    assert "†" not in to_text.render_table(estimated)
    assert _foot_lines(estimated, 0) == ["Sum over device sensors; error bars: expanded uncertainty, 95 % coverage"]


def test_made_up_inputs_are_shown(measured: RunResult) -> None:
    name = measured.groups[0].configuration.name
    finding = Finding(severity="warning", reason="made_up_inputs", text="", evidence={"configuration": name})
    result = dataclasses.replace(measured, findings=(finding,))
    assert f"Inputs are made up, and may change the work: {name}" in _foot_lines(result, 0)
    assert not any("made up" in line for line in _foot_lines(measured, 0))


def test_the_figure_names_the_errors_of_the_audit(measured: RunResult) -> None:
    finding = Finding(severity="error", reason="frozen", text="")
    warning = Finding(severity="warning", reason="idle_drift", text="")
    result = dataclasses.replace(measured, findings=(warning, finding, finding))
    assert _foot_lines(result, 2)[-2:] == [
        "Audit errors: frozen",
        "The table shows the phases of 2 more configurations",
    ]
