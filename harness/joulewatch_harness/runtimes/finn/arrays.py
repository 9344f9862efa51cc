"""Inputs of an accelerator: random from its data type or read from files, in a type that packs fast if possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError

Array = NDArray[np.generic]


def fastest_type(kind: Any) -> np.dtype[Any]:
    """Return the array type that a driver packs fastest for a FINN data type.

    Whole bytes are passed unchanged; all other types are converted from float32, the type of the driver's computation.

    Args:
        kind: A data type of qonnx: ``name``, ``bitwidth()``, ``min()``, ``max()``, ...
    """
    name, bits = kind.name, kind.bitwidth()
    if name in (f"INT{bits}", f"UINT{bits}") and bits in (8, 16, 32):
        return np.dtype(f"{'u' if name.startswith('U') else ''}int{bits}")
    return np.dtype("float32")


def random_input(rng: np.random.Generator, kind: Any, shape: tuple[int, ...], array_type: np.dtype[Any]) -> Array:
    """Return random values from the whole range of a FINN data type.

    Raises:
        ConfigError: the array type cannot represent them.
    """
    values: NDArray[Any]
    if kind.name == "BIPOLAR":
        values = 2 * rng.integers(0, 2, shape) - 1
    elif kind.is_fixed_point():
        scale = kind.scale_factor()
        values = rng.integers(round(kind.min() / scale), round(kind.max() / scale), shape, endpoint=True) * scale
    elif kind.is_integer():
        values = rng.integers(int(kind.min()), int(kind.max()), shape, endpoint=True)
    else:
        values = rng.standard_normal(shape)
    return converted(values, kind, array_type, "random inputs")


def converted(values: NDArray[Any], kind: Any, array_type: np.dtype[Any], source: str) -> Array:
    """Return the same values as an array of another type.

    Raises:
        ConfigError: the array type cannot represent them.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        array = np.ascontiguousarray(values.astype(array_type))
    exact = kind.is_integer() or array_type.kind in "iu"
    if exact and not np.array_equal(array.astype(np.float64), values.astype(np.float64)):
        raise ConfigError(f"finn: {source}: values of {kind.name} do not fit into an array of {array_type}")
    return array


def read_inputs(path: Path, kind: Any, shape: tuple[int, ...], array_type: str) -> Array:
    """Return the rows of a file after a check against the data type of the accelerator.

    The driver's fast path does not check values: a uint8 array for INT8 would be read as other numbers.

    Args:
        path: The .npy, first axis: rows.
        kind: FINN data type of the input.
        shape: Shape of one row.
        array_type: Type to convert the rows to; empty: as in the file.

    Raises:
        ConfigError: the file is missing, or shape or values do not fit the input.
    """
    values = read_npy(path, shape)
    low, high = float(values.min()), float(values.max())
    if low < kind.min() or high > kind.max():
        raise ConfigError(
            f"{path}: values from {low:g} to {high:g}, but the input is {kind.name}, "
            f"{kind.min():g} to {kind.max():g}: quantise them first"
        )
    if kind.is_integer() and values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise ConfigError(f"{path}: values are not integers, but the input is {kind.name}: quantise them first")
    target = np.dtype(array_type) if array_type else values.dtype
    if target.kind == "u" and kind.signed():
        # The type must have a sign: otherwise a value of 200 would be packed as -56.
        raise ConfigError(f"{path}: an array of {target} for a signed input, {kind.name}: convert it to a signed type")
    return converted(values, kind, target, str(path))


def read_npy(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the rows of a .npy file.

    Raises:
        ConfigError: the file is missing or not a valid .npy file, has no rows, or rows of another shape.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}") from error
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise ConfigError(f"{path}: must be an .npy file of numbers")
    if values.ndim != 1 + len(shape) or values.shape[1:] != shape or not len(values):
        rows = ",".join(["N", *map(str, shape)])
        shape_text = ",".join(map(str, values.shape))
        raise ConfigError(f"{path}: the array has the shape [{shape_text}], but the accelerator has [{rows}]")
    return values


def rows(array: Array, batch: int) -> Array:
    """Return ``batch`` rows of an array, which is repeated if it has fewer."""
    return np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0))
