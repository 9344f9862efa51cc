"""``joulewatch fit`` and ``joulewatch predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from joulewatch_harness.cli import main
from joulewatch_harness.commands.fit import use_one_thread
from joulewatch_harness.prediction.features import FEATURES
from joulewatch_harness.prediction.table import COLUMNS, Row
from support.paths import ROOT
from support.simulated_devices import device_rows, networks

SHAPES = networks()
RESULT = ROOT / "tests" / "harness" / "compatibility" / "run-0.1.0" / "result.json"


def write(path: Path, rows: list[Row], **changes: str) -> Path:
    """Write rows as a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            assert row.features is not None
            values: Mapping[str, object] = {
                "network": row.network, "family": row.family, "device": row.device, "runtime": row.runtime,
                "precision": row.precision, "batch_size": row.batch_size, "scope": row.scope,
                "joules_per_inference": row.joules, "seconds_per_inference": row.seconds,
                **dict(zip(FEATURES, row.features.vector(), strict=True)),
            }  # fmt: skip
            writer.writerow({**values, **changes})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of three boards."""
    folder = tmp_path_factory.mktemp("fit")
    table = write(folder / "table.csv", [row for seed in range(3) for row in device_rows(seed, SHAPES[::3])])
    assert main(["fit", str(table), "--out", str(folder / "model.json")]) == 0
    return folder / "model.json"


def test_fit_shows_the_errors_next_to_the_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    rows = [row for seed in range(3) for row in device_rows(seed, SHAPES[::3])]
    words = ["fit", str(write(tmp_path / "t.csv", rows)), "--out", str(tmp_path / "model.json")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 models of 3 devices, 81 rows\n")
    assert "a + b × MACs" in text and "P × latency" in text and "too few devices (3; 9 needed)" in text
    assert main([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["errors"][0]["held_out"] == "known device, unseen network"
    assert main([*words, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("held_out,n,devices,median,p90,macs_median,power_latency_median,")
    source = json.loads((tmp_path / "model.json").read_text())["sources"][0]
    assert (source["name"], source["rows"], len(source["sha256"])) == ("t.csv", 81, 64)


def test_a_run_is_a_source_that_is_named_as_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run has one network, so the other devices predict its device; the table is of another scope."""
    pytest.importorskip("onnx")
    rows = [row for seed in range(2) for row in device_rows(seed, SHAPES[::8])]
    table = write(tmp_path / "t.csv", rows, scope="wall")
    model = tmp_path / "model.json"
    assert main(["fit", str(RESULT), str(table), "--out", str(model)]) == 0
    assert "ESTIMATED from a power model" in capsys.readouterr().out
    device = json.loads(RESULT.read_text())["run"]["provenance"]["cpu"]["model"]
    assert main(["predict", "radioml-vgg10", "--fit", str(model), "--device", device, "--precision", "fp32"]) == 1
    assert "a single network was measured; measure a second one" in capsys.readouterr().err


def test_predict_prints_median_interval_and_its_parts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "plain-0.35-96", "--fit", str(model), "--device", "board 1"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("!!! PREDICTED, not measured !!!")
    assert "plain-0.35-96/runtime/fp32 on board 1, wall" in text
    assert "unseen network (conformal, 27 errors)" in text
    assert main([*words, "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    interval = found["joules_per_inference"]
    assert interval["low"] < interval["median"] < interval["high"]
    assert found["method"] == "predicted"


def test_a_table_of_networks_is_predicted_row_by_row(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is out of range is refused by name; the others are predicted, with the latency of their row."""
    table = write(tmp_path / "networks.csv", device_rows(1, SHAPES[1:3]))
    text = table.read_text()
    table.write_text(text + text.splitlines()[1].replace("plain-0.35-128", "huge").replace("16384", "1e9") + "\n")
    assert main(["predict", str(table), "--fit", str(model), "--device", "board 1", "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["network"] for row in rows] == [shape.name for shape in SHAPES[1:3]]
    assert {row["method"] for row in rows} == {"predicted"}
    assert float(rows[0]["inferences_per_second"]) == pytest.approx(1 / (device_rows(1, SHAPES[1:2])[0].seconds or 0))
    assert "huge" in err
    words = ["predict", str(table), "--fit", str(model), "--device", "board 1", "--latency", "0.01"]
    assert main(words) == 2
    assert "--latency is that of one network" in capsys.readouterr().err


def test_the_batch_size_of_a_row_is_predicted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its latency is that of this batch size; ``--batch-sizes`` replaces it."""
    table = write(tmp_path / "networks.csv", device_rows(1, SHAPES[1:3]), batch_size="4", seconds_per_inference="")
    for words, sizes in (((), ["4", "4"]), (("--batch-sizes", "1,2"), ["1", "2", "1", "2"])):
        assert main(["predict", str(table), "--fit", str(model), "--device", "board 1", "--format", "csv", *words]) == 0
        rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert [row["batch_size"] for row in rows] == sizes


def test_a_batch_size_that_is_refused_does_not_hide_the_others(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "plain-0.35-96", "--fit", str(model), "--device", "board 1", "--format", "csv"]
    assert main([*words, "--batch-sizes", "1,2,100000"]) == 1
    out, err = capsys.readouterr()
    assert [row["batch_size"] for row in csv.DictReader(io.StringIO(out))] == ["1", "2"]
    assert err.startswith("joulewatch: batch size 100000 is outside the measured ones")
    assert main([*words, "--batch-sizes", "100000"]) == 1
    assert capsys.readouterr() == ("", err)


def test_names_and_families_are_those_of_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network may be named like a file that is not there; its family need not follow from its name."""
    rows = [replace(row, network=f"{row.network}x.onnx") for row in device_rows(1, SHAPES[::3])]
    table, out = write(tmp_path / "table.csv", rows, family="all"), tmp_path / "model.json"
    assert main(["fit", str(table), "--out", str(out)]) == 0
    networks = write(tmp_path / "networks.csv", rows[5:6], family="")
    predicted = []
    for word in (rows[5].network, str(networks)):
        capsys.readouterr()
        words = ["predict", word, "--fit", str(out), "--device", "board 1", "--batch-sizes", "1", "--format", "json"]
        assert main(words if word == str(networks) else [*words, "--latency", str(rows[5].seconds)]) == 0
        predicted.append(json.loads(capsys.readouterr().out)["predictions"])
    assert predicted[0] == predicted[1]
    assert not predicted[0][0]["notes"]


def test_a_new_device_is_predicted_from_a_table_of_calibration_runs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = device_rows(9, [SHAPES[i] for i in (0, 32, 64)])
    table = write(tmp_path / "runs.csv", rows)
    words = ["predict", "plain-0.35-96", "--fit", str(model), "--device", "board 9", "--calibration", str(table)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "3 calibration networks" in out
    assert "too few known devices (3)" in " ".join(out.split())
    runs = [str(write(tmp_path / f"{row.network}.csv", [row])) for row in rows]
    for separate in (runs, [runs[0], "--calibration", *runs[1:]]):
        assert main([*words[:-1], *separate]) == 0
        assert capsys.readouterr().out == out


def test_an_onnx_file_is_predicted_from_its_features(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small network is outside the range; an operator that has no known cost is a bad input."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    for op, code, text in (
        ("Relu", 1, "outside the fitted range"),
        ("Mystery", 2, "operator custom.Mystery: unknown operator"),
    ):
        node = helper.make_node(op, ["x"], ["y"], domain="" if op == "Relu" else "custom")
        values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 128, 128]) for name in "xy"]
        graph = helper.make_graph([node], "g", values[:1], values[1:])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
        path = tmp_path / f"{op}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        assert main(["predict", str(path), "--fit", str(model), "--device", "board 1"]) == code
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["plain", "--device", "board 1"], 2, "unknown network 'plain'"),
        (["plain-0.35-96", "--device", "bord 1"], 2, "did you mean board 1?"),
        (["plain-0.35-96", "--device", "board 1", "--runtime", "tvm"], 1, "runtime tvm was never measured there"),
        (["plain-0.35-96", "--device", "board 1", "--option", "x=1"], 2, "those of the fit; omit the option"),
        (["plain-0.35-96", "--device", "board 1", "--clock-mhz", "200"], 2, "--clock-mhz is for FINN designs"),
        (["plain-0.35-96", "--device", "board 1", "--batch-sizes", "0"], 2, "--batch-sizes: a batch size must be"),
        (
            ["plain-0.35-96", "--device", "board 1", "--latency", "1", "--batch-sizes", "1,2"],
            2,
            "a measured latency is that of one batch size: choose it",
        ),
        (["plain-0.35-96", "--device", "new", "--plan", "p.yaml", "--latency", "1"], 2, "omit it with --plan"),
        (["mlp", "--device", "board 1", "--option", "dept=3"], 2, "did you mean depth?"),
        (["none.onnx", "--device", "board 1"], 2, "none.onnx: No such file"),
        (["none.onnx", "--device", "board 1", "--option", "dims"], 2, "must be KEY=VALUE"),
        (["none.csv", "--device", "board 1"], 2, "none.csv: cannot be read as CSV: No such file"),
        (["plain-0.35-96", "--device", "new", "--calibration", "none.csv"], 2, "none.csv: cannot be read as CSV"),
    ],
)
def test_bad_input_is_one_clear_line(
    model: Path, words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    assert main(["predict", *words, "--fit", str(model)]) == code
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


def test_an_output_that_cannot_be_written_is_an_error_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(tmp_path / "missing.csv")
    assert main(["fit", table, "--out", str(tmp_path / "no" / "model.json")]) == 2
    assert "model.json: the directory " in capsys.readouterr().err
    assert main(["fit", table, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"--out {tmp_path}: cannot be written: Is a directory\n")


def test_linear_algebra_has_one_thread_only_if_numpy_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    use_one_thread()
    assert environment == {}
    monkeypatch.delitem(sys.modules, "numpy")
    use_one_thread()
    assert environment == {"OPENBLAS_NUM_THREADS": "1"}
