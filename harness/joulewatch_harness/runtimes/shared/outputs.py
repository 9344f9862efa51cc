"""Checks of outputs: compare them with those of a reference.

The measure is the RMS error divided by the reference's standard deviation: one number for any shape and scale that a
single element does not dominate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import WrongOutputsError

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays, ModelSource

logger = logging.getLogger(__name__)

NOT_FINITE: Final = "not_finite_outputs"
"""Detail of a network: which outputs are not finite, and what may help."""
TOLERANCES: Final[Mapping[str, float]] = {
    "fp64": 1e-3,
    "fp32": 1e-3,
    "tf32": 2e-2,
    "fp16": 2e-2,
    "bf16": 0.1,
    "int8": 0.25,
}
"""Actual precision -> tolerance, also for random weights: quantisation costs 0.1, ten layers in bfloat16 0.01."""


def check_finite(model: str, outputs: Mapping[str, NDArray[Any]], *, strict: bool) -> dict[str, str]:
    """Check that all outputs are finite numbers.

    Args:
        model: Name of the model in errors.
        outputs: Its outputs.
        strict: An output that is not finite is wrong; otherwise it is a warning.

    Returns:
        A detail for the description of the network; empty if all outputs are finite.

    Raises:
        WrongOutputsError: an output is not finite, with ``strict``.
    """
    names = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.all(np.isfinite(array))]
    if not names:
        return {}
    if strict:
        raise WrongOutputsError(f"{model}: output {names[0]!r} is not finite")
    text = (
        f"{', '.join(names)}: NaN or infinite; if these inputs are the reason, give others with "
        "--option inputs=FILE.npz"
    )
    logger.warning("%s: outputs are not finite: %s", model, text)
    return {NOT_FINITE: text[:400]}


def check_close(model: str, reference: str, output: NDArray[Any], expected: NDArray[Any], precision: str) -> None:
    """Check that an output agrees with a reference, within the tolerance of the precision.

    Args:
        model: Name of the model in errors.
        reference: Name of the reference in errors.
        output: Output of the runtime under test.
        expected: Output of the reference.
        precision: Precision that selects the tolerance.

    Raises:
        WrongOutputsError: the shapes differ, or the values differ by more than the tolerance.
    """
    if output.shape != expected.shape:
        raise WrongOutputsError(
            f"{model}: an output has the shape {output.shape}, that of {reference} is {expected.shape}"
        )
    if expected.dtype.kind != "f" or not expected.size:
        return
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(output), finite):
        raise WrongOutputsError(f"{model}: an output is finite in other places than that of {reference}")
    output, expected = output[finite], expected[finite]
    if not expected.size:
        return
    scale = float(np.std(expected)) or float(np.max(np.abs(expected))) or 1.0
    difference = output.astype(np.float64) - expected.astype(np.float64)
    error = float(np.sqrt(np.mean(difference**2))) / scale
    tolerance = TOLERANCES.get(precision, TOLERANCES["fp32"])
    if not error <= tolerance:
        raise WrongOutputsError(
            f"{model}: outputs differ from {reference} by {error:.2g} (RMS over the standard deviation; the limit for "
            f"{precision} is {tolerance:g}): this build computes wrong results"
        )


def check_outputs(
    source: ModelSource,
    arrays: Arrays,
    outputs: Mapping[str, NDArray[Any]],
    precision: str,
    *,
    name: str = "",
    compare_file: bool = True,
) -> dict[str, str]:
    """Check the outputs of one batch.

    The first output of a built-in network must agree with the network's numpy reference, the outputs of an .onnx file
    with those of ONNX Runtime if it is installed. Those of a built-in network must be finite.

    Args:
        source: The model.
        arrays: The inputs of the batch.
        outputs: Name -> array, in the model's order.
        precision: The precision that the runtime computes in.
        name: Name of the model in errors; empty: that of its file.
        compare_file: False: do not compare with ONNX Runtime.

    Returns:
        Details for the description of the network.

    Raises:
        WrongOutputsError: the outputs are wrong; the text contains the difference.
    """
    name = name or source.path.name
    details = check_finite(name, outputs, strict=source.reference is not None)
    # The rounding of a file of few bits is in the outputs, even if the runtime computes in a wider type.
    looser = max(precision, source.precision, key=lambda word: TOLERANCES.get(word, 0.0))
    if source.reference is not None:
        check_close(name, "the reference", next(iter(outputs.values())), source.reference(arrays), looser)
    elif compare_file and source.path.suffix == ".onnx":
        expected = onnxruntime_outputs(source.path, arrays)
        for output, other in zip(outputs.values(), expected or (), strict=False):
            check_close(name, "ONNX Runtime", output, other, looser)
    return details


def onnxruntime_outputs(path: Path, arrays: Arrays) -> Sequence[NDArray[Any]] | None:
    """Return the outputs of ONNX Runtime on the CPU; None if it is not installed or cannot run the file."""
    try:
        import onnxruntime
    except ImportError:
        return None
    try:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # fatal errors only: others are exceptions
        # Without optimisation: the optimiser would turn some products into integer ones.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(None, dict(arrays))]
    except Exception:
        # The runtime under test is another one: an error of ONNX Runtime is not its fault.
        return None
