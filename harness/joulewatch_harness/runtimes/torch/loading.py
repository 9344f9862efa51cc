"""Read a PyTorch module from an .onnx, .pt2 or TorchScript file, or from a user's code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from joulewatch_harness import runtimes
from joulewatch_harness.errors import ConfigError, describe
from joulewatch_harness.runtimes.shared.inputs import read_npz
from joulewatch_harness.runtimes.shared.signature import Input, broken, signature
from joulewatch_harness.runtimes.torch.options import Options

TORCHSCRIPT: Final = (".pt", ".ts", ".torchscript")
EXPORTED: Final = ".pt2"
DTYPE_OF: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(slots=True)
class Loaded:
    """A module before it is moved, cast or compiled."""

    module: Any
    inputs: tuple[Input, ...]
    """In the order of the arguments."""
    dtypes: tuple[torch.dtype | None, ...] = ()
    """The type of each input; empty: the type of the module's weights."""


def load_module(path: Path, options: Options, dtype: torch.dtype | None) -> Loaded:
    """Read a module.

    Args:
        path: The file; not used if ``options`` name a module.
        options: Of the runtime.
        dtype: The requested type of weights; None: the type of the file or code.

    Raises:
        ConfigError: the file or the code is missing or not valid, or contradicts the options.
    """
    if options.module:
        loaded = Loaded(_from_code(options.module, dtype), ())
    elif path.suffix == ".onnx":
        from joulewatch_harness.runtimes.torch.importing import module_of

        loaded = Loaded(module_of(path, dtype), signature(path))
    elif path.suffix == EXPORTED:
        loaded = _from_exported(path)
    else:
        loaded = Loaded(_from_torchscript(path), ())
    if not loaded.inputs:
        loaded.inputs = options.signature or _inputs_of_arrays(options)
    elif options.signature:
        raise ConfigError(f"{path.name}: contains its inputs: remove the option signature")
    return loaded


def _from_code(spec: str, dtype: torch.dtype | None) -> Any:
    value = runtimes.find_object(spec)
    if not isinstance(value, torch.nn.Module):
        if not callable(value):
            raise ConfigError(f"{spec} is neither a torch.nn.Module nor a function that returns one")
        try:
            value = value()
        except Exception as error:
            raise ConfigError(f"{spec} cannot be created: {describe(error)}") from error
    if not isinstance(value, torch.nn.Module):
        raise ConfigError(f"{spec} returned {type(value).__name__}, not a torch.nn.Module")
    module = value.eval().requires_grad_(False)
    return module if dtype is None else module.to(dtype)


def _inputs_of_arrays(options: Options) -> tuple[Input, ...]:
    """Return the inputs that the arrays of an .npz file have; the first axis is the batch.

    Raises:
        ConfigError: the arrays have different first axes, and the option batch_axis is not set.
    """
    arrays = {} if options.inputs is None else read_npz(options.inputs)
    firsts = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    if len(set(firsts.values())) > 1 and not options.batch_axis:
        sizes = ", ".join(f"{name} {size}" for name, size in firsts.items())
        raise ConfigError(
            f"{options.inputs}: the first axes have different sizes ({sizes}): which axis is the batch? Set "
            f"--option batch_axis={','.join(f'{name}:AXIS' for name in firsts)}, with none instead of AXIS where there "
            "is none"
        )
    return tuple(
        Input(name, str(array.dtype), ("batch", *array.shape[1:]) if array.ndim else ())
        for name, array in arrays.items()
    )


def _from_exported(path: Path) -> Loaded:
    try:
        program = torch.export.load(path)
        module = program.module()
    except Exception as error:
        raise broken(path, error) from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs, dtypes = [], []
    for name in program.graph_signature.user_inputs:
        value = values.get(name)
        if not isinstance(value, torch.Tensor):
            raise ConfigError(f"model file {path}: input {name!r} is not a tensor, which is not supported")
        shape = tuple(int(size) if isinstance(size, int) else str(size) for size in value.shape)
        kind = str(value.dtype).removeprefix("torch.")
        # numpy has no bfloat16: the arrays are float32, and are converted for the program.
        inputs.append(Input(str(name), "float32" if kind == "bfloat16" else kind, shape))
        dtypes.append(value.dtype)
    return Loaded(module, tuple(inputs), tuple(dtypes))


def _from_torchscript(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but its files are still in use.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:
        raise broken(path, error) from error
