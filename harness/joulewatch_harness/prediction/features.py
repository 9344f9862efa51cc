"""The features of a network that determine its energy: counted from an ONNX file, or stored with a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from joulewatch_harness.errors import ConfigError

Name = Literal["macs_dense", "macs_depthwise", "weight_elements", "activation_elements", "layers", "input_pixels"]
FEATURES: Final[tuple[Name, ...]] = (
    "macs_dense", "macs_depthwise", "weight_elements", "activation_elements", "layers", "input_pixels",
)  # fmt: skip
HEAVY: Final = 0.1
"""An operator without multiply-accumulates matters if it writes this share of the activation elements."""
CNN_OPERATORS: Final = frozenset(
    {
        "Conv", "MatMul", "Add", "Mul", "Concat", "BatchNormalization", "Relu", "Clip", "MaxPool", "AveragePool",
        "GlobalAveragePool", "ReduceMean", "Pad",
    }
)  # fmt: skip
"""Assumed for the networks of a table without the column ``operators``: those of convolutional networks."""
MAIN_OPERATORS: Final = frozenset(
    {
        "Conv", "DeformConv", "ConvTranspose", "MatMul", "MatMulNBits", "Einsum", "LSTM", "GRU", "RNN", "Attention",
        "MultiHeadAttention", "QAttention",
    }
)  # fmt: skip
"""Those with multiply-accumulates, of the networks of a table, which states no sizes."""
_PREFIXES: Final = ("Nhwc", "QLinear", "Fused")
_SAME: Final = {
    "ConvInteger": "Conv",
    **dict.fromkeys(
        (
            "Gemm", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulActivation", "TransposeMatMul",
            "DynamicQuantizeMatMul",
        ),
        "MatMul",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What one inference of a network computes and moves. All counts are per inference."""

    macs_dense: float
    macs_depthwise: float
    weight_elements: float
    activation_elements: float
    layers: float
    input_pixels: float
    operators: frozenset[str] = frozenset()
    """All types of operators; empty: unknown."""
    main_operators: frozenset[str] = frozenset()
    """Those that compute or move much; empty: unknown."""

    def vector(self) -> tuple[float, ...]:
        """Return the numbers in the order of ``FEATURES``."""
        return (
            self.macs_dense, self.macs_depthwise, self.weight_elements, self.activation_elements, self.layers,
            self.input_pixels,
        )  # fmt: skip


def canonical(operators: Iterable[str]) -> frozenset[str]:
    """Return the types of operators with one name for the variants of one computation (``QLinearConv``: ``Conv``)."""
    names = set()
    for name in operators:
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        names.add(_SAME.get(name, name))
    return frozenset(names)


def features_of_model(path: Path, options: Mapping[str, str]) -> Features:
    """Return the features of an ONNX file.

    Args:
        path: The file.
        options: Options of its inputs, such as ``dims``.

    Raises:
        ConfigError: The file cannot be read, an option is not valid, or an operator, which is named, has no cost.
    """
    from joulewatch_harness.networks import ModelSource
    from joulewatch_harness.networks.cost import cost_of
    from joulewatch_harness.networks.graphs import read_model
    from joulewatch_harness.runtimes.shared.inputs import InputOptions
    from joulewatch_harness.runtimes.shared.signature import signature

    model = read_model(path)
    given = InputOptions.parse(options)
    cost = cost_of(model, given.batches(path.name, signature(path), ModelSource(path=path)).sizes())
    if cost.not_counted:
        reasons = "; ".join(f"operator {name}: {why}" for name, why in sorted(cost.not_counted.items()))
        raise ConfigError(f"model file {path} has no known cost, so its energy cannot be predicted: {reasons}")
    written: dict[str, int] = {}
    for node in cost.nodes:
        if node.is_layer and node.shape is not None:
            elements = node.shape[0] if len(node.shape) == 1 else 1
            for size in node.shape[1:]:
                elements *= size
            written[node.op] = written.get(node.op, 0) + elements
    main = {node.op for node in cost.nodes if node.macs}
    main |= {name for name, elements in written.items() if elements > HEAVY * cost.activation_elements}
    return Features(
        macs_dense=cost.macs - cost.macs_depthwise,
        macs_depthwise=cost.macs_depthwise,
        weight_elements=cost.parameters,
        activation_elements=cost.activation_elements,
        layers=cost.layers,
        input_pixels=cost.input_pixels,
        operators=canonical(cost.operator_types),
        main_operators=canonical(main),
    )


def features_of_builtin(network: str, options: Mapping[str, str]) -> Features:
    """Return the features of a built-in network.

    Raises:
        ConfigError: The name or an option is not valid.
    """
    from joulewatch_harness.networks import build
    from joulewatch_harness.plan.plan import NATIVE

    return features_of_model(build(network, NATIVE, options).path, {})


def features_from_details(details: Mapping[str, str]) -> Features | None:
    """Return the features that a run stored with its configuration; None if it did not, or not all were counted."""
    try:
        depthwise = float(details["macs_depthwise"])
        return Features(
            macs_dense=float(details["macs_per_inference"]) - depthwise,
            macs_depthwise=depthwise,
            weight_elements=float(details["parameters"]),
            activation_elements=float(details["activation_elements"]),
            layers=float(details["layers"]),
            input_pixels=float(details["input_pixels"]),
            operators=canonical(details.get("operator_types", "").split()),
        )
    except (KeyError, ValueError):
        return None


def family_of(network: str) -> str:
    """Return the family of a network: its name without the numbers at its end (``mobilenet-v2-0.5-96``)."""
    parts = network.split("-")
    while len(parts) > 1 and parts[-1].replace(".", "").replace("_", "").isdecimal():
        parts.pop()
    return "-".join(parts)
