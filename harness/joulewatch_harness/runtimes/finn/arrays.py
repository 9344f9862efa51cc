"""Inputs of an accelerator: made from its data type or read from files, in a type that packs fast if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError

Array = NDArray[np.generic]


def fastest_type(kind: Any) -> np.dtype[Any]:
    """The array type that a driver packs fastest for a FINN data type.

    Whole bytes are passed on as they are; anything else is converted from float32, in which a driver computes.

    Args:
        kind: A data type of qonnx: ``name``, ``bitwidth()``, ``min()``, ``max()``, ...
    """
    name, bits = kind.name, kind.bitwidth()
    if name in (f"INT{bits}", f"UINT{bits}") and bits in (8, 16, 32):
        return np.dtype(f"{'u' if name.startswith('U') else ''}int{bits}")
    return np.dtype("float32")


def random_input(rng: np.random.Generator, kind: Any, shape: tuple[int, ...], array_type: np.dtype[Any]) -> Array:
    """Values from the whole range of a FINN data type.

    Raises:
        ConfigError: the array type cannot hold them.
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
    return converted(values, kind, array_type, "made inputs")


def converted(values: NDArray[Any], kind: Any, array_type: np.dtype[Any], what: str) -> Array:
    """Values as an array of another type, without changing one.

    Raises:
        ConfigError: the array type cannot hold them.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.ascontiguousarray(values.astype(array_type))
    exact = kind.is_integer() or array_type.kind in "iu"
    if exact and not np.array_equal(found.astype(np.float64), values.astype(np.float64)):
        raise ConfigError(f"finn: {what}: values of {kind.name} do not fit into an array of {array_type}")
    return found


def read_inputs(path: Path, kind: Any, shape: tuple[int, ...], array_type: str) -> Array:
    """The rows of a file, checked against what the accelerator takes.

    A driver's fast path looks at no value: a uint8 array given for INT8 would be read as other numbers.

    Args:
        path: The .npy, first axis: rows.
        kind: FINN data type of the input.
        shape: Shape of one row.
        array_type: Type to convert the rows to; empty: as in the file.

    Raises:
        ConfigError: no such file, another shape, a value outside of the data type.
    """
    values = read_npy(path, shape)
    low, high = float(values.min()), float(values.max())
    if low < kind.min() or high > kind.max():
        raise ConfigError(
            f"{path}: values from {low:g} to {high:g}, but the accelerator takes {kind.name}, "
            f"{kind.min():g} to {kind.max():g}: quantise them first"
        )
    if kind.is_integer() and values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise ConfigError(f"{path}: values that are not whole, but the accelerator takes {kind.name}: quantise first")
    wanted = np.dtype(array_type) if array_type else values.dtype
    if wanted.kind == "u" and kind.signed():
        # Positive numbers all of them, but 200 would be packed as -56 one day: the type must be able to say the sign.
        raise ConfigError(f"{path}: an array of {wanted} for a signed input, {kind.name}: convert it to a signed type")
    return converted(values, kind, wanted, str(path))


def read_npy(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """The rows of a .npy file.

    Raises:
        ConfigError: no such file, no .npy, no row, rows of another shape.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}") from error
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise ConfigError(f"{path}: an .npy of numbers is wanted")
    if values.ndim != 1 + len(shape) or values.shape[1:] != shape or not len(values):
        rows = ",".join(["N", *map(str, shape)])
        found = ",".join(map(str, values.shape))
        raise ConfigError(f"{path}: an array of shape [{found}], but the accelerator has [{rows}]")
    return values


def rows(array: Array, batch: int) -> Array:
    """The first ``batch`` rows, repeating the array where it has fewer."""
    return np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0))
