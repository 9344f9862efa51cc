"""The actual precision of an engine, from the layers in TensorRT's engine inspector.

TensorRT 10 has type and layout of a tensor in one text (``"Format/Datatype": "Row major linear FP16 format"``), 11 in
two (``"Format"``, ``"DataType": "Half"``). The names of kernels contain the types of products: only they show TF32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_PRECISIONS: Final[Mapping[str, str]] = {
    "fp4": "fp4",
    "fp8": "fp8",
    "e4m3": "fp8",
    "int4": "int4",
    "int8": "int8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float": "fp32",
    "float32": "fp32",
}
_TYPE: Final = re.compile(
    r"(?<![a-z0-9])(fp4|fp8|e4m3|int4|int8|bfloat16|bf16|fp16|half|fp32|float32|float)(?![a-z0-9])"
)
_KERNELS: Final[Mapping[str, str]] = {
    "tf32": "tf32", "bf16": "bf16", "f16": "fp16", "f32": "fp32", "i8": "int8", "e4m3": "fp8",
}  # fmt: skip
_OPERANDS: Final = re.compile(r"_(tf32|bf16|f16|f32|i8|e4m3)(?:tf32|bf16|f16|f32|i8|e4m3)_")
"""In names such as ``sm90_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwc...``: the factors' types come first."""
_PRODUCT: Final = re.compile(r"conv|gemm|matmul|matrix|fully|attention|mha|fprop", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_COPIES: Final = frozenset({"reformat", "noop", "constant", "shape", "shuffle", "cast", "signal", "wait"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an engine, which may be several operators of the model."""

    name: str
    kind: str
    origins: tuple[str, ...]
    """Names of the model's operators in it; empty: unknown."""
    precision: str
    """Precision of the computation; empty: unknown, or nothing is computed."""
    is_product: bool
    """It is a matrix product or a convolution."""
    is_from_kernel: bool
    """The precision is from the name of the kernel, which distinguishes TF32 from float32."""
    weight: int
    """Weight of the layer: elements of its weights, or of its outputs if those are unknown."""

    @property
    def is_copy(self) -> bool:
        return self.kind.lower() in _COPIES


@dataclass(frozen=True, slots=True)
class Layers:
    """All layers of an engine."""

    items: tuple[Layer, ...]
    detailed: bool
    """The engine contains more than the names of layers."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of an engine."""

    name: str
    """``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8``; empty: unknown."""
    products: str
    """Number of products and convolutions with that precision: ``10 of 11``."""
    evidence: str
    """The source: ``kernels``, ``layers``, or why the precision is unknown."""


def read_layers(text: str) -> Layers:
    """Return the layers in the JSON of ``EngineInspector.get_engine_information``; it may contain only names."""
    try:
        information = json.loads(text)
    except ValueError:
        return Layers((), False)
    entries = information.get("Layers", ()) if isinstance(information, Mapping) else ()
    return Layers(
        tuple(_layer(item) for item in entries if isinstance(item, (str, Mapping))),
        any(isinstance(item, Mapping) and "Inputs" in item for item in entries),
    )


def actual_precision(layers: Layers, tf32: bool | None) -> Precision:
    """Return the precision of most products.

    Args:
        layers: The layers of the engine.
        tf32: Whether TF32 was allowed in the build; None: unknown.
    """
    products = [layer for layer in layers.items if layer.is_product and layer.precision]
    counted = products or [layer for layer in layers.items if layer.precision and not layer.is_copy]
    if not counted:
        why = "its layers have no types" if layers.detailed else "the engine contains only the names of its layers"
        return Precision("", "", f"unknown: {why}")
    sizes: dict[str, int] = {}
    named = []
    for layer in counted:
        name = layer.precision
        if name == "fp32" and not layer.is_from_kernel and tf32 is not False:
            # Float32 tensors, and TF32 is allowed or unknown: only the name of the kernel shows it.
            name = "tf32" if tf32 else "fp32 or tf32"
        named.append(name)
        sizes[name] = sizes.get(name, 0) + layer.weight
    most = max(sizes, key=lambda name: sizes[name])
    if most == "fp32 or tf32":
        return Precision("", "", "unknown: float32 tensors, and the engine does not show whether it uses TF32")
    return Precision(
        most,
        f"{named.count(most)} of {len(named)}",
        "kernels" if all(layer.is_from_kernel for layer in counted) else "layers",
    )


def _layer(information: str | Mapping[str, Any]) -> Layer:
    if isinstance(information, str):
        return Layer(
            name=information, kind="", origins=(), precision="", is_product=False, is_from_kernel=False, weight=0
        )
    name, kind = str(information.get("Name", "")), str(information.get("LayerType", ""))
    kernel = str(information.get("TacticName", ""))
    inputs, outputs = _tensors(information.get("Inputs")), _tensors(information.get("Outputs"))
    weights = information.get("Weights")
    has_weights = isinstance(weights, Mapping)
    match = _OPERANDS.search(f"_{kernel}_")
    # Layers of Myelin (kgen, "ForeignNode") have the names of their operators.
    is_product = has_weights or bool(
        match or _PRODUCT.search(f"{kind} {information.get('ParameterType', '')}") or _PRODUCT.search(kernel)
    )
    types = [known for known in map(_type, inputs) if known] or [known for known in map(_type, outputs) if known]
    precision = _KERNELS[match[1]] if match else types[0] if types else ""
    count = weights.get("Count", 0) if has_weights and isinstance(weights, Mapping) else 0
    size = int(count) if isinstance(count, int) and count > 0 else max(map(_size, outputs), default=1)
    origins = tuple(dict.fromkeys(_ORIGIN.findall(str(information.get("Metadata", "")))))
    return Layer(
        name=name,
        kind=kind,
        origins=origins,
        precision=precision,
        is_product=is_product,
        is_from_kernel=match is not None,
        weight=size,
    )


def _tensors(information: Any) -> Sequence[Mapping[str, Any]]:
    return [item for item in information if isinstance(item, Mapping)] if isinstance(information, list) else []


def _type(tensor: Mapping[str, Any]) -> str:
    for key in ("DataType", "Datatype", "Format/Datatype", "Format"):
        match = _TYPE.search(str(tensor.get(key, "")).lower())
        if match is not None:
            return _PRECISIONS[match[1]]
    return ""


def _size(tensor: Mapping[str, Any]) -> int:
    sizes = tensor.get("Dimensions")
    numbers = [abs(size) for size in sizes if isinstance(size, int)] if isinstance(sizes, list) else []
    return max(1, math.prod(numbers))
