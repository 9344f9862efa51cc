"""Graphs that are read from files, and the shapes of their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

from joulewatch_harness.errors import ConfigError  # noqa: E402
from joulewatch_harness.networks import radioml_vgg10  # noqa: E402
from joulewatch_harness.networks.cost import cost_details, cost_of  # noqa: E402
from joulewatch_harness.networks.graphs import Sizes  # noqa: E402
from support.onnx_graphs import floats, model, node  # noqa: E402


def test_functions_are_inlined() -> None:
    body = helper.make_function(
        "own", "Dense", ["a", "w"], ["y"], [node("MatMul", "a w", "y")], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Dense", ["x", "w"], ["y"], domain="own")]
    cost = cost_of(model(nodes, {"x": ["b", 7]}, {"w": floats(7, 3)}, functions=[body]))
    assert (cost.macs, cost.parameters, cost.not_counted) == (21, 21, {})


def test_a_symbolic_dimension_needs_a_size(tmp_path: Path) -> None:
    graph = model([node("MatMul", "x w", "y")], {"x": ["b", "sequence", 4]}, {"w": floats(4, 2)})
    with pytest.raises(ConfigError, match="dimension 'sequence' of input 'x' has no size"):
        cost_of(graph)
    assert cost_of(graph, Sizes(1, {"x": (1, 3, 4)})).macs == 24
    assert cost_of(graph, Sizes(8, {"x": (8, 5, 4)})).macs == 40
    onnx.save(graph, tmp_path / "m.onnx")
    assert "sequence" in cost_details(tmp_path / "m.onnx")["not_counted"]
    assert cost_details(tmp_path / "m.onnx", Sizes(1, {"x": (1, 3, 4)}))["macs_per_inference"] == "24"


def test_unknown_shapes_are_reported() -> None:
    wrong = model([node("MatMul", "x w", "m"), node("Relu", "m", "y")], {"x": ["b", 4]}, {"w": floats(5, 2)})
    assert set(cost_of(wrong).not_counted) == {"MatMul", "bytes of MatMul", "bytes of Relu"}


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.onnx"):
        cost_details(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"this is not a protobuf file")
    with pytest.raises(ConfigError, match=r"broken\.onnx cannot be read"):
        cost_details(tmp_path / "broken.onnx")


def test_weights_in_another_file_are_counted_without_it(tmp_path: Path) -> None:
    graph = model([node("MatMul", "x w", "y")], {"x": ["b", 64]}, {"w": floats(64, 64)})
    path = tmp_path / "m.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    details = cost_details(path)
    assert (details["parameters"], details["macs_per_inference"]) == ("4096", "4096")


def test_the_model_is_not_modified() -> None:
    graph = radioml_vgg10.graph(32, folded=False)
    before = graph.SerializeToString()
    cost_of(graph)
    assert graph.SerializeToString() == before
