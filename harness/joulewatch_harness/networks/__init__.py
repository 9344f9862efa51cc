"""The built-in networks: a name and a precision become a model file with inputs made for it.

``BUILTIN`` is the explicit list; a network's module is imported only when it is named.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.plan.plan import NATIVE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model file, and what belongs to it."""

    path: Path
    make_inputs: Callable[[int], Arrays] | None = None
    """Batch size -> input name -> array; None: inputs are made from the model's signature."""
    reference: Callable[[Arrays], NDArray[np.float32]] | None = None
    """Inputs -> the first output as the float32 network gives it, worked out without any runtime."""
    precision: str = ""
    """What the file was made in: its rounding is in every output, whatever a runtime computes in. Empty: not known."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What a result must say of the model: its size, what its weights are, and the cost that ``graph`` counts."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in network: where its builder is, and what it can be asked for."""

    module: str
    function: str
    """``(precision, options) -> ModelSource``"""
    precisions: tuple[str, ...]
    options: tuple[str, ...]
    qonnx: tuple[str, ...] = ()
    """Further precisions, of few bits, whose files are QONNX: for reference, and for runtimes that read them."""


_ZOO: Final = "joulewatch_harness.networks.zoo"
_PRECISIONS: Final = ("fp32", "fp16", "int8")
BUILTIN: Final[Mapping[str, Builtin]] = {
    "radioml-vgg10": Builtin(
        "joulewatch_harness.networks.radioml_vgg10", "source", _PRECISIONS, ("filters",), qonnx=("w4a4", "w5a5")
    ),
    "mlp": Builtin(_ZOO, "mlp", _PRECISIONS, ("width", "depth")),
    "mobilenet-like": Builtin(_ZOO, "mobilenet_like", _PRECISIONS, ("size", "width")),
    "resnet-like": Builtin(_ZOO, "resnet_like", _PRECISIONS, ("size", "width", "depth")),
    "transformer-encoder": Builtin(_ZOO, "transformer_encoder", _PRECISIONS, ("sequence", "width", "depth", "heads")),
}


def is_builtin(network: str) -> bool:
    """Whether ``network`` is neither a model file nor a network of the user's own."""
    return ":" not in network and not network.endswith(".onnx")


def builtin(network: str) -> Builtin:
    """The built-in network of that name.

    Raises:
        ConfigError: no such network; the text names the nearest.
    """
    entry = BUILTIN.get(network)
    if entry is None:
        raise ConfigError(
            f"{unknown('network', network, BUILTIN)}; a model file is named FILE.onnx, "
            "a network of your own module:object or file.py:object"
        )
    return entry


def build(network: str, precision: str, options: Mapping[str, str], *, qonnx: bool = False) -> ModelSource:
    """Build (or find in the cache) the model file of a built-in network, and count what an inference costs.

    Args:
        network: A name of ``BUILTIN``.
        precision: One of the network's precisions; ``native`` means the first.
        options: The network's own options, as typed.
        qonnx: The caller can run QONNX files.

    Raises:
        ConfigError: unknown network or precision, a bad option, a cache folder that cannot be written, a QONNX file
            for a caller that cannot run it.
    """
    from joulewatch_harness.networks.cost import cost_details

    entry = builtin(network)
    wanted = entry.precisions[0] if precision == NATIVE else precision
    if wanted not in (*entry.precisions, *entry.qonnx):
        raise ConfigError(f"{network}: {unknown('precision', wanted, (*entry.precisions, *entry.qonnx))}")
    module: Any = importlib.import_module(entry.module)
    source = cast(ModelSource, getattr(module, entry.function)(wanted, options))
    if wanted in entry.qonnx and not qonnx:
        raise ConfigError(
            f"{network}: {wanted} is a QONNX file, for reference and for FINN, which this runtime cannot run: "
            f"ask for {', '.join(entry.precisions)}, or take the file: {source.path}"
        )
    return replace(source, precision=wanted, details={**source.details, **cost_details(source.path)})
