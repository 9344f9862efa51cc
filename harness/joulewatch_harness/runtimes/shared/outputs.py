"""Whether a runtime computes rightly: its outputs beside those of a reference.

The measure is the RMS error over the reference's standard deviation: one number for any shape and scale, which
a single unlucky element does not decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import NetworkError

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays, ModelSource

TOLERANCES: Final[Mapping[str, float]] = {
    "fp64": 1e-3,
    "fp32": 1e-3,
    "tf32": 2e-2,
    "fp16": 2e-2,
    "bf16": 0.1,
    "int8": 0.25,
}
"""By actual precision, for weights of any kind: random ones quantise to 0.1, lose 0.01 in bfloat16 over ten layers."""


def check_finite(model: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Whether all outputs are numbers.

    Raises:
        NetworkError: one is not.
    """
    for name, array in outputs.items():
        if np.issubdtype(array.dtype, np.floating) and not np.all(np.isfinite(array)):
            raise NetworkError(f"{model}: output {name!r} is not finite")


def check_close(model: str, what: str, output: NDArray[Any], wanted: NDArray[Any], precision: str) -> None:
    """Whether an output agrees with a reference, as closely as the precision allows.

    Args:
        model: What errors call the model.
        what: What errors call the reference.
        output: Of the runtime under test.
        wanted: Of the reference.
        precision: What the runtime computes in.

    Raises:
        NetworkError: they differ in shape or by more than that.
    """
    if output.shape != wanted.shape:
        raise NetworkError(f"{model}: an output of shape {output.shape}, where {what} gives {wanted.shape}")
    if not np.issubdtype(wanted.dtype, np.floating) or not wanted.size:
        return
    scale = float(np.std(wanted)) or float(np.max(np.abs(wanted))) or 1.0
    difference = output.astype(np.float64) - wanted.astype(np.float64)
    error = float(np.sqrt(np.mean(difference**2))) / scale
    tolerance = TOLERANCES.get(precision, TOLERANCES["fp32"])
    if not error <= tolerance:
        raise NetworkError(
            f"{model}: outputs differ from {what} by {error:.2g} (RMS over the "
            f"standard deviation; at most {tolerance:g} for {precision}): this build computes wrongly"
        )


def check_outputs(
    source: ModelSource,
    arrays: Arrays,
    outputs: Mapping[str, NDArray[Any]],
    precision: str,
    *,
    name: str = "",
    compare_file: bool = True,
) -> None:
    """Check the outputs of one batch.

    All must be finite. The first output of a built-in network must agree with the network's numpy reference, the
    outputs of an .onnx file with those of ONNX Runtime if it is installed.

    Args:
        source: The model.
        arrays: The inputs of the batch.
        outputs: Name -> array, in the model's order.
        precision: What the runtime computes in.
        name: What errors call the model; empty: the name of its file.
        compare_file: False: do not compare with ONNX Runtime.

    Raises:
        NetworkError: the outputs are wrong; the text says how.
    """
    name = name or source.path.name
    check_finite(name, outputs)
    # The rounding of a file of few bits is in the outputs, even if the runtime computes in a wider type.
    looser = max(precision, source.precision, key=lambda word: TOLERANCES.get(word, 0.0))
    if source.reference is not None:
        check_close(name, "the reference", next(iter(outputs.values())), source.reference(arrays), looser)
    elif compare_file and source.path.suffix == ".onnx":
        expected = onnxruntime_outputs(source.path, arrays)
        for output, other in zip(outputs.values(), expected or (), strict=False):
            check_close(name, "ONNX Runtime", output, other, looser)


def onnxruntime_outputs(path: Path, arrays: Arrays) -> Sequence[NDArray[Any]] | None:
    """What ONNX Runtime gives for an .onnx file on the CPU; None where it is not installed or cannot run the file."""
    try:
        import onnxruntime
    except ImportError:
        return None
    onnxruntime.set_default_logger_severity(3)
    try:
        settings = onnxruntime.SessionOptions()
        # As the file says, operator by operator: its optimiser would itself turn some products into integer ones.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(None, dict(arrays))]
    except Exception:
        # The file is on trial in another runtime: what this one makes of it is not its fault.
        return None
