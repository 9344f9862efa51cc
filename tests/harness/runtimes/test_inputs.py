"""Tests of the inputs of model files, without a runtime: batch axes, sizes, values, arrays of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from joulewatch_harness.errors import ConfigError, UnsupportedBatchError
from joulewatch_harness.networks import ModelSource
from joulewatch_harness.runtimes.shared.batch_axes import find_batch_axes
from joulewatch_harness.runtimes.shared.inputs import Batches, InputOptions
from joulewatch_harness.runtimes.shared.signature import Input

SOURCE = ModelSource(path=Path("m.onnx"))


def inputs(**shapes: list[int | str | None]) -> tuple[Input, ...]:
    """Return float inputs of these shapes."""
    return tuple(Input(name, "float32", tuple(shape)) for name, shape in shapes.items())


def batches(found: tuple[Input, ...], **options: str) -> Batches:
    return InputOptions.parse(options).batches("m.onnx", found, SOURCE)


def file_of(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "in.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "in.npz")


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ({"x": ["batch", 4]}, {"x": (0,)}),
        ({"x": ["seq", "batch", 16]}, {"x": (1,)}),
        ({"x": ["Batch_Size", 13], "ids": [26, "Batch_Size"]}, {"x": (0,), "ids": (1,)}),
        ({"x": ["L", "N", 16]}, {"x": (1,)}),
        ({"x": ["B", "N", 3], "n": ["N"]}, {"x": (0,), "n": ()}),
        ({"x": ["batch", "N"], "b": ["B"]}, {"x": (0,), "b": ()}),
        ({"a": ["text_batch_size", "s"], "b": ["image_batch_size", 3]}, {"a": (0,), "b": (0,)}),
        ({"x": ["batch_size x heads", 3], "y": ["bs", 3]}, {"x": (), "y": (0,)}),
        ({"x": ["batch_sequence", "minibatch"]}, {"x": (1,)}),
        ({"x": ["nbatch"], "y": [None, 4], "z": [3, 4]}, {"x": (0,), "y": (0,), "z": ()}),
        ({"m": ["batch", "batch"]}, {"m": (0, 1)}),
        ({"x": [None, None], "state": [2, None, 16], "sr": []}, {"x": (0,), "state": (), "sr": ()}),
        ({"x": ["unk__5", 3], "y": ["unk__6", 3]}, {"x": (0,), "y": (0,)}),
        ({"x": ["s0", "s1"], "state": [2, "s0", 16]}, {"x": (0,), "state": (1,)}),
        ({"x": [4, 3], "y": [4], "table": [7, 3]}, {"x": (0,), "y": (0,), "table": ()}),
        ({}, {}),
    ],
)
def test_the_batch_axis(shapes: dict[str, list[int | str | None]], axes: dict[str, tuple[int, ...]]) -> None:
    assert find_batch_axes("m.onnx", inputs(**shapes), ()) == axes


@pytest.mark.parametrize(
    ("shapes", "given", "axes"),
    [
        ({"x": [None, None], "state": [2, None, 16]}, "state:1", {"x": (0,), "state": (1,)}),
        ({"x": ["t", "m", 16], "h": ["m", 8]}, "x:1", {"x": (1,), "h": (0,)}),
        ({"x": [None, "N", 3]}, "x:0", {"x": (0,)}),
        ({"x": ["batch", 3], "y": ["batch", 3]}, "y:none", {"x": (0,), "y": ()}),
        ({"x": [8, 16, 3], "y": [8, 16]}, "x:1,y:1", {"x": (1,), "y": (1,)}),
    ],
)
def test_a_given_batch_axis(
    shapes: dict[str, list[int | str | None]], given: str, axes: dict[str, tuple[int, ...]]
) -> None:
    assert batches(inputs(**shapes), batch_axis=given).axes == axes


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("stat:1", r"m\.onnx: option batch_axis: unknown input 'stat'; did you mean state"),
        ("state:3", r"m\.onnx: option batch_axis: state:float32\[2,\?,16\] has no axis 3"),
        ("state", "option batch_axis: must be INPUT:AXIS,... or INPUT:none, got 'state'"),
        ("state:x", "option batch_axis: must be INPUT:AXIS"),
    ],
)
def test_a_wrong_batch_axis_is_named(given: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        batches(inputs(x=[None, None], state=[2, None, 16]), batch_axis=given)


def test_batch_axes_other_than_the_first_are_described() -> None:
    assert "batch_axes" not in batches(inputs(x=["batch", 4], y=[None], z=[]), values="z=1").describe()
    found = batches(inputs(x=["seq", "batch", 4], m=["batch", "batch"], table=[7, 2]))
    assert found.describe()["batch_axes"] == "x:1 m:0,1 table:none"


def test_a_first_axis_named_as_time_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = batches(inputs(x=["seq_len", None, 16]), dims="x.1=1")
    assert found.axes == {"x": (0,)}
    assert found.describe()["batch_axes"] == "x:0(seq_len)"
    assert "axis 0 of input x is taken as the batch, although its name is 'seq_len'" in caplog.text
    caplog.clear()
    batches(inputs(x=["seq_len", None, 16]), batch_axis="x:1", dims="seq_len=4")
    assert not caplog.records


def test_the_sizes_that_a_model_accepts() -> None:
    fixed = batches(inputs(x=[16, 4, 3]), batch_axis="x:1")
    fixed.check_size(4)
    assert fixed.size_for_check() == 4
    with pytest.raises(UnsupportedBatchError, match=r"m\.onnx has a fixed batch axis of 4, not 16"):
        fixed.check_size(16)
    for none in (batches(()), batches(inputs(x=[]), values="x=1"), batches(inputs(x=[3, 4]), batch_axis="x:none")):
        none.check_size(1)
        assert none.size_for_check() == 1
        with pytest.raises(UnsupportedBatchError, match=r"m\.onnx has no batch axis: its only batch size is 1, not 2"):
            none.check_size(2)
    batches(inputs(x=["T", "N"]), dims="T=3").check_size(5)


def test_the_batch_is_the_size_along_its_axis() -> None:
    found = batches(inputs(x=["seq", "batch", 16], y=[None, 4]), dims="seq=5")
    assert {name: array.shape for name, array in found.arrays(3).items()} == {"x": (5, 3, 16), "y": (3, 4)}
    sizes = found.sizes()
    assert (sizes.batch, sizes.shapes) == (1, {"x": (5, 1, 16), "y": (1, 4)})
    fixed = batches(inputs(x=[5, 4, 16]), batch_axis="x:1").sizes()
    assert (fixed.batch, fixed.shapes) == (4, {"x": (5, 4, 16)})


def test_a_cache_may_be_empty() -> None:
    found = batches(inputs(x=["batch", 1], past=["batch", 2, "past_len", 8]), dims="past_len=0")
    assert found.arrays(3)["past"].shape == (3, 2, 0, 8)


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ("x.3=5", r"'x\.3' is fixed to 7 in the model"),
        ("sequense=5", "unknown dimension 'sequense'; did you mean sequence"),
        ("x.4=5", r"unknown dimension 'x\.4'"),
        ("batch=5", "'batch' is the batch of input 'x', whose sizes are the batch sizes: remove it, or set another"),
    ],
)
def test_sizes_of_unknown_dimensions_are_refused(dims: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"m\.onnx: option dims: {text}"):
        batches(inputs(x=["batch", "sequence", None, 7]), dims=dims)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    path.write_bytes(b"text")
    with pytest.raises(ConfigError, match=r"in\.npz is not an \.npz file; numpy\.savez"):
        batches(inputs(x=["batch"]), inputs=str(path)).arrays(1)


def test_a_dimension_that_may_be_the_batch_names_both_options() -> None:
    found = batches(inputs(x=["batch", 4], state=[2, None]))
    with pytest.raises(ConfigError, match=r"dims=state\.1=N, or with --option batch_axis=state:1 if it is the batch"):
        found.arrays(1)


def test_arrays_of_a_file_are_repeated_along_their_batch_axis_only(tmp_path: Path) -> None:
    state = np.arange(4, dtype=np.float32).reshape(2, 2)
    table = np.eye(3, dtype=np.float32)
    path = file_of(tmp_path, x=np.ones((1, 5), np.float32), state=state, sr=np.float32(16000), table=table)
    found = batches(inputs(x=["batch", "n"], state=[2, "batch"], sr=[], table=[3, 3]), inputs=path)
    arrays = found.arrays(3)
    assert arrays["x"].shape == (3, 5)
    assert arrays["state"].tolist() == [[0, 1, 0], [2, 3, 2]]
    assert arrays["sr"] == 16000 and arrays["table"].tolist() == table.tolist()
    assert found.shapes(3) == {"x": (3, 5), "state": (2, 3), "sr": (), "table": (3, 3)}


def test_an_array_whose_batch_axis_is_not_known_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, x=np.ones((1, 5), np.float32), state=np.ones((2, 1), np.float32))
    unnamed = inputs(x=[None, None], state=[2, None])
    with pytest.raises(ConfigError, match=r"state:float32\[2,\?\] is the batch is not known: .*batch_axis=state:1"):
        batches(unnamed, inputs=path)
    assert batches(unnamed, inputs=path, batch_axis="state:1").arrays(4)["state"].shape == (2, 4)
    assert batches(unnamed, inputs=path, batch_axis="state:none").arrays(4)["state"].shape == (2, 1)


def test_given_values_fill_an_input(tmp_path: Path) -> None:
    sr = Input("sr", "int64", ())
    found = (*inputs(x=["batch", "n"], scales=[3]), sr)
    arrays = batches(found, dims="n=2", values="sr=16000,scales=0.5").arrays(2)
    assert arrays["sr"].dtype == np.int64 and arrays["sr"] == 16000
    assert arrays["scales"].tolist() == [0.5] * 3
    path = file_of(tmp_path, x=np.ones((1, 5), np.float32))
    arrays = batches(found, inputs=path, values="sr=8000,scales=1").arrays(2)
    assert (arrays["x"].shape, int(arrays["sr"])) == ((2, 5), 8000)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ("rs=16000", "unknown input 'rs'; did you mean sr"),
        ("sr=0.5", "sr is of type int8, which cannot be 0.5"),
        ("sr=16000", "sr is of type int8, which cannot be 16000"),
    ],
)
def test_a_wrong_value_is_named(values: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"m\.onnx: option values: {text}"):
        batches((Input("sr", "int8", ()),), values=values)


def test_a_value_and_an_array_of_one_input_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, x=np.ones((1, 5), np.float32))
    with pytest.raises(ConfigError, match=r"in\.npz has an array 'x', and the option values has a value"):
        batches(inputs(x=["batch", 5]), inputs=path, values="x=1")


def test_names_for_no_name() -> None:
    """Exporters write a question mark, -1 or None."""
    assert inputs(x=[-1, "?", "-1", "None", "", 3])[0].text() == "x:float32[?,?,?,?,?,3]"
