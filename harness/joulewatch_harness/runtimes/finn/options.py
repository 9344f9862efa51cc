"""The options of runtime ``finn``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown, unknown
from joulewatch_harness.runtimes import ANY_PRECISION, flag

PLATFORMS: Final = ("alveo", "zynq-iodma")
MODES: Final = ("dma", "instrumentation")
ARRAY_TYPES: Final = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set with ``--option KEY=VALUE``, or under ``options`` in a plan."""

    bitfile: Path | None = None
    """The .bit or .xclbin; None: the one beside the driver."""
    platform: str = ""
    """None of ``PLATFORMS``: from the settings, or from the bit file's suffix."""
    device: int | None = None
    """Which of pynq's devices; None: its default."""
    fclk_mhz: float | None = None
    """Clock of the accelerator; None: what the driver sets by itself."""
    mode: str = ""
    """One of ``MODES``; empty: dma, where the build has it."""
    array_type: str = ""
    """numpy type of the input arrays; empty: that of the files, or the fastest that the input takes."""
    inputs: tuple[Path, ...] = ()
    """One .npy per input; their rows are repeated to fill a batch."""
    reference: tuple[Path, ...] = ()
    """One .npy per output: what ``inputs`` must give."""
    zeros_ok: bool = False
    """Outputs of nothing but zeros are believed."""
    seed: int = 0
    any_precision: bool = False

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> Options:
        """Turn strings into options.

        Raises:
            ConfigError: an unknown key or a bad value; the text names it.
        """
        refuse_unknown("finn", "option", words, cls.__dataclass_fields__)
        inputs, reference = _paths(words, "inputs"), _paths(words, "reference")
        if reference and not inputs:
            raise ConfigError("finn: option reference holds what certain inputs must give: give option inputs as well")
        return cls(
            bitfile=Path(words["bitfile"]) if "bitfile" in words else None,
            platform=_one_of(words, "platform", PLATFORMS),
            device=_whole(words, "device"),
            fclk_mhz=_positive(words, "fclk_mhz"),
            mode=_one_of(words, "mode", MODES),
            array_type=_one_of(words, "array_type", ARRAY_TYPES),
            inputs=inputs,
            reference=reference,
            zeros_ok=flag(words, "zeros_ok"),
            seed=_whole(words, "seed") or 0,
            any_precision=flag(words, ANY_PRECISION),
        )


def _one_of(words: Mapping[str, str], key: str, known: tuple[str, ...]) -> str:
    word = words.get(key, "")
    if key in words and word not in known:
        raise ConfigError(f"finn: {unknown(key, word, known)}")
    return word


def _whole(words: Mapping[str, str], key: str) -> int | None:
    if key not in words:
        return None
    if not words[key].isdecimal():
        raise ConfigError(f"finn: option {key} is a whole number from 0, not {words[key]!r}")
    return int(words[key])


def _positive(words: Mapping[str, str], key: str) -> float | None:
    if key not in words:
        return None
    try:
        value = float(words[key])
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ConfigError(f"finn: option {key} is a number above 0, not {words[key]!r}")
    return value


def _paths(words: Mapping[str, str], key: str) -> tuple[Path, ...]:
    if key not in words:
        return ()
    names = [name.strip() for name in words[key].split(",")]
    if not all(names):
        raise ConfigError(f"finn: option {key} is FILE.npy or FILE.npy,FILE.npy,..., not {words[key]!r}")
    return tuple(map(Path, names))
