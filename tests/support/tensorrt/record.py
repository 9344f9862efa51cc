"""Names and parameters of the bindings that are installed, as ``api.json`` has them: what the double is compared with.

    python tests/support/tensorrt/record.py > api.json

TensorRT's bindings and CUDA's must be importable; a GPU is not needed. Nothing but names is recorded.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

CLASSES = (
    "Builder", "Runtime", "ICudaEngine", "IExecutionContext", "IBuilderConfig", "INetworkDefinition", "OnnxParser",
    "ParserError", "IOptimizationProfile", "EngineInspector", "IProfiler", "ILogger", "ITimingCache", "IHostMemory",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "ProfilingVerbosity", "LayerInformationFormat",
    "DataType", "TensorIOMode", "TensorLocation",
)  # fmt: skip
FUNCTIONS = re.compile(
    r"cuda(Malloc|MallocHost|Free|FreeHost|MemcpyAsync|SetDevice|GetErrorString|GetErrorName|GetDeviceCount"
    r"|GetDeviceProperties|DriverGetVersion|DeviceGetPCIBusId|StreamCreateWithFlags|StreamDestroy|StreamSynchronize"
    r"|StreamBeginCapture|StreamEndCapture|Event(Create|Record|Synchronize|ElapsedTime|Destroy)"
    r"|Graph(Instantiate|Launch|Destroy|ExecDestroy))"
)
ERRORS = (
    "cudaSuccess", "cudaErrorInvalidValue", "cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver",
    "cudaErrorNoDevice", "cudaErrorInvalidDevice", "cudaErrorInvalidResourceHandle", "cudaErrorNotReady",
    "cudaErrorIllegalAddress", "cudaErrorStreamCaptureUnsupported", "cudaErrorStreamCaptureInvalidated",
)  # fmt: skip


def parameters(doc: str, name: str) -> list[list[str]]:
    """Of each overload, from the signatures in a docstring; an optional one ends in ``=``."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*?)\)(?: ->.*)?$", doc, re.MULTILINE):
        if match[1].startswith("*args"):
            continue
        # Types may hold commas of their own.
        flat = re.sub(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|<[^<>]*>", "", match[1])
        words = [word.strip() for word in flat.split(",") if word.strip()]
        names = [
            re.sub(r"^(?:size_t|unsigned int|unsigned long long|int) ", "", word).partition(":")[0].partition("=")[0]
            + ("=" if "=" in word else "")
            for word in words
        ]
        found.append([word.replace(" ", "") for word in names if word.rstrip("=") != "self"])
    return found


def tensorrt_names() -> dict[str, Any]:
    trt: Any = importlib.import_module("tensorrt")
    classes: dict[str, dict[str, Any]] = {}
    for name in CLASSES:
        kind = getattr(trt, name)
        members = {member: getattr(kind, member) for member in sorted(dir(kind)) if not member.startswith("_")}
        classes[name] = {
            member: "property" if isinstance(found, property) else parameters(found.__doc__ or "", member)
            for member, found in members.items()
            if isinstance(found, property) or (callable(found) and not isinstance(found, type))
        }
    enums = {name: list(getattr(trt, name).__members__) for name in ENUMS}
    enums["ILogger.Severity"] = list(trt.ILogger.Severity.__members__)
    return {trt.__version__: {"classes": classes, "enums": enums}}


def cuda_names() -> dict[str, Any]:
    bindings: Any = importlib.import_module("cuda.bindings")
    runtime: Any = importlib.import_module("cuda.bindings.runtime")
    functions = {
        name: parameters(getattr(runtime, name).__doc__.splitlines()[0], name)[0]
        for name in sorted(dir(runtime))
        if FUNCTIONS.fullmatch(name)
    }
    enums = {
        name: {item.name: int(item) for item in getattr(runtime, name)}
        for name in ("cudaMemcpyKind", "cudaStreamCaptureMode")
    }
    enums["cudaError_t"] = {name: int(getattr(runtime.cudaError_t, name)) for name in ERRORS}
    return {
        bindings.__version__: {
            "functions": functions,
            "enums": enums,
            "constants": {"cudaStreamNonBlocking": int(runtime.cudaStreamNonBlocking)},
            "device_properties": [name for name in dir(runtime.cudaDeviceProp()) if not name.startswith("_")],
        }
    }


def on_one_line(text: str) -> str:
    """JSON whose lists of names, and lists of such lists, take a line each."""
    for pattern in (r"\[\s+([^\[\]{}]*?)\s+\]", r"\[\s+((?:\[[^\[\]]*\],?\s*)+)\]"):
        text = re.sub(pattern, lambda match: "[" + " ".join(match[1].split()) + "]", text)
    return text


if __name__ == "__main__":
    recorded = {"tensorrt": tensorrt_names(), "cuda.bindings.runtime": cuda_names()}
    sys.stdout.write(on_one_line(json.dumps(recorded, indent=1)) + "\n")
