"""The precision of an engine, from what TensorRT's inspector shows of its layers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from joulewatch_harness.runtimes.tensorrt import inspector

CONVOLUTION = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Dimensions": [1, 8, 4, 4], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8"}],
    "Outputs": [{"Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP32"}],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}
SMALL = {**CONVOLUTION, "Weights": {"Count": 10}, "TacticName": "", "Inputs": [{"DataType": "Half"}]}
REFORMAT = {"Name": "r", "LayerType": "Reformat", "Inputs": [{"DataType": "Float"}]}
MYELIN = {"Name": "f", "LayerType": "kgen", "Outputs": [{"DataType": "BFloat16", "Dimensions": [-1, 1 << 20]}]}


def layers_of(*layers: Any) -> inspector.Layers:
    return inspector.read_layers(json.dumps({"Layers": layers}))


@pytest.mark.parametrize(
    ("more", "precision"),
    [
        ({"Inputs": [{"Format/Datatype": "Row major linear FP32"}]}, "fp32"),
        ({"Inputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]}, "fp16"),
        ({"Inputs": [{"Format/Datatype": "Half"}]}, "fp16"),
        ({"Inputs": [{"Format/Datatype": "Row major linear BF16 format"}]}, "bf16"),
        ({"Inputs": [{"Format/Datatype": "Row major linear FP8 format"}]}, "fp8"),
        ({"Inputs": [{"Format": "Row major linear format (kLINEAR)", "DataType": "Float"}]}, "fp32"),
        ({"Inputs": [{"Format": "Channel major (kHWC8)", "DataType": "BFloat16"}]}, "bf16"),
        ({"Inputs": [{"Format": "Row major", "Datatype": "Int8"}]}, "int8"),
        ({"Inputs": [{"Format": "Row major", "DataType": "Int64"}]}, ""),
        ({"Inputs": [{}], "Outputs": "none"}, ""),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc"}, "tf32"),
        ({"TacticName": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"}, "bf16"),
        ({"TacticName": "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64"}, "int8"),
        ({"TacticName": "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn"}, "fp8"),
        ({"TacticName": "sm86_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs"}, "fp32"),
    ],
)
def test_precision_of_a_layer(more: dict[str, Any], precision: str) -> None:
    (layer,) = layers_of({"Name": "l", "LayerType": "x", **more}).items
    assert (layer.precision, layer.is_from_kernel, layer.is_product) == (precision, *["TacticName" in more] * 2)
    (layer,) = layers_of(CONVOLUTION).items
    assert (layer.precision, layer.is_product, layer.weight) == ("int8", True, 131072)
    assert layer.origins == ("conv1", "relu1")


@pytest.mark.parametrize(
    ("layers", "tf32", "expected"),
    [
        ([CONVOLUTION, SMALL, REFORMAT], False, ("int8", "1 of 2", "layers")),
        ([CONVOLUTION, REFORMAT], False, ("int8", "1 of 1", "kernels")),
        ([REFORMAT, {**REFORMAT, "LayerType": "ElementWise"}], False, ("fp32", "1 of 1", "layers")),
        ([SMALL, {**MYELIN, "LayerType": "attention"}], False, ("bf16", "1 of 2", "layers")),
        (
            [{**SMALL, "Inputs": [{"DataType": "Float"}]}],
            None,
            ("", "", "unknown: float32 tensors, and the engine d"),
        ),
        ([{**SMALL, "Inputs": [{"DataType": "Float"}]}], True, ("tf32", "1 of 1", "layers")),
        ([REFORMAT], False, ("", "", "unknown: its layers have no types")),
        *[([text], True, ("", "", "unknown: the engine contains only the names")) for text in ("a", "", "[]", "{}")],
    ],
)
def test_the_most_that_is_multiplied_decides(
    layers: list[Any], tf32: bool | None, expected: tuple[str, str, str]
) -> None:
    text = layers[0] if layers[0] in ("", "[]", "{}") else json.dumps({"Layers": layers})
    precision = inspector.actual_precision(inspector.read_layers(text), tf32)
    assert (precision.name, precision.products) == expected[:2]
    assert precision.evidence.startswith(expected[2])
