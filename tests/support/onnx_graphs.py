"""Small ONNX graphs in memory, written with a line per operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray] | None = None,
    outputs: Mapping[str, Shape] | None = None,
    kinds: Mapping[str, int] | None = None,
    opset: int = 17,
    functions: Sequence[Any] = (),
) -> Any:
    given = outputs or {nodes[-1].output[0]: None}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(name, (kinds or {}).get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = {node.domain for node in nodes} | {""}
    opsets = [helper.make_opsetid(domain, opset if domain == "" else 1) for domain in sorted(domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float32)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=attributes.pop("name", ""), **attributes)
