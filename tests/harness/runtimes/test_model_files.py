"""The hash of a model: of everything that a runtime reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper

from joulewatch_harness.runtimes.shared.model_files import fingerprint
from support.onnx_models import matmul


def external(name: str, place: str) -> Any:
    """Return a tensor whose values are in the file ``place``."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def test_the_hash_of_one_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    for path in (matmul(tmp_path / "m.onnx"), tmp_path / "m.pt2"):
        if not path.exists():
            path.write_bytes(b"content")
        assert fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensors_of_all_kinds_are_found(tmp_path: Path) -> None:
    """Initializers, sparse ones, attributes, those of inner graphs and those of functions."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    inner = helper.make_graph([], "inner", [], [value], [external("w", "inner.bin")])
    branches = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=external("k", "constant.bin"))
    sparse = onnx.SparseTensorProto(values=external("s", "sparse.bin"), dims=[8])
    graph = helper.make_graph([branches, constant], "g", [], [value], [external("v", "initializer.bin")])
    graph.sparse_initializer.append(sparse)
    of_function = helper.make_node("Constant", [], ["y"], value=external("f", "function.bin"))
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "F", [], ["y"], [of_function], opsets)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    names = ("inner", "constant", "sparse", "initializer", "function")
    for name in names:
        (tmp_path / f"{name}.bin").write_bytes(b"before")
    seen = {fingerprint(path)}
    for name in names:
        (tmp_path / f"{name}.bin").write_bytes(b"after")
        seen.add(fingerprint(path))
    assert len(seen) == 1 + len(names)
