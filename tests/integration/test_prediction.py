"""Profile three built-in networks, fit, predict two others, then measure them: the energies are in the intervals.

The counter is advanced by known coefficients, not by time, so that a model of the latency alone would not pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.commands.compare import read
from joulewatch_harness.prediction.converters import rows_of_run
from joulewatch_harness.prediction.table import Row
from support.metered_profile import joules_per_batch
from support.paths import ROOT
from support.sysfs import EPYC, FakeSysfs

if TYPE_CHECKING:
    from integration.conftest import StartPrometheus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CHILD = ROOT / "tests" / "support" / "metered_profile.py"
MEASURED = ("radioml-vgg10", "mlp", "mobilenet-like")
BATCH_SIZES = (1, 8)
WIDEST = 2.2
COUNTER_ERROR = 0.05
"""Of the energies measured with the counter: the power at rest, and batches of the warm-up at an edge, of which a
window has only some tens on a busy machine."""


def own_model(path: Path) -> Path:
    """Write a small convolutional network for images of 32 × 32 pixels."""
    onnx = pytest.importorskip("onnx")
    helper, random = onnx.helper, np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "x", 3
    for number, (wide, stride) in enumerate(((32, 1), (64, 2), (128, 2), (128, 1))):
        kernel = random.normal(0, 0.1, (wide, channels, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"w{number}"))
        nodes += [
            helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1] * 4, strides=[stride] * 2),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        last, channels = f"r{number}", wide
    weights.append(onnx.numpy_helper.from_array(random.normal(0, 0.1, (channels, 10)).astype(np.float32), "dense"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 32, 32])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 10])]
    graph = helper.make_graph(nodes, "own", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def profile(folder: Path, name: str, configurations: list[dict[str, object]]) -> list[Row]:
    """Measure configurations with ``joulewatch profile``; return a row for each batch size."""
    plan = {
        "rounds": 3, "window_s": 0.5, "idle_s": 1, "settle_s": 0.1, "warmup_s": 0.2, "max_warmup_s": 0.5,
        "phases": "off", "isolate": False, "batch_sizes": list(BATCH_SIZES), "output": str(folder / name),
        "exporter_flags": [f"--path.sysfs={folder / 'sys'}", f"--path.procfs={folder / 'proc'}"],
        "configurations": [{"runtime": "onnxruntime", "precision": "fp32", **entry} for entry in configurations],
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    counter = folder / "sys" / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    done = subprocess.run(
        [sys.executable, str(CHILD), str(counter), "profile", str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / name).iterdir()
    return rows_of_run(read(str(run), folder, None))


def test_networks_that_were_not_measured_are_in_their_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    machine = FakeSysfs(tmp_path).cpuinfo(**EPYC).rapl_zone("0", name="package-0", energy_uj=0, range_uj=10**15)
    machine.write("", **{"joulewatch-emulated": ""})
    own = own_model(tmp_path / "own.onnx")
    known = profile(tmp_path, "known", [{"network": network} for network in MEASURED])
    assert {row.method for row in known} == {"emulated"}

    model = tmp_path / "model.json"
    (run,) = (tmp_path / "known").iterdir()
    assert main(["fit", str(run), "--out", str(model)]) == 0
    predicted = {}
    for words in (["resnet-like", "--option", "width=32"], [str(own)]):
        capsys.readouterr()
        assert main(["predict", *words, "--fit", str(model), "--device", known[0].device, "--format", "json"]) == 0
        for found in json.loads(capsys.readouterr().out)["predictions"]:
            assert found["method"] == "predicted"
            predicted[found["network"], found["batch_size"]] = found["joules_per_inference"]

    measured = profile(
        tmp_path, "others", [{"network": "resnet-like", "options": {"width": "32"}}, {"network": str(own)}]
    )
    assert {(row.network, row.batch_size) for row in measured} == set(predicted)
    for row in measured:
        interval = predicted[row.network, row.batch_size]
        assert row.features is not None
        true = joules_per_batch(row.features, row.batch_size) / row.batch_size
        text = (
            f"{row.network}, batch {row.batch_size}: measured {row.joules:.4g} J, true {true:.4g}, predicted {interval}"
        )
        assert row.joules == pytest.approx(true, rel=COUNTER_ERROR), text
        assert interval["low"] <= row.joules <= interval["high"], text
        assert interval["high"] / interval["low"] <= WIDEST, text


def test_published_predictions_are_in_a_real_prometheus(
    prometheus_server: StartPrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ROOT / "tests" / "benchmarks" / "data" / "prediction" / "finn_rfsoc2x2_measured.csv"
    url = prometheus_server().url
    assert main(["predict", str(table), "--device", "rfsoc2x2", "--prometheus", url, "--publish"]) == 0
    assert "published 48 samples" in capsys.readouterr().err
    with PrometheusClient(PrometheusOptions(url=url)) as client:
        series = client.query("joulewatch_prediction_energy_per_inference_joules")
        assert client.query("joulewatch_result_energy_per_inference_joules") == []
    assert len(series) == 24
    assert {one["metric"]["method"] for one in series} == {"predicted"}
    assert {one["metric"]["quantile"] for one in series} == {"0.05", "0.5", "0.95"}
