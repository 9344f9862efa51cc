"""NVIDIA TensorRT, 10 and 11: built-in networks, plain .onnx files, and engines that are built already.

No NVIDIA GPU was at hand when this was written: it is tested against a double of TensorRT's and CUDA's Python
bindings, whose names and parameters were compared with the real ones.

The precision is the file's: float32, float16 or quantised. Flags that let TensorRT choose are not used (TensorRT 11
has none). Only TF32 is a setting, for float32 files, and by TensorRT's default it is on: here ``fp32`` sets it off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.plan import NATIVE
from joulewatch_harness.runtimes.model_files import find_source
from joulewatch_harness.runtimes.tensorrt import libraries
from joulewatch_harness.runtimes.tensorrt.engine import SUFFIXES
from joulewatch_harness.runtimes.tensorrt.network import TensorRtNetwork
from joulewatch_harness.runtimes.tensorrt.options import FOR_BUILDING, Options

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", NATIVE)


def open_network(network: str, precision: str, options: Mapping[str, str]) -> TensorRtNetwork:
    """The entry point named in ``runtimes.RUNTIMES``.

    Raises:
        ConfigError: unknown network, option or precision; no such file; TensorRT or CUDA's bindings missing.
    """
    found = libraries.find()
    if precision not in PRECISIONS:
        raise ConfigError(f"tensorrt: {unknown('precision', precision, PRECISIONS)}")
    stored = "fp32" if precision == "tf32" else precision
    source, rest = find_source("tensorrt", network, stored, options, Options.keys(), (".onnx", *SUFFIXES))
    if Path(network).suffix in SUFFIXES:
        for key in FOR_BUILDING:
            if key in rest:
                raise ConfigError(f"tensorrt: {network} is built already: leave out the option {key}")
        if precision == "tf32":
            raise ConfigError(f"tensorrt: {network} is built already, with TF32 or without: ask for {NATIVE}")
    return TensorRtNetwork(found, source, precision, Options.parse(rest))
