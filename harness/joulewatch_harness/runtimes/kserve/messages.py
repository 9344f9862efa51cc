"""The messages of KServe v2 over gRPC that joulewatch uses.

They are described in this file and created when they are needed, in a separate pool: generated code would tie
joulewatch to one major version of protobuf, and its names would collide with those of other clients of the protocol in
the same process. Fields that are not listed are skipped when a message is read.

Source: KServe, Open Inference Protocol v2, gRPC; Triton, statistics, model configuration and model repository
extensions. The tests compare them with bytes that tritonclient wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

PACKAGE: Final = "inference"

_MESSAGES: Final[Mapping[str, str]] = {
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 string name, 2 string version, 3 string* extensions",
    "ModelMetadataRequest": "1 string name, 2 string version",
    "ModelMetadataResponse": (
        "1 string name, 2 string* versions, 3 string platform, 4 TensorMetadata* inputs, 5 TensorMetadata* outputs"
    ),
    "TensorMetadata": "1 string name, 2 string datatype, 3 int64* shape",
    "ModelReadyRequest": "1 string name, 2 string version",
    "ModelReadyResponse": "1 bool ready",
    "ModelConfigRequest": "1 string name, 2 string version",
    "ModelConfigResponse": "1 ModelConfig config",
    "ModelConfig": ("1 string name, 4 int32 max_batch_size, 7 ModelInstanceGroup* instance_group, 17 string backend"),
    "ModelInstanceGroup": "1 string name, 4 int32 kind",
    "ModelStatisticsRequest": "1 string name, 2 string version",
    "ModelStatisticsResponse": "1 ModelStatistics* model_stats",
    "ModelStatistics": "1 string name, 2 string version, 6 InferStatistics inference_stats",
    "InferStatistics": (
        "1 StatisticDuration success, 3 StatisticDuration queue, 4 StatisticDuration compute_input, "
        "5 StatisticDuration compute_infer, 6 StatisticDuration compute_output, 7 StatisticDuration cache_hit"
    ),
    "StatisticDuration": "1 uint64 count, 2 uint64 ns",
    "RepositoryIndexRequest": "1 string repository_name",
    "RepositoryIndexResponse": "1 ModelIndex* models",
    "ModelIndex": "1 string name, 2 string version, 3 string state",
    "ModelInferRequest": (
        "1 string model_name, 2 string model_version, 5 InferInputTensor* inputs, "
        "6 InferRequestedOutputTensor* outputs, 7 bytes* raw_input_contents"
    ),
    "InferInputTensor": "1 string name, 2 string datatype, 3 int64* shape",
    "InferRequestedOutputTensor": "1 string name",
    "ModelInferResponse": "1 string model_name, 2 string model_version, 5 InferOutputTensor* outputs, "
    "6 bytes* raw_output_contents",
    "InferOutputTensor": "1 string name, 2 string datatype, 3 int64* shape, 5 InferTensorContents contents",
    "InferTensorContents": (
        "1 bool* bool_contents, 2 int32* int_contents, 3 int64* int64_contents, 4 uint32* uint_contents, "
        "5 uint64* uint64_contents, 6 float* fp32_contents, 7 double* fp64_contents"
    ),
}
"""Message -> its fields: number, type (``*``: repeated), name. Nested messages of the source have unique names."""


def message_classes() -> Mapping[str, Any]:
    """Return the class of each message.

    Raises:
        ModuleNotFoundError: protobuf is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="joulewatch/kserve.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, kind, many, field in re.findall(r"(\d+) (\w+)(\*?) (\w+)", fields):
            added = message.field.add(
                name=field,
                number=int(number),
                label=kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL,
            )
            if kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }
