"""Plans that calibrate a new device."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.cli import main
from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.plan.parsing import make_plan, read_plan
from joulewatch_harness.prediction.calibration_plan import CANDIDATES, NETWORKS, plan_calibration
from joulewatch_harness.prediction.features import features_of_builtin
from joulewatch_harness.prediction.fit import Fit, fit_all
from joulewatch_harness.prediction.model_file import document_of
from joulewatch_harness.prediction.predict import Request, predict
from joulewatch_harness.prediction.table import Row
from support.simulated_devices import Shape, device_rows

pytest.importorskip("onnx")


def shape(network: str, **options: str) -> Shape:
    name = " ".join([network, *(f"{key}={value}" for key, value in options.items())])
    return Shape(name, network, features_of_builtin(network, options))


@pytest.fixture(scope="module")
def shapes() -> list[Shape]:
    return [shape(network, **options) for network, options in CANDIDATES]


def rows_of(seed: int, shapes: list[Shape], scope: str = "devices") -> list[Row]:
    rows = device_rows(seed, shapes, runtime="onnxruntime", batch_sizes=(1, 8))
    return [dataclasses.replace(row, scope=scope) for row in rows]


@pytest.fixture(scope="module")
def boards(shapes: list[Shape]) -> Fit:
    return fit_all([row for seed in range(4) for row in rows_of(seed, shapes)])


def target(shapes: list[Shape], index: int, **changes: str) -> Request:
    found = shapes[index]
    values = {"device": "new", **changes}
    return Request(network=found.name, family=found.family, features=found.features, **values)  # type: ignore[arg-type]


def test_the_chosen_networks_predict_better_than_most_others(boards: Fit, shapes: list[Shape]) -> None:
    """Over five new boards and all choices of three networks: the plan's mean error is in the best third."""
    wanted = target(shapes, 6)
    plan = plan_calibration(boards, [wanted], ["onnxruntime"])
    names = [" ".join([step.network, *(f"{k}={v}" for k, v in step.options.items())]) for step in plan.steps]
    assert len(set(names)) == NETWORKS and wanted.network not in names
    widths = [step.remaining for step in plan.steps]
    assert 1 > widths[0] > widths[1] > widths[2] > 0
    others = [found for found in shapes if found.name != wanted.network]
    new = {seed: {row.network: row for row in rows_of(seed, shapes) if row.batch_size == 1} for seed in range(20, 25)}

    def error(chosen: tuple[str, ...]) -> float:
        errors = []
        for measured in new.values():
            request = dataclasses.replace(
                wanted, device=measured[wanted.network].device, calibration=tuple(measured[name] for name in chosen)
            )
            (found,) = predict(boards, request)
            errors.append(abs(math.log(found.joules.median / measured[wanted.network].joules)))
        return float(np.mean(errors))

    choices = list(itertools.combinations([found.name for found in others], NETWORKS))[::15]
    assert error(tuple(names)) <= np.quantile([error(choice) for choice in choices], 1 / 3)


def test_profile_reads_the_plan(
    boards: Fit, shapes: list[Shape], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = tmp_path / "model.json", tmp_path / "plan.yaml"
    model.write_text(json_text(document_of(boards)))
    words = ["predict", "mobilenet-like", "--option", "size=160", "--fit", str(model), "--device", "new"]
    assert main([*words, "--plan", str(path), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert f"joulewatch profile {path}" in err
    plan = make_plan(read_plan(path), str(path))
    assert [item.network for item in plan.configurations] == [step["network"] for step in json.loads(out)]
    assert {item.runtime for item in plan.configurations} == {"onnxruntime"}
    assert (plan.preset, plan.batch_sizes) == ("quick", (1, 8))
    assert main([*words, "--plan", str(path)]) == 0
    assert capsys.readouterr().out.startswith("network")
    assert main([*words, "--plan", str(tmp_path / "no" / "plan.yaml"), "--format", "csv"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_plan_needs_devices_that_profile_can_add_to(boards: Fit, shapes: list[Shape]) -> None:
    wanted = target(shapes, 6)
    wall = fit_all([row for seed in range(3) for row in rows_of(seed, shapes, "wall")])
    with pytest.raises(PredictionRefusedError, match=r"2 other devices with scope devices, which .*; this one has 0"):
        plan_calibration(wall, [wanted], [])
    with pytest.raises(PredictionRefusedError, match="only 2 of the built-in networks are in the range of the fit"):
        few = [shape("mlp"), shape("mlp", width="256"), shape("mlp", width="512")]
        small = fit_all([row for seed in range(3) for row in rows_of(seed, few)])
        plan_calibration(small, [target(few, 2)], [])
    both = [*boards.models, *(dataclasses.replace(model, precision="int8") for model in boards.models)]
    mixed = dataclasses.replace(boards, models=tuple(both))
    with pytest.raises(ConfigError, match="choose the precision with --precision: fp32, int8"):
        plan_calibration(mixed, [wanted], [])
    assert plan_calibration(mixed, [target(shapes, 6, precision="int8")], []).runtime == ""
