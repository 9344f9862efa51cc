"""Tables of measured energies, and converters: every error names the file and the rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.analysis.results.stored_results import read_document
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks.macs import MAC_OPS
from joulewatch_harness.prediction.converters import device_of, network_of, read_networks, read_table, rows_of_run
from joulewatch_harness.prediction.features import MAIN_OPERATORS, canonical, family_of
from joulewatch_harness.prediction.table import COLUMNS, check_rows
from support.paths import ROOT

DATA = ROOT / "tests" / "benchmarks" / "data" / "prediction"
ROW = {
    "network": "net-1", "family": "net", "device": "board", "platform": "", "runtime": "ort", "precision": "fp32",
    "batch_size": "1", "scope": "wall", "joules_per_inference": "0.1", "seconds_per_inference": "0.02",
    "macs_dense": "1e6", "macs_depthwise": "0", "weight_elements": "1000", "activation_elements": "5000", "layers": "4",
    "input_pixels": "64", "operators": "Conv Gemm",
}  # fmt: skip


def table(folder: Path, *changes: dict[str, str], without: tuple[str, ...] = ()) -> Path:
    """Write a table whose rows differ from ``ROW``."""
    path = folder / "table.csv"
    columns = [name for name in (*COLUMNS, *(key for change in changes for key in change)) if name not in without]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(columns)), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows({**ROW, **change} for change in changes)
    return path


def test_a_row_is_read_with_all_its_columns(tmp_path: Path) -> None:
    (row,) = read_table(table(tmp_path, {"idle_watts": "2.5"}))
    assert row.idle_watts == 2.5
    assert (row.key, row.network, row.family) == (("wall", "board", "ort", "fp32"), "net-1", "net")
    assert (row.joules, row.seconds, row.batch_size) == (0.1, 0.02, 1)
    assert row.features is not None
    assert row.features.vector() == (1e6, 0, 1000, 5000, 4, 64)
    assert row.features.operators == {"Conv", "MatMul"}


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    without = ("family", "platform", "batch_size", "seconds_per_inference", "operators")
    (row,) = read_table(table(tmp_path, {"network": "mobilenet-v2-0.5-96"}, without=without))
    assert (row.family, row.batch_size, row.seconds) == ("mobilenet-v2", 1, None)


def test_integers_are_read_as_other_programs_write_them(tmp_path: Path) -> None:
    """A column with empty cells becomes one of floating-point numbers."""
    cells = {"batch_size": "8.0", "macs_depthwise": "0.000", "weight_elements": "0e+00", "layers": "4.0"}
    (row,) = read_table(table(tmp_path, cells))
    assert row.features is not None
    assert (row.batch_size, row.features.vector()) == (8, (1e6, 0, 0, 5000, 4, 64))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"joules_per_inference": ""}, "table.csv row 3: joules_per_inference is empty"),
        ({"joules_per_inference": "34.7 mJ"}, "row 3: joules_per_inference must be a positive number without a unit"),
        ({"joules_per_inference": "-1"}, "row 3: joules_per_inference must be a positive number"),
        ({"joules_per_inference": "nan"}, "row 3: joules_per_inference must be a positive number"),
        ({"seconds_per_inference": "0"}, "row 3: seconds_per_inference must be a positive number"),
        ({"batch_size": "1.5"}, "row 3: batch_size must be an integer from 1 to 1000000000, got '1.5'"),
        ({"batch_size": "9" * 30}, "row 3: batch_size must be an integer from 1 to 1000000000, got '9"),
        ({"batch_size": "\u0663"}, "row 3: batch_size must be an integer"),
        ({"joules_per_inference": "1_000"}, "row 3: joules_per_inference must be a positive number"),
        ({"joules_per_inference": "\uff11"}, "row 3: joules_per_inference must be a positive number"),
        ({"macs_dense": "1e300"}, "row 3: macs_dense must be a positive number"),
        ({"scope": ""}, "row 3: scope is empty"),
        ({"scope": "wal"}, "row 3: unknown scope 'wal'; did you mean wall?"),
        ({"layers": ""}, "row 3: layers is empty"),
        ({"energy_unit": "mJ"}, "energy_unit: energies belong in joules_per_inference (J)"),
    ],
)
def test_a_bad_cell_is_an_error_that_names_it(tmp_path: Path, change: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_table(table(tmp_path, {}, {"network": "net-2", **change}))
    assert text in str(caught.value)


def test_other_quantities_are_an_error_only_if_they_may_be_the_energy_or_the_time(tmp_path: Path) -> None:
    others = {"latency_ms": "3", "energy_mj": "5", "power_mode": "15 W"}
    (row,) = read_table(table(tmp_path, others))
    assert (row.joules, row.seconds) == (0.1, 0.02)
    (network,) = read_networks(table(tmp_path, others, without=("joules_per_inference",)))
    assert network.seconds == 0.02
    with pytest.raises(ConfigError, match=r"latency_ms: energies belong in .*, times in seconds_per_inference"):
        read_table(table(tmp_path, {"latency_ms": "3"}, without=("seconds_per_inference",)))


def test_a_table_in_millijoules_is_an_error_with_the_fix(tmp_path: Path) -> None:
    path = table(tmp_path, {"energy_mj": "100"}, without=("joules_per_inference",))
    with pytest.raises(ConfigError, match="missing columns: joules_per_inference; energy_mj: convert to joules"):
        read_table(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "row 2, .*row 3: the same network, device, runtime, precision, batch size and scope"),
        ({"network": "net-2", "scope": "rails"}, "board, ort, fp32: mixed scopes .wall: .*row 2; rails: .*row 3"),
        ({"batch_size": "2", "layers": "5"}, "row 3 and .*row 2: layers of network net-1 is 5 and 4"),
    ],
)
def test_rows_that_contradict_each_other_are_named(tmp_path: Path, change: dict[str, str], text: str) -> None:
    rows = read_table(table(tmp_path, {}, change))
    with pytest.raises(ConfigError, match=text):
        check_rows(rows)


def test_mixed_units_are_detected_from_the_mean_power(tmp_path: Path) -> None:
    """The third row is in mJ: 5 kW for a board of 5 W."""
    changes = [{"network": f"net-{number}"} for number in range(4)]
    changes[2]["joules_per_inference"] = "100"
    with pytest.raises(ConfigError, match=r"row 4: mixed units\? Energy / time is more than 100 times"):
        check_rows(read_table(table(tmp_path, *changes)))


def test_resolutions_of_two_and_three_digits_stay_apart() -> None:
    """A pattern for three digits merges ``mobilenet-v2-0.5-96`` with ``mobilenet-v2-0.5-224``."""
    rows = read_table(DATA / "edge_cnn_energy.csv")
    check_rows(rows)
    assert len(rows) == 825
    assert len({row.network for row in rows}) == 38
    assert {family_of(row.network) for row in rows} == {row.family for row in rows} == {"mobilenet-v1", "mobilenet-v2"}
    assert {row.scope for row in rows} == {"wall"}


def test_published_tables_are_converted_to_joules_and_seconds(tmp_path: Path) -> None:
    first = read_table(DATA / "edge_cnn_energy.csv")[0]
    assert (first.joules, first.seconds) == (pytest.approx(0.2865378), pytest.approx(0.0726539))
    board = read_table(DATA / "finn_rfsoc2x2_measured.csv")[0]
    assert (board.scope, board.joules, board.features) == ("rails", pytest.approx(1.066207e-3), None)
    assert board.seconds == pytest.approx(1 / 2929)
    tiny = read_table(DATA / "mlperf_tiny_energy.csv")[0]
    assert (tiny.network, tiny.joules) == ("ad", pytest.approx(324.088e-6))
    closed = tmp_path / "closed.csv"
    closed.write_text(
        "SystemName,Platform,framework,Model,Scenario,performance,perf_units,joules_per_sample\n"
        "Xavier,x,TensorRT,resnet50,MultiStream,8,Latency (ms),0.1\n"
        "Xavier,x,TensorRT,resnet50,Offline,2000,Samples/s,0.05\n"
    )
    assert [row.seconds for row in read_table(closed)] == [pytest.approx(1e-3), pytest.approx(5e-4)]


def test_documented_columns_of_a_published_table_replace_the_converted_ones(tmp_path: Path) -> None:
    path = tmp_path / "edge.csv"
    header = "hardware,framework,energy_mj_per_inference,latency_p90_ms,network,precision"
    path.write_text(f"{header},device,batch_size,scope\nPi,TFLite,5,2,net-1,fp32,pi-4,8,rails\n")
    (row,) = read_table(path)
    assert (row.key, row.batch_size, row.joules) == (("rails", "pi-4", "TFLite", "fp32"), 8, pytest.approx(5e-3))
    path.write_text(f"{header.removesuffix(',precision')}\nPi,TFLite,5,2,net-1\n")
    with pytest.raises(ConfigError, match=r"edge\.csv: missing columns: precision"):
        read_table(path)
    path.write_text("SystemName,joules_per_sample,perf_units\nXavier,0.1,Samples/s\n")
    with pytest.raises(ConfigError, match=r"edge\.csv: missing columns: performance"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "no rows"),
        ("network,device\na\n", "row 2: has not as many cells"),
        (b"\xff\xfe\x00", "is not UTF-8: byte 0xff at 0"),
        ("network;device\na;1,5\n", "cells must be separated by commas"),
        ("network,device,network\na,b,c\n", "columns that are there twice: network"),
        ("network,device\na,b\n\x1b[31m,b\n", "row 3: a cell has characters that cannot be printed"),
        ('network,device\n"a\nb",b\n', "row 2: a cell has characters that cannot be printed"),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error(tmp_path: Path, content: str | bytes, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=text):
        read_table(path)


@pytest.mark.parametrize(("mark", "end"), [("\ufeff", "\n"), ("", "\r\n"), ("", "\r")])
def test_files_of_other_systems_are_read(tmp_path: Path, mark: str, end: str) -> None:
    path = table(tmp_path, {}, {"network": "net-2"})
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace(",", " , ")
    path.write_bytes((mark + end.join([*lines, ""])).encode())
    assert [row.network for row in read_table(path)] == ["net-1", "net-2"]


def test_rows_and_columns_of_spreadsheets_that_are_empty_are_ignored(tmp_path: Path) -> None:
    """Spreadsheets number empty rows too; an index of several levels has several columns without a name."""
    path = table(tmp_path, {}, {"network": "net-2"}, {"network": "net-3", "layers": "-1"})
    header, first, second, bad = (f",,{line}," for line in path.read_text().splitlines())
    empty = "," * header.count(",")
    path.write_text("\n".join(["", header, first.replace(",,", "0,a,", 1), "", empty, second, empty, ""]))
    assert [(row.network, row.where) for row in read_table(path)] == [
        ("net-1", f"{path} row 3"), ("net-2", f"{path} row 6"),
    ]  # fmt: skip
    path.write_text("\n".join([header, first, "", empty, bad]))
    with pytest.raises(ConfigError, match="row 5: layers must be"):
        read_networks(path)


def test_rows_of_a_published_table_are_networks() -> None:
    """Rows that were excluded from the fit are predicted as they are."""
    first = read_networks(DATA / "edge_cnn_energy.csv")[0]
    assert (first.name, first.family, first.seconds) == (
        "mobilenet-v2-1.3-224", "mobilenet-v2", pytest.approx(0.0726539),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="missing columns: macs_dense"):
        read_networks(DATA / "mlperf_tiny_energy.csv")


def test_the_family_of_a_network_is_that_of_its_row_or_empty(tmp_path: Path) -> None:
    networks = read_networks(table(tmp_path, {}, {"network": "net-2", "family": ""}))
    assert [one.family for one in networks] == ["net", ""]


def test_variants_of_an_operator_have_one_name() -> None:
    assert canonical({"NhwcFusedConv", "QLinearConv", "ConvInteger"}) == {"Conv"}
    assert canonical(MAC_OPS) == MAIN_OPERATORS


def test_a_table_of_networks_with_a_header_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"table\.csv: no rows"):
        read_networks(table(tmp_path))


def test_networks_are_read_with_their_latency(tmp_path: Path) -> None:
    (one,) = read_networks(table(tmp_path, {}, without=("joules_per_inference",)))
    assert (one.name, one.family, one.features.layers, one.seconds, one.batch_size) == ("net-1", "net", 4, 0.02, 1)


def result(**settings: Any) -> Any:
    """Return the stored result of a run of version 0.1.0, with changed settings."""
    path = ROOT / "tests" / "harness" / "compatibility" / "run-0.1.0" / "result.json"
    document = json.loads(path.read_text())
    for group in document["results"]:
        group["configuration"].update(settings)
    return read_document(document, "result.json")


def test_a_run_gives_a_row_for_each_configuration_and_batch_size() -> None:
    """The run stored no features, so those of the built-in network are counted again."""
    pytest.importorskip("onnx")
    run = result()
    rows = rows_of_run(run)
    assert len(rows) == len(run.document["results"])
    row = rows[0]
    assert (row.network, row.runtime, row.precision, row.scope) == ("radioml-vgg10", "onnxruntime", "fp32", "devices")
    assert row.device == run.hardware
    assert row.method == "estimated"
    assert row.idle_watts == run.document["idle"]["total"]["power_watts"]
    assert row.joules == run.document["results"][0]["energy"]["total"]["gross"]["value"]
    assert row.features is not None
    assert row.features.macs_dense == 12_864_512


def test_stored_features_are_used_for_networks_that_are_not_there() -> None:
    details = {
        "macs_per_inference": "110", "macs_depthwise": "10", "parameters": "7", "activation_elements": "30",
        "layers": "2", "input_pixels": "9", "operator_types": "Conv Relu",
    }  # fmt: skip
    row = rows_of_run(result(network="mine", details=details))[0]
    assert row.features is not None
    assert row.features.vector() == (100, 10, 7, 30, 2, 9)
    with pytest.raises(ConfigError, match="has no features of network mine and its model file is not there"):
        rows_of_run(result(network="mine", details={}))


def test_the_device_of_a_run_is_the_accelerator_that_computed() -> None:
    run = result()
    run.document["run"]["provenance"]["accelerators"] = ["NVIDIA A100 at 0000:01:00.0", "NVIDIA L4 at 0000:02:00.0"]
    assert device_of(run, {"device": "cuda:1"}) == "NVIDIA L4"
    assert device_of(run, {"device": "cpu"}) == run.hardware
    assert (
        network_of({"network": "mobilenet-like", "options": {"size": "128", "threads": "1"}})
        == "mobilenet-like size=128"
    )
    assert network_of({"network": "models/my.onnx"}) == "my"
