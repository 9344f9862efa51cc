"""What can be set of the runtime ``tensorrt``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.runtimes import ANY_PRECISION, flag
from joulewatch_harness.runtimes.shared.inputs import InputOptions, parse_count
from joulewatch_harness.runtimes.shared.model_files import choice

SHAPES: Final = ("static", "dynamic")
MOST_OPTIMISED: Final = 5
FOR_BUILDING: Final = (
    "shape", "profile", "workspace_mib", "optimization_level", "timing_cache", "engine_cache", "symmetric",
)  # fmt: skip
"""Options that say nothing to an engine that is built already."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes that one engine serves."""

    least: int
    best: int
    """The one it is optimised for."""
    most: int

    def text(self) -> str:
        return f"{self.least},{self.best},{self.most}"


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set with ``--option KEY=VALUE``, or under ``options`` in a plan."""

    device: str = "cuda:0"
    shape: str = "static"
    """``static``: an engine for each batch size; ``dynamic``: one for those of ``profile``."""
    profile: Profile | None = None
    workspace_mib: int | None = None
    """Most memory for the scratch room of a layer, in MiB; None: TensorRT's own limit, all of the device."""
    optimization_level: int | None = None
    """How long TensorRT looks for faster kernels, 0 to 5; None: its own, 3."""
    timing_cache: bool = True
    """Times of kernels are kept from one build to the next."""
    engine_cache: bool = True
    """Engines are kept from one run to the next."""
    symmetric: bool | None = None
    """Whether a quantised graph is rewritten to int8 around zero; None: that of a built-in network is."""
    cuda_graph: bool = False
    """The whole network is launched as one CUDA graph."""
    copies: bool = False
    """Inputs come from pinned host memory and outputs go back to it, in each batch."""
    events: bool = True
    """Phases and latency by events on the GPU; without them a call of ``run`` is one span."""
    data: InputOptions = field(default_factory=InputOptions)
    any_precision: bool = False

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """All that can be given."""
        return (*(item.name for item in fields(cls) if item.name != "data"), *InputOptions.KEYS)

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> Options:
        """Turn strings into options.

        Raises:
            ConfigError: an unknown key, a bad value, or two that do not go together; the text names them.
        """
        refuse_unknown("tensorrt", "option", words, cls.keys())
        level = parse_count("tensorrt", words, "optimization_level", least=0)
        if level is not None and level > MOST_OPTIMISED:
            raise ConfigError(f"tensorrt: option optimization_level is 0 to {MOST_OPTIMISED}, not {level}")
        found = cls(
            device=words.get("device", "cuda:0"),
            shape=choice("tensorrt", words, "shape", SHAPES, "static"),
            profile=parse_profile(words["profile"]) if "profile" in words else None,
            workspace_mib=parse_count("tensorrt", words, "workspace_mib", least=1),
            optimization_level=level,
            timing_cache=flag(words, "timing_cache", True),
            engine_cache=flag(words, "engine_cache", True),
            symmetric=flag(words, "symmetric") if "symmetric" in words else None,
            cuda_graph=flag(words, "cuda_graph"),
            copies=flag(words, "copies"),
            events=flag(words, "events", True),
            data=InputOptions.parse("tensorrt", words),
            any_precision=flag(words, ANY_PRECISION),
        )
        if (found.shape == "dynamic") != (found.profile is not None):
            raise ConfigError(
                "tensorrt: shape=dynamic and profile=LEAST,BEST,MOST (batch sizes, such as 1,32,1024) go together: "
                "give both or neither"
            )
        return found


def parse_profile(text: str) -> Profile:
    """Three batch sizes, ``1,32,1024``.

    Raises:
        ConfigError: the text is not of that form.
    """
    sizes = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    if len(sizes) != 3 or text.count(",") != 2 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ConfigError(f"tensorrt: option profile is LEAST,BEST,MOST, three batch sizes that rise, not {text!r}")
    return Profile(*sizes)
