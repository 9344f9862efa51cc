"""What becomes of the inputs of an ONNX file: the same through every runtime that takes one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.network import Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import open_network
from support.onnx_models import dynamic, matmul

NEEDS_SIZES_TO_LOAD = ("openvino", "tvm")
"""Runtimes that fix all sizes but the batch when they load; the others ask for them with the first batch."""

Open = Callable[..., Any]
"""Of a file and options; a network that is closed at the end of the test."""


def of_torch(network: Any) -> Any:
    from joulewatch_harness.runtimes.torch.network import tensors

    return tensors(network._outputs)[0].numpy()


def of_tvm(network: Any) -> Any:
    from joulewatch_harness.runtimes.tvm.network import tensors

    return tensors(network._outputs)[0].numpy()


OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "onnxruntime": lambda network: network._binding.copy_outputs_to_cpu()[0],
    "openvino": lambda network: network._request.get_output_tensor(0).data,
    "torch": of_torch,
    "tvm": of_tvm,
}
"""Runtime -> the first output of its last batch."""


@pytest.fixture(params=OUTPUTS)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    # Not imported here: what some of them read when they are imported is set by their runtime's module.
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'joulewatch[{name}]'")
    return name


@pytest.fixture
def opened(runtime: str) -> Iterator[Open]:
    made = []

    def make(path: Path, **options: str) -> Any:
        made.append(
            open_network(
                Configuration(name="n", network=str(path), runtime=runtime, precision="native", options=options)
            )
        )
        return made[-1]

    yield make
    for network in made:
        network.close()


def outputs(runtime: str, network: Any, batch: int) -> np.ndarray:
    """Of a batch of this size."""
    network.load()
    network.prepare(batch)
    network.run(1, Phases())
    return np.array(OUTPUTS[runtime](network))


def test_a_symbolic_dimension_without_a_size_is_named(runtime: str, opened: Open, tmp_path: Path) -> None:
    network = opened(dynamic(tmp_path / "d.onnx"))
    if runtime not in NEEDS_SIZES_TO_LOAD:
        network.load()
    with pytest.raises(ConfigError, match=r"dimension 'seq' of input 'ids' has no size.*--option dims=seq=N"):
        network.load() if runtime in NEEDS_SIZES_TO_LOAD else network.prepare(2)


@pytest.mark.parametrize("dims", ["seq=7", "ids.1=7"])
def test_symbolic_dimensions_get_their_sizes(runtime: str, opened: Open, tmp_path: Path, dims: str) -> None:
    network = opened(dynamic(tmp_path / "d.onnx"), dims=dims)
    assert outputs(runtime, network, 3).shape == (3, 7)
    arrays = network._batches.arrays(3)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "ids": ((3, 7), "int64"),
        "m": ((3, 3), "float32"),
    }
    assert network.check()


def test_rows_of_a_file_repeat_to_fill_the_batch(runtime: str, opened: Open, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.arange(8, dtype=np.float32).reshape(2, 4))
    network = opened(matmul(tmp_path / "m.onnx"), inputs=str(tmp_path / "in.npz"))
    assert outputs(runtime, network, 3)[:, 0].tolist() == [6.0, 22.0, 6.0]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"xx": np.zeros((1, 4), np.float32)}, "unknown input 'xx'; did you mean x|unknown input 'xx'"),
        ({}, r"in\.npz has no array 'x'"),
        ({"x": np.zeros((1, 4), np.float64)}, r"x is float64\[1,4\], but the model takes x:float32\[batch,4\]"),
        ({"x": np.zeros(4, np.float32)}, r"x is float32\[4\]"),
        ({"x": np.zeros((1, 4, 1), np.float32)}, r"x is float32\[1,4,1\], but the model takes x:float32\[batch,4\]"),
        ({"x": np.zeros((1, 5), np.float32)}, r"x is float32\[1,5\]"),
        ({"x": np.zeros((0, 4), np.float32)}, r"x is float32\[0,4\]"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    opened: Open, tmp_path: Path, arrays: dict[str, np.ndarray], text: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    network = opened(matmul(tmp_path / "m.onnx"), inputs=str(tmp_path / "in.npz"))
    with pytest.raises(ConfigError, match=text):
        network.load()


def test_a_file_that_lacks_one_of_two_inputs_is_named(opened: Open, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", ids=np.ones((2, 5), np.int64))
    network = opened(dynamic(tmp_path / "d.onnx"), inputs=str(tmp_path / "wrong.npz"))
    with pytest.raises(ConfigError, match=r"wrong\.npz has no array 'm'"):
        network.load()


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ("seq", "option dims: must be NAME=VALUE,..., got 'seq'"),
        ("seq=0", "dims.seq: must be an integer >= 1, got '0'"),
    ],
)
def test_a_size_is_name_and_number(opened: Open, tmp_path: Path, dims: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        opened(matmul(tmp_path / "m.onnx"), dims=dims)
