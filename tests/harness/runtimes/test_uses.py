"""Tests of the values of inputs: ranges of indices from the graph, masks, lengths, positions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks import ModelSource
from joulewatch_harness.runtimes.shared.inputs import Batches, InputOptions
from joulewatch_harness.runtimes.shared.signature import DTYPES, Input, signature
from support import model_cases
from support.onnx_models import Shape, save

INT64, INT32, BOOL, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT


def batches(path: Path, **options: str) -> Batches:
    return InputOptions.parse(options).batches(path.name, signature(path), ModelSource(path=path))


def model(
    folder: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, Shape]],
    weights: Mapping[str, np.ndarray] | None = None,
) -> Path:
    outputs = {nodes[-1].output[0]: (FLOAT, None)}
    return save(folder / "m.onnx", nodes, inputs, outputs, weights or {}, {"com.microsoft": 1})  # type: ignore[arg-type]


def node(op: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], domain=domain, **attributes)


def table(rows: int) -> np.ndarray:
    return np.zeros((rows, 4), np.float32)


def test_ids_are_drawn_from_the_whole_table(tmp_path: Path) -> None:
    found = batches(model_cases.embedding(tmp_path / "m.onnx", rows=5000))
    ids = found.arrays(64)["ids"]
    assert ids.shape == (64, 80) and ids.dtype == np.int64
    assert 0 <= ids.min() < 50 and 4950 <= ids.max() < 5000
    assert abs(ids.mean() - 2500) < 200
    assert found.describe()["input_values"] == "ids 0..4999"
    assert "made_up_inputs" not in found.describe()


def test_masks_are_ones_types_follow_their_table_and_positions_rise(tmp_path: Path) -> None:
    arrays = batches(model_cases.bert(tmp_path / "m.onnx"), dims="sequence=128").arrays(8)
    assert np.all(arrays["attention_mask"] == 1)
    assert set(np.unique(arrays["token_type_ids"])) == {0, 1}
    assert arrays["position_ids"].tolist() == [list(range(128))] * 8
    assert arrays["input_ids"].max() > 900


def test_a_length_is_the_size_of_the_axis_that_it_counts(tmp_path: Path) -> None:
    found = batches(model_cases.lengths(tmp_path / "m.onnx"), dims="T=100")
    assert found.arrays(3)["x_lens"].tolist() == [100, 100, 100]
    assert found.describe()["input_values"] == "x_lens size of x.1"


@pytest.mark.parametrize(
    ("nodes", "shape", "weights", "limits"),
    [
        ([node("Cast", "i", "a", to=INT64), node("Gather", "t a", "y")], ["N", 3], {"t": table(50)}, (0, 50)),
        ([node("Gather", "t i", "y", axis=1)], ["N"], {"t": table(50)}, (0, 4)),
        ([node("Unsqueeze", "i k", "a"), node("Gather", "t a", "y")], ["N"],
         {"t": table(50), "k": np.array([1])}, (0, 50)),
        ([node("Concat", "i i", "a", axis=0), node("Gather", "t a", "y")], ["N"], {"t": table(50)}, (0, 50)),
        ([node("Gather", "t i", "a"), node("Gather", "u i", "b"), node("Add", "a b", "y")], ["N"],
         {"t": table(50), "u": table(30)}, (0, 30)),
        ([node("Add", "i k", "a"), node("Gather", "t a", "y")], ["N", 3], {"t": table(50), "k": np.array(2)}, (0, 48)),
        ([node("Sub", "i k", "a"), node("Gather", "t a", "y")], ["N", 3], {"t": table(50), "k": np.array(1)}, (1, 51)),
        ([node("OneHot", "i depth values", "y")], ["N"], {"depth": np.array(7), "values": np.array([0, 1])}, (0, 7)),
        ([node("Unsqueeze", "i k", "a"), node("Equal", "a classes", "y")], ["N"],
         {"classes": np.arange(9), "k": np.array([1])}, (0, 9)),
        ([node("Mod", "i k", "a"), node("Gather", "t a", "y")], ["N"], {"t": table(50), "k": np.array(20)}, (0, 20)),
        ([node("GatherElements", "t i", "y")], [50, 4], {"t": table(50)}, (0, 50)),
        ([node("DequantizeLinear", "q s", "t"), node("Gather", "t i", "y")], ["N"],
         {"q": np.zeros((60, 4), np.int8), "s": np.array(1, np.float32)}, (0, 60)),
        ([node("Mul", "i keep", "a"), node("Gather", "t a", "y")], ["N"], {"t": table(50)}, (0, 50)),
    ],
)  # fmt: skip
def test_ranges_of_indices(
    tmp_path: Path, nodes: list[Any], shape: Shape, weights: dict[str, np.ndarray], limits: tuple[int, int]
) -> None:
    inputs = {"i": (INT64, shape)}
    if any("keep" in item.input for item in nodes):
        inputs["keep"] = (INT64, shape)
    rule = batches(model(tmp_path, nodes, inputs, weights)).rules["i"]
    assert rule.kind == "indices" and rule.low is not None and rule.high is not None
    assert (int(rule.low.max()), int(rule.high.min())) == limits


def test_fields_with_offsets_in_one_table_are_drawn_from_their_own_rows(tmp_path: Path) -> None:
    nodes = [node("Add", "i offsets", "a"), node("Gather", "t a", "y")]
    path = model(tmp_path, nodes, {"i": (INT64, ["N", 3])}, {"t": table(100), "offsets": np.array([0, 10, 90])})
    drawn = batches(path).arrays(4000)["i"]
    assert (drawn.max(axis=0) + 1).tolist() == [10, 80, 10]
    assert drawn.min() == 0


def test_an_index_into_an_activation_has_its_size(tmp_path: Path) -> None:
    nodes = [node("GatherND", "x i", "y", batch_dims=1)]
    path = model(tmp_path, nodes, {"x": (FLOAT, ["N", "T", 4]), "i": (INT64, ["N", 1])})
    assert batches(path, dims="T=9").arrays(500)["i"].max() == 8


def test_an_index_inside_a_loop_is_found(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Gather", "t ids", "row"), node("Identity", "go", "on")],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("n", INT64), ("go", BOOL))],
        [helper.make_tensor_value_info("on", BOOL, []), helper.make_tensor_value_info("row", FLOAT, None)],
    )
    path = model(
        tmp_path,
        [helper.make_node("Loop", ["times", "yes"], ["y"], body=body)],
        {"ids": (INT64, ["N"])},
        {"t": table(70), "times": np.array(2), "yes": np.array(True)},
    )
    assert batches(path).describe()["input_values"] == "ids 0..69"


def test_the_tables_of_a_fused_embedding(tmp_path: Path) -> None:
    fused = node("EmbedLayerNormalization", "ids kinds words places types gamma beta keep", "y", "com.microsoft")
    shape = (INT32, ["batch", 6])
    weights = {"words": table(300), "places": table(6), "types": table(2), "gamma": table(1)[0], "beta": table(1)[0]}
    path = model(tmp_path, [fused], dict.fromkeys(("ids", "kinds", "keep"), shape), weights)
    assert batches(path).describe()["input_values"] == "ids 0..299, kinds 0..1, keep 1"


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ([node("Where", "i x x", "y")], BOOL),
        ([node("Not", "i", "a"), node("Where", "a x x", "y")], BOOL),
        ([node("Equal", "i zero", "a"), node("Where", "a x x", "y")], INT64),
        ([node("Cast", "i", "a", to=FLOAT), node("Sub", "one a", "b"), node("Mul", "b big", "y")], INT64),
        ([node("Cast", "i", "a", to=FLOAT), node("Mul", "a x", "y")], INT64),
    ],
)
def test_masks_are_recognised_by_their_use(tmp_path: Path, nodes: list[Any], kind: int) -> None:
    inputs = {"i": (kind, ["N", 4]), "x": (FLOAT, ["N", 4])}
    weights = {"zero": np.array(0), "one": np.array(1, np.float32), "big": np.array(-1e4, np.float32)}
    assert np.all(batches(model(tmp_path, nodes, inputs, weights)).arrays(3)["i"] == 1)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Cast", "i", "a", to=FLOAT), node("Mul", "a scale", "y")],
        [node("Equal", "i many", "a"), node("Where", "a x x", "y")],
        [node("Expand", "x i", "y")],
    ],
)
def test_integers_of_unknown_use_are_reported(tmp_path: Path, nodes: list[Any]) -> None:
    inputs = {"i": (INT64, ["N", 4]), "x": (FLOAT, ["N", 4])}
    path = model(tmp_path, nodes, inputs, {"scale": np.array(0.1, np.float32), "many": np.array(100)})
    found = batches(path)
    assert found.describe()["made_up_inputs"] == "i: 0 or 1, because the model does not show which values are valid"
    assert "made_up_inputs" not in batches(path, values="i=1").describe()
    np.savez(tmp_path / "in.npz", i=np.ones((1, 4), np.int64), x=np.ones((1, 4), np.float32))
    assert "made_up_inputs" not in batches(path, inputs=str(tmp_path / "in.npz")).describe()


def test_a_number_that_only_the_user_knows_must_be_given(tmp_path: Path) -> None:
    path = model_cases.state(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"m\.onnx: input sr:int64\[\] is a single number.* --option values=sr=16000"):
        batches(path, dims="samples=32")
    found = batches(path, dims="samples=32", values="sr=16000")
    assert int(found.arrays(1)["sr"]) == 16000
    flag = (Input("use_cache", "bool", (1,)), Input("x", "float32", ("batch", 4)))
    with pytest.raises(ConfigError, match="--option values=use_cache=NUMBER"):
        InputOptions.parse({}).batches("m.onnx", flag, ModelSource(path=tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "others", "size"),
    [
        ("x_lens", {"x": ["N", "T", 80]}, 7),
        ("length", {"audio": ["N", 80, "T"]}, 7),
        ("text_lengths", {"audio": ["N", 80, "T"], "text": ["N", "S"]}, 5),
        ("seq_len", {"x": ["N", 9, 3]}, 9),
        ("encoder_len_1", {"mask": ["N", 3], "encoder": ["N", "T"]}, 7),
    ],
)
def test_names_of_lengths(tmp_path: Path, name: str, others: dict[str, list[int | str]], size: int) -> None:
    found = [Input(other, "float32", tuple(shape)) for other, shape in others.items()]
    options = {"dims": "T=7,S=5"} if name == "text_lengths" else {"dims": "T=7"} if "T" in str(others) else {}
    made = InputOptions.parse(options).batches(
        "m", (Input(name, "int64", ("N",)), *found), ModelSource(path=tmp_path / "none")
    )
    assert made.arrays(2)[name].tolist() == [size, size]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_can_be_made(tmp_path: Path, dtype: str) -> None:
    made = InputOptions().batches("m", (Input("x", dtype, ("N", 3)),), ModelSource(path=tmp_path / "none")).arrays(200)
    assert (made["x"].shape, str(made["x"].dtype)) == ((200, 3), dtype)
    if dtype in ("int8", "uint8"):
        assert np.ptp(made["x"].astype(int)) > 200


def test_an_index_stays_within_its_type(tmp_path: Path) -> None:
    path = model(
        tmp_path,
        [node("Cast", "i", "a", to=INT64), node("Gather", "t a", "y")],
        {"i": (TensorProto.UINT8, ["N"])},
        {"t": table(1000)},
    )
    assert batches(path).describe()["input_values"] == "i 0..255"
