"""What an engine really computes in, from what TensorRT's engine inspector says of its layers.

TensorRT 10 tells type and layout of a tensor in one text (``"Format/Datatype": "Row major linear FP16 format"``), 11
in two (``"Format"``, ``"DataType": "Half"``). Names of kernels tell what multiplies: TF32 shows nowhere else.
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
"""In names such as ``sm90_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwc...``: what is multiplied stands first."""
_PRODUCT: Final = re.compile(r"conv|gemm|matmul|matrix|fully|attention|mha|fprop", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_COPIES: Final = frozenset({"reformat", "noop", "constant", "shape", "shuffle", "cast", "signal", "wait"})


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine, which may be several operators of the model."""

    name: str
    kind: str
    origins: tuple[str, ...]
    """Names of the model's operators in it; empty: not told."""
    precision: str
    """What it computes in; empty: not told, or nothing is computed."""
    is_product: bool
    """It multiplies matrices or convolves."""
    kernel_tells: bool
    """The precision is from the kernel's name, and so tells TF32 from float32."""
    weight: int
    """How much it counts: elements of its weights, or of its outputs where those are not told."""

    @property
    def is_copy(self) -> bool:
        return self.kind.lower() in _COPIES


@dataclass(frozen=True, slots=True)
class Layers:
    """All layers of an engine."""

    items: tuple[Layer, ...]
    detailed: bool
    """The engine tells more of its layers than their names."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What an engine computes in."""

    name: str
    """``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8``; empty: not told."""
    products: str
    """How many of its products and convolutions compute in that precision: ``10 of 11``."""
    evidence: str
    """Where it was read: ``kernels``, ``layers``, or why it is not known."""


def read_layers(text: str) -> Layers:
    """Args: text: ``EngineInspector.get_engine_information`` in JSON; an engine may tell only names, or nothing."""
    try:
        told = json.loads(text)
    except ValueError:
        return Layers((), False)
    found = told.get("Layers", ()) if isinstance(told, Mapping) else ()
    return Layers(
        tuple(_layer(item) for item in found if isinstance(item, (str, Mapping))),
        any(isinstance(item, Mapping) and "Inputs" in item for item in found),
    )


def actual_precision(layers: Layers, tf32: bool | None) -> Precision:
    """The precision of most that is multiplied.

    Args:
        layers: Of the engine.
        tf32: Whether it was built with TF32 allowed; None: not known.
    """
    products = [layer for layer in layers.items if layer.is_product and layer.precision]
    counted = products or [layer for layer in layers.items if layer.precision and not layer.is_copy]
    if not counted:
        why = "its layers have no types" if layers.detailed else "the engine tells only the names of its layers"
        return Precision("", "", f"not known: {why}")
    sizes: dict[str, int] = {}
    named = []
    for layer in counted:
        name = layer.precision
        if name == "fp32" and not layer.kernel_tells and tf32 is not False:
            # Float32 tensors, and TF32 allowed or not known: the kernel alone knows.
            name = "tf32" if tf32 else "fp32 or tf32"
        named.append(name)
        sizes[name] = sizes.get(name, 0) + layer.weight
    most = max(sizes, key=lambda name: sizes[name])
    if most == "fp32 or tf32":
        return Precision("", "", "not known: float32 tensors, and the engine does not tell whether it uses TF32")
    return Precision(
        most,
        f"{named.count(most)} of {len(named)}",
        "kernels" if all(layer.kernel_tells for layer in counted) else "layers",
    )


def _layer(told: str | Mapping[str, Any]) -> Layer:
    if isinstance(told, str):
        return Layer(told, "", (), "", False, False, 0)
    name, kind = str(told.get("Name", "")), str(told.get("LayerType", ""))
    kernel = str(told.get("TacticName", ""))
    inputs, outputs = _tensors(told.get("Inputs")), _tensors(told.get("Outputs"))
    weights = told.get("Weights")
    has_weights = isinstance(weights, Mapping)
    match = _OPERANDS.search(f"_{kernel}_")
    # Layers that Myelin makes (kgen, "ForeignNode") are called after what they hold.
    is_product = has_weights or bool(
        match or _PRODUCT.search(f"{kind} {told.get('ParameterType', '')}") or _PRODUCT.search(kernel)
    )
    types = [found for found in map(_type, inputs) if found] or [found for found in map(_type, outputs) if found]
    precision = _KERNELS[match[1]] if match else types[0] if types else ""
    count = weights.get("Count", 0) if has_weights and isinstance(weights, Mapping) else 0
    size = int(count) if isinstance(count, int) and count > 0 else max(map(_size, outputs), default=1)
    origins = tuple(dict.fromkeys(_ORIGIN.findall(str(told.get("Metadata", "")))))
    return Layer(name, kind, origins, precision, is_product, match is not None, size)


def _tensors(told: Any) -> Sequence[Mapping[str, Any]]:
    return [item for item in told if isinstance(item, Mapping)] if isinstance(told, list) else []


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
