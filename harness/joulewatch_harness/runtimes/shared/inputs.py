"""Inputs of model files: the arrays of a batch, and the options that set them.

No runtime is imported in this module, nor any package that only one of them needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.binder import Limits
from joulewatch_harness.errors import ConfigError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.runtimes.shared.options import RuntimeOptions
from joulewatch_harness.runtimes.shared.signature import Input

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays, ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Makes the inputs of a batch: from an .npz file, by the built-in network, or random from the signature."""

    model: str
    """Name of the model in errors."""
    inputs: tuple[Input, ...]
    source: ModelSource
    dims: Mapping[str, int]
    seed: int = 0
    file_arrays: Arrays | None = None

    def check_size(self, batch: int) -> None:
        """Check that the model accepts this batch size.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size.
        """
        fixed = [item.shape[0] for item in self.inputs if item.shape and isinstance(item.shape[0], int)]
        symbolic = any(item.shape and not isinstance(item.shape[0], int) for item in self.inputs)
        if fixed and not symbolic and batch != fixed[0]:
            raise UnsupportedBatchError(f"{self.model} has a fixed batch axis of {fixed[0]}, not {batch}")

    def size_for_check(self) -> int:
        """Return a small batch size that the model accepts."""
        first = next((item.shape[0] for item in self.inputs if item.shape), 1)
        return first if isinstance(first, int) else 8

    def arrays(self, batch: int) -> Arrays:
        """Return the arrays of one batch by the name of the input.

        Raises:
            ConfigError: a symbolic dimension has no size; the text contains the option that sets it.
        """
        if self.file_arrays is not None:
            return {name: rows(array, batch) for name, array in self.file_arrays.items()}
        if self.source.make_inputs is not None:
            return self.source.make_inputs(batch)
        rng = np.random.default_rng(self.seed)
        return {item.name: random_array(rng, item.dtype, self.shape(item, batch)) for item in self.inputs}

    def sizes(self) -> dict[str, int]:
        """Return the sizes of symbolic dimensions except the batch: of ``dims``, and of the arrays by axis."""
        found = dict(self.dims)
        for name, array in (self.file_arrays or {}).items():
            found |= {f"{name}.{axis}": size for axis, size in enumerate(array.shape) if axis}
        return found

    def shape(self, item: Input, batch: int) -> tuple[int, ...]:
        """Return the input's shape for this batch size, with numbers for all symbols.

        An array of the .npz file gives all sizes but the batch. Otherwise the batch's symbol means the batch on any
        axis, and ``dims`` gives the other sizes.

        Raises:
            ConfigError: a symbolic dimension has no size; the text contains the option that sets it.
        """
        if self.file_arrays is not None:
            return (batch, *self.file_arrays[item.name].shape[1:])[: len(item.shape)]
        batch_names = {other.shape[0] for other in self.inputs if other.shape and isinstance(other.shape[0], str)}
        sizes: list[int] = []
        for axis, size in enumerate(item.shape):
            if isinstance(size, int):
                sizes.append(size)
            elif axis == 0 or size in batch_names:
                sizes.append(batch)
            else:
                key = size if size is not None and size in self.dims else f"{item.name}.{axis}"
                if key not in self.dims:
                    raise ConfigError(
                        f"{self.model}: dimension {size or axis!r} of input {item.name!r} has no size: "
                        f"set it with --option dims={size or key}=N, or give arrays with --option inputs=FILE.npz"
                    )
                sizes.append(self.dims[key])
        return tuple(sizes)


@dataclass(frozen=True, kw_only=True)
class InputOptions(RuntimeOptions):
    """Options of the runtimes whose inputs are tensors."""

    inputs: Path | None = None
    """An .npz file with one array per input. Default: random numbers."""
    dims: Mapping[str, Annotated[int, Limits(ge=1)]] = field(default_factory=dict)
    """Sizes of symbolic dimensions other than the batch: ``sequence=128,ids.2=16``."""
    seed: Annotated[int, Limits(ge=0)] = 0
    """Seed of random inputs."""

    def batches(self, model: str, inputs: tuple[Input, ...], source: ModelSource) -> Batches:
        """Return the maker of batches for a model with these inputs.

        Raises:
            ConfigError: the .npz file is missing, or its arrays do not match the inputs.
        """
        arrays = None if self.inputs is None else read_inputs(self.inputs, inputs)
        return Batches(model=model, inputs=inputs, source=source, dims=self.dims, seed=self.seed, file_arrays=arrays)


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return values that any model accepts: standard normal, all values of a byte, or 0 and 1."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    if kind.itemsize == 1 and kind.kind in "iu":
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    # Wider integers are mostly indices (token ids) of unknown range; 0 and 1 are valid in every table.
    return rng.integers(0, 2, shape).astype(kind)


def read_npz(path: Path) -> Arrays:
    """Return the arrays of a file by name.

    Raises:
        ConfigError: the file is missing, or is not a valid .npz file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ConfigError(f"no input file {path}") from error
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as .npz: {error}") from error


def read_inputs(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    """Return the arrays of a file, which must match the signature of the model.

    Raises:
        ConfigError: as of ``read_npz``; name, type or shape of an array do not match the model.
    """
    arrays = read_npz(path)
    names = {item.name for item in inputs}
    for name in arrays:
        if name not in names:
            raise ConfigError(f"{path}: {unknown('input', name, names)}")
    for item in inputs:
        if item.name not in arrays:
            raise ConfigError(f"{path} has no array {item.name!r}; the model requires {item.text()}")
        array = arrays[item.name]
        sizes = zip(array.shape[1:], item.shape[1:], strict=False)
        if (
            array.ndim != len(item.shape)
            or str(array.dtype) != item.dtype
            or (array.ndim and not len(array))
            or any(isinstance(required, int) and required != size for size, required in sizes)
        ):
            shape = ",".join(map(str, array.shape))
            raise ConfigError(f"{path}: {item.name} is {array.dtype}[{shape}], but the model requires {item.text()}")
    return {item.name: arrays[item.name] for item in inputs}


def rows(array: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Return ``batch`` rows of an array, which is repeated if it has fewer."""
    return array if array.ndim == 0 else np.take(array, np.arange(batch) % len(array), axis=0)
