"""The built-in networks: build a model file and its inputs from a name and a precision.

``BUILTIN`` lists them; the module of a network is imported only when the network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown, unknown
from joulewatch_harness.plan.plan import NATIVE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model file with its inputs, its reference outputs and its description."""

    path: Path
    make_inputs: Callable[[int], Arrays] | None = None
    """Batch size -> input name -> array; None: make inputs from the model's signature."""
    reference: Callable[[Arrays], NDArray[np.float32]] | None = None
    """Inputs -> the first output of the float32 network, computed without any runtime."""
    precision: str = ""
    """Precision of the file, which limits every output, in any precision of the runtime; empty if unknown."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Details for the result: the model's size, the origin of its weights, and its cost (``cost.py``)."""


@dataclass(frozen=True, slots=True)
class Option:
    """An integer option of a built-in network."""

    values: range | tuple[int, ...]
    """Every value that the network accepts: a range, or a few values with the default first."""
    default: int
    meaning: str

    def parse(self, network: str, key: str, text: str) -> int:
        """Return the value.

        Raises:
            ConfigError: Not one of the values.
        """
        if not text.isdecimal() or int(text) not in self.values:
            raise ConfigError(f"{network}: {key} must be {self}, got {text!r}")
        return int(text)

    def __str__(self) -> str:
        if isinstance(self.values, range):
            return f"an integer from {self.values.start} to {self.values.stop - 1}"
        words = [str(value) for value in self.values]
        return f"{', '.join(words[:-1])} or {words[-1]}"


def integer(default: int, least: int, most: int, meaning: str) -> Option:
    """Return an option that accepts ``least`` to ``most``."""
    return Option(range(least, most + 1), default, meaning)


def choice(values: Sequence[int], meaning: str) -> Option:
    """Return an option that accepts a few values; the first one is the default."""
    return Option(tuple(values), values[0], meaning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """A built-in network: a summary, its precisions and options, and the function that builds it."""

    summary: str
    module: str
    function: str
    """``(precision, **options) -> ModelSource``"""
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    options: Mapping[str, Option]
    qonnx: tuple[str, ...] = ()
    """More precisions, of few bits, whose files are QONNX: for reference, and for runtimes that read QONNX."""


_ZOO: Final = "joulewatch_harness.networks.zoo"
_IMAGE: Final = "width and height of the image, pixels"
BUILTIN: Final[Mapping[str, Builtin]] = {
    "radioml-vgg10": Builtin(
        summary="VGG10 for RadioML modulation classification, the main benchmark",
        module="joulewatch_harness.networks.radioml_vgg10",
        function="source",
        options={"filters": choice((64, 32), "channels of each convolution")},
        qonnx=("w4a4", "w5a5"),
    ),
    "mlp": Builtin(
        summary="fully connected layers: all weights, little arithmetic per byte",
        module=_ZOO,
        function="mlp",
        options={
            "width": integer(1024, 1, 16384, "units of a hidden layer"),
            "depth": integer(3, 1, 64, "hidden layers"),
        },
    ),
    "mobilenet-like": Builtin(
        summary="MobileNetV2: inverted residuals, depthwise convolutions",
        module=_ZOO,
        function="mobilenet_like",
        options={
            "size": integer(96, 32, 512, _IMAGE),
            "width": choice((100, 75, 50, 35), "channels, percent of the published number"),
        },
    ),
    "resnet-like": Builtin(
        summary="ResNet-18 or 34: basic residual blocks",
        module=_ZOO,
        function="resnet_like",
        options={
            "size": integer(64, 32, 512, _IMAGE),
            "width": choice((64, 32, 16), "channels of the first stage"),
            "depth": choice((18, 34), "layers"),
        },
    ),
    "transformer-encoder": Builtin(
        summary="encoder layers over token and position embeddings",
        module=_ZOO,
        function="transformer_encoder",
        options={
            "sequence": integer(64, 1, 4096, "tokens"),
            "width": choice((256, 128, 512, 768, 1024), "embedding size"),
            "depth": integer(4, 1, 48, "layers"),
            "heads": choice((4, 1, 2, 8, 16), "attention heads"),
        },
    ),
}


def builtin(network: str) -> Builtin:
    """Return the built-in network with this name.

    Raises:
        ConfigError: The name is unknown; the text suggests the nearest one.
    """
    entry = BUILTIN.get(network)
    if entry is None:
        raise ConfigError(
            f"{unknown('network', network, BUILTIN)}; a model file is named FILE.onnx, "
            "a custom network module:object or file.py:object"
        )
    return entry


def build(network: str, precision: str, options: Mapping[str, str], *, qonnx: bool = False) -> ModelSource:
    """Return the model file of a built-in network, from the cache if it is there, with the cost of an inference.

    Args:
        network: A name of ``BUILTIN``.
        precision: One of the network's precisions; ``native`` means the first.
        options: Options of the network, as text.
        qonnx: Whether the caller can run QONNX files.

    Raises:
        ConfigError: The network or precision is unknown, an option is invalid, the cache folder cannot be written, or
            the caller cannot run QONNX files.
    """
    from joulewatch_harness.networks.cost import cost_details

    entry = builtin(network)
    refuse_unknown(network, "option", options, entry.options)
    values = {
        key: option.parse(network, key, options.get(key, str(option.default))) for key, option in entry.options.items()
    }
    selected = entry.precisions[0] if precision == NATIVE else precision
    if selected not in (*entry.precisions, *entry.qonnx):
        raise ConfigError(f"{network}: {unknown('precision', selected, (*entry.precisions, *entry.qonnx))}")
    module: Any = importlib.import_module(entry.module)
    source = cast(ModelSource, getattr(module, entry.function)(selected, **values))
    if selected in entry.qonnx and not qonnx:
        raise ConfigError(
            f"{network}: {selected} is a QONNX file, for reference and for FINN, and this runtime cannot run it: "
            f"use {', '.join(entry.precisions)}, or take the file from {source.path}"
        )
    return replace(source, precision=selected, details={**source.details, **cost_details(source.path)})
