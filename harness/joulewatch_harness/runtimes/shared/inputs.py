"""Inputs of model files: the arrays of a batch, and the options that set them.

No runtime is imported in this module, nor any package that only one of them needs.
"""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.binder import Limits, Parse
from joulewatch_harness.errors import ConfigError, UnsupportedBatchError
from joulewatch_harness.names import refuse_unknown, unknown
from joulewatch_harness.runtimes.shared.batch_axes import (
    Axes,
    BatchAxis,
    describe_axes,
    doubtful,
    find_batch_axes,
    parse_batch_axes,
)
from joulewatch_harness.runtimes.shared.options import RuntimeOptions
from joulewatch_harness.runtimes.shared.signature import Input
from joulewatch_harness.runtimes.shared.values import Rule, describe_rules, find_rules, is_setting, made_up, shortened

if TYPE_CHECKING:
    from joulewatch_harness.networks import Arrays, ModelSource
    from joulewatch_harness.networks.graphs import Sizes
    from joulewatch_harness.runtimes.shared.uses import Use

logger = logging.getLogger(__name__)

SAMPLE_RATE: Final = "16000"
"""Example of a value in errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Makes the inputs of a batch: from an .npz file, by the built-in network, or random from the signature."""

    model: str = ""
    """Name of the model in errors."""
    inputs: tuple[Input, ...] = ()
    source: ModelSource
    axes: Axes = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    """Sizes of symbolic dimensions other than the batch, by symbol or as ``input.axis``."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Inputs whose elements all have one value."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """How the values of other inputs are made."""
    seed: int = 0
    file_arrays: Arrays | None = None

    def describe(self) -> dict[str, str]:
        """Return the inputs for the description of a network."""
        described = {"inputs": " ".join(item.text() for item in self.inputs)}
        if axes := describe_axes(self.inputs, self.axes):
            described["batch_axes"] = shortened(axes, " ")
        if (fixed := self.fixed_size) is not None:
            described["fixed_batch"] = str(fixed)
        if text := describe_rules(self.rules):
            described["input_values"] = text
        if text := made_up(self.rules):
            described["made_up_inputs"] = text
        return described

    @property
    def fixed_size(self) -> int | None:
        """The only batch size that the model accepts; 1 without a batch axis, None if the batch axis is open."""
        sizes = [item.shape[axis] for item in self.inputs for axis in self.axes.get(item.name, ())]
        fixed = [size for size in sizes if isinstance(size, int)]
        return fixed[0] if fixed else None if sizes else 1

    def check_size(self, batch: int) -> None:
        """Check that the model accepts this batch size.

        Raises:
            UnsupportedBatchError: the model has no batch axis, or one that is fixed to another size.
        """
        fixed = self.fixed_size
        if fixed is None or batch == fixed:
            return
        if not any(self.axes.values()):
            raise UnsupportedBatchError(f"{self.model} has no batch axis: its only batch size is 1, not {batch}")
        raise UnsupportedBatchError(f"{self.model} has a fixed batch axis of {fixed}, not {batch}")

    def size_for_check(self) -> int:
        """Return a small batch size that the model accepts."""
        return self.fixed_size or 8

    def arrays(self, batch: int) -> Arrays:
        """Return the arrays of one batch by the name of the input, each in one piece of memory.

        Raises:
            ConfigError: a symbolic dimension has no size; the text contains the option that sets it.
        """
        arrays = {**self._made(batch), **self._constant(batch)}
        # Not by ascontiguousarray, which gives a number an axis.
        return {name: np.asarray(array, order="C") for name, array in arrays.items()}

    def _made(self, batch: int) -> Arrays:
        if self.file_arrays is not None:
            return {name: tiled(array, self.axes[name], batch) for name, array in self.file_arrays.items()}
        if self.source.make_inputs is not None:
            return self.source.make_inputs(batch)
        rng, shapes = np.random.default_rng(self.seed), self.shapes(batch)
        items = {item.name: item for item in self.inputs}
        return {name: rule.array(rng, items[name], self.axes[name], shapes) for name, rule in self.rules.items()}

    def _constant(self, batch: int) -> Arrays:
        fixed = [item for item in self.inputs if item.name in self.values]
        return {item.name: np.full(self.shape(item, batch), self.values[item.name], item.dtype) for item in fixed}

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all inputs for this batch size.

        Raises:
            ConfigError: as of ``shape``.
        """
        return {item.name: self.shape(item, batch) for item in self.inputs}

    def shape(self, item: Input, batch: int) -> tuple[int, ...]:
        """Return the input's shape for this batch size, with numbers for all symbols.

        Raises:
            ConfigError: a symbolic dimension has no size; the text contains the option that sets it.
        """
        axes = self.axes.get(item.name, ())
        given = (self.file_arrays or {}).get(item.name)
        known = {**self._sizes_in_file(), **self.dims}
        sizes: list[int] = []
        for axis, size in enumerate(item.shape):
            if isinstance(size, int):
                sizes.append(size)
            elif axis in axes:
                sizes.append(batch)
            elif given is not None:
                sizes.append(given.shape[axis])
            else:
                key = size if size is not None and size in known else f"{item.name}.{axis}"
                if key not in known:
                    raise ConfigError(self._without_size(item, axis))
                sizes.append(known[key])
        return tuple(sizes)

    def sizes(self) -> Sizes:
        """Return the sizes for the cost of an inference.

        Raises:
            ConfigError: as of ``shape``.
        """
        from joulewatch_harness.networks.graphs import Sizes

        batch = self.fixed_size or 1
        return Sizes(batch, self.shapes(batch))

    def cost_details(self, path: Path) -> dict[str, str]:
        """Return the costs of the model file at these sizes, or the reason why they are unknown.

        Raises:
            ConfigError: The file cannot be read.
        """
        from joulewatch_harness.networks.cost import cost_details

        try:
            sizes = self.sizes()
        except ConfigError as error:
            return {"not_counted": str(error)[:400]}
        return cost_details(path, sizes)

    def _without_size(self, item: Input, axis: int) -> str:
        symbol = item.shape[axis]
        text = (
            f"{self.model}: dimension {symbol or axis!r} of input {item.name!r} has no size: "
            f"set it with --option dims={symbol or f'{item.name}.{axis}'}=N"
        )
        if not self.axes.get(item.name):
            text += f", or with --option batch_axis={item.name}:{axis} if it is the batch"
        return f"{text}, or give arrays with --option inputs=FILE.npz"

    def _sizes_in_file(self) -> dict[str, int]:
        """Return the sizes of symbols, except the batch, in the arrays of the file."""
        return {
            size: array.shape[axis]
            for item in self.inputs
            if (array := (self.file_arrays or {}).get(item.name)) is not None
            for axis, size in enumerate(item.shape)
            if isinstance(size, str) and axis not in self.axes.get(item.name, ())
        }


@dataclass(frozen=True, kw_only=True)
class InputOptions(RuntimeOptions):
    """Options of the runtimes whose inputs are tensors."""

    inputs: Path | None = None
    """An .npz file with one array per input. Default: random numbers."""
    dims: Mapping[str, Annotated[int, Limits(ge=0)]] = field(default_factory=dict)
    """Sizes of symbolic dimensions other than the batch: ``sequence=128,ids.2=16``."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Inputs with one value for all elements, such as a sample rate: ``sr=16000,training=0``."""
    batch_axis: Annotated[tuple[BatchAxis, ...], Parse(parse_batch_axes)] = ()
    """Batch axis of inputs, ``state:1,table:none``. Default: the axis named batch, B or N, or the first one."""
    seed: Annotated[int, Limits(ge=0)] = 0
    """Seed of random inputs."""

    def batches(
        self,
        model: str,
        inputs: tuple[Input, ...],
        source: ModelSource,
        find_uses: Callable[[Batches], Mapping[str, Use]] | None = None,
    ) -> Batches:
        """Return the maker of batches for a model with these inputs.

        Args:
            model: Name of the model in errors.
            inputs: Its inputs.
            source: Where it comes from.
            find_uses: Returns how the model uses its inputs, from batches of guessed values. None: as in the graph of
                an .onnx file, and unknown for other files.

        Raises:
            ConfigError: an option names an input or a dimension that does not exist; the .npz file is missing, or its
                arrays do not match the inputs.
        """
        axes = find_batch_axes(model, inputs, self.batch_axis)
        if not self.batch_axis:
            for item in doubtful(inputs, axes):
                logger.warning(
                    "%s: axis 0 of input %s is taken as the batch, although its name is %r: if it is not, set --option "
                    "batch_axis=%s:AXIS, or %s:none",
                    model, item.name, item.shape[0], item.name, item.name,
                )  # fmt: skip
        self._check_dims(model, inputs, axes)
        self._check_values(model, inputs)
        arrays = None if self.inputs is None else self._read_inputs(self.inputs, inputs, axes)
        batches = Batches(
            model=model,
            inputs=inputs,
            source=source,
            axes=axes,
            dims=self.dims,
            values=self.values,
            seed=self.seed,
            file_arrays=arrays,
        )
        if arrays is not None or source.make_inputs is not None:
            return batches
        return dataclasses.replace(batches, rules=self._rules(batches, find_uses or _uses))

    def _rules(self, batches: Batches, find_uses: Callable[[Batches], Mapping[str, Use]]) -> dict[str, Rule]:
        """Return how the values of the inputs are made that have none.

        Raises:
            ConfigError: an input is a setting, whose value only the user can know.
        """
        guessed = dataclasses.replace(batches, rules=self._needed(find_rules(batches.inputs, batches.axes, {})))
        rules = self._needed(find_rules(batches.inputs, batches.axes, find_uses(guessed)))
        for item in batches.inputs:
            if item.name in rules and is_setting(item, batches.axes, rules[item.name]):
                example = SAMPLE_RATE if item.name.lower() in ("sr", "sample_rate", "sampling_rate") else "NUMBER"
                raise ConfigError(
                    f"{batches.model}: input {item.text()} is a single number, and its value is not known: set it with "
                    f"--option values={item.name}={example}, or give arrays with --option inputs=FILE.npz"
                )
        return rules

    def _needed(self, rules: Mapping[str, Rule]) -> dict[str, Rule]:
        """Return the rules of the inputs without a fixed value."""
        return {name: rule for name, rule in rules.items() if name not in self.values}

    def _check_dims(self, model: str, inputs: Sequence[Input], axes: Axes) -> None:
        """Check that each size is that of an open dimension other than the batch.

        Raises:
            ConfigError: one is not.
        """
        valid: set[str] = set()
        of_batch: dict[str, str] = {}
        fixed: dict[str, int] = {}
        for item in inputs:
            for axis, size in enumerate(item.shape):
                if isinstance(size, int):
                    fixed[f"{item.name}.{axis}"] = size
                else:
                    names = {f"{item.name}.{axis}", *([size] if size else [])}
                    if axis in axes[item.name]:
                        of_batch |= dict.fromkeys(names, item.name)
                    else:
                        valid |= names
        for name in self.dims:
            if name in fixed:
                raise ConfigError(f"{model}: option dims: {name!r} is fixed to {fixed[name]} in the model: remove it")
            if name in of_batch and name not in valid:
                raise ConfigError(
                    f"{model}: option dims: {name!r} is the batch of input {of_batch[name]!r}, whose sizes are the "
                    f"batch sizes: remove it, or set another axis with --option batch_axis={of_batch[name]}:AXIS"
                )
        refuse_unknown(f"{model}: option dims", "dimension", self.dims, valid)

    def _check_values(self, model: str, inputs: Sequence[Input]) -> None:
        """Check that each value is one of an input's type.

        Raises:
            ConfigError: one is not.
        """
        types = {item.name: np.dtype(item.dtype) for item in inputs}
        refuse_unknown(f"{model}: option values", "input", self.values, types)
        for name, value in self.values.items():
            kind = types[name]
            if kind.kind in "iub":
                limits = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
                if not value.is_integer() or not limits[0] <= value <= limits[1]:
                    raise ConfigError(f"{model}: option values: {name} is of type {kind}, which cannot be {value:g}")

    def _read_inputs(self, path: Path, inputs: Sequence[Input], axes: Axes) -> Arrays:
        """Return the arrays of a file, which must match the signature of the model.

        Raises:
            ConfigError: as of ``read_npz``; name, type or shape of an array do not match the model.
        """
        arrays = read_npz(path)
        names = {item.name for item in inputs}
        for name in arrays:
            if name not in names:
                raise ConfigError(f"{path}: {unknown('input', name, names)}")
            if name in self.values:
                raise ConfigError(f"{path} has an array {name!r}, and the option values has a value: give one of them")
        checked = {}
        for item in inputs:
            if item.name in self.values:
                continue
            if item.name not in arrays:
                raise ConfigError(f"{path} has no array {item.name!r}; the model requires {item.text()}")
            array, batch_axes = arrays[item.name], axes[item.name]
            if not _fits(array, item, batch_axes):
                shape = ",".join(map(str, array.shape))
                raise ConfigError(
                    f"{path}: {item.name} is {array.dtype}[{shape}], but the model requires {item.text()}"
                )
            if not batch_axes and not self._chosen(item):
                raise ConfigError(
                    f"{path}: which axis of {item.text()} is the batch is not known: set --option "
                    f"batch_axis={item.name}:{item.shape.index(None)}, or {item.name}:none"
                )
            checked[item.name] = array
        return checked

    def _chosen(self, item: Input) -> bool:
        """Return whether it is known that an input without a batch axis has none."""
        return None not in item.shape or any(given.name == item.name for given in self.batch_axis)


def _fits(array: NDArray[np.generic], item: Input, batch_axes: Sequence[int]) -> bool:
    return (
        array.ndim == len(item.shape)
        and str(array.dtype) == item.dtype
        and all(
            size > 0 if axis in batch_axes else size == required or not isinstance(required, int)
            for axis, (size, required) in enumerate(zip(array.shape, item.shape, strict=True))
        )
    )


def _uses(batches: Batches) -> Mapping[str, Use]:
    """Return how the graph of an .onnx file uses its integer inputs."""
    path = batches.source.path
    if path.suffix != ".onnx" or not path.is_file() or all(item.dtype.startswith("float") for item in batches.inputs):
        return {}
    from joulewatch_harness.networks import graphs
    from joulewatch_harness.runtimes.shared.uses import find_uses

    model = graphs.inlined(graphs.read_model(path))
    try:
        shapes = graphs.tensor_shapes(model, batches.sizes())
    except ConfigError:
        shapes = {}  # those of stored tables are known
    return find_uses(model.graph, shapes)


def read_npz(path: Path) -> Arrays:
    """Return the arrays of a file by name.

    Raises:
        ConfigError: the file is missing, or is not a valid .npz file.
    """
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is not an .npz file; numpy.savez(FILE, INPUT=array) writes one")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ConfigError(f"no input file {path}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as .npz: {error}") from error


def tiled(array: NDArray[np.generic], axes: Sequence[int], batch: int) -> NDArray[np.generic]:
    """Return ``batch`` elements of an array along its batch axes; they are repeated if it has fewer."""
    for axis in axes:
        array = np.take(array, np.arange(batch) % array.shape[axis], axis=axis)
    return array
