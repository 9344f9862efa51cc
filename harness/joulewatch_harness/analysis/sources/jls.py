"""Binary recordings of Joulescope (JLS version 2), read with the package ``pyjls``.

An instrument takes up to two million samples per second. They are averaged over a millisecond: a sum of samples stays
the same, and a window is never measured as short as that.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from joulewatch_harness.analysis.sources.power_log import LogFormat, PowerLog, power_log
from joulewatch_harness.analysis.sources.series import Floats
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    import pyjls

JLS: Final = "jls"
MARK: Final = b"jlsfmt\r\n \n \x1a  \xb2\x1c"
_LENGTH: Final = struct.Struct("<Q")
"""Behind the mark: the length of the file, which is written when it is closed."""
_ROWS_HZ: Final = 1000
_CHUNK: Final = 1_000_000
"""Samples that are read at once."""


def is_jls(path: Path) -> bool:
    """Return whether a file begins with the mark of JLS; raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


def read_jls(path: Path, unit: str) -> list[PowerLog]:
    """Return the power of each instrument of a recording.

    Args:
        path: The file; it is never changed.
        unit: Of the power; empty: that of the file.

    Raises:
        ConfigError: ``pyjls`` is missing, or the file is not complete or has no power.
    """
    try:
        import pyjls
    except ImportError:
        raise ConfigError(
            f"{path}: reading JLS needs the package pyjls: pip install 'joulewatch[joulescope]'"
        ) from None
    _check_closed(path)
    try:
        reader = pyjls.Reader(str(path))
    except RuntimeError as error:
        raise ConfigError(f"{path}: is not a JLS file that pyjls {pyjls.__version__} can read: {error}") from None
    try:
        signals = [signal for signal in reader.signals.values() if signal.name == "power" and signal.length]
        if not signals:
            names = ", ".join(sorted(signal.name for signal in reader.signals.values() if signal.length)) or "none"
            raise ConfigError(f"{path}: has no signal 'power' (signals: {names}); record or export the power")
        several = len(signals) > 1
        return [_log(path, reader, signal, unit, several=several) for signal in signals]
    finally:
        reader.close()


def _check_closed(path: Path) -> None:
    """Refuse a file that pyjls would repair, which changes it."""
    with path.open("rb") as file:
        file.seek(len(MARK))
        head = file.read(_LENGTH.size)
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    if length != path.stat().st_size:
        raise ConfigError(
            f"{path}: is not complete: it has {path.stat().st_size} bytes, and its header names {length}. "
            "Open a copy of it with the Joulescope UI, which repairs it"
        )


def _log(path: Path, reader: pyjls.Reader, signal: Any, unit: str, *, several: bool) -> PowerLog:
    block = max(round(signal.sample_rate / _ROWS_HZ), 1)
    step = _CHUNK // block * block
    means, middles = [], []
    for first in range(0, signal.length, step):
        samples = reader.fsr(signal.signal_id, first, min(step, signal.length - first)).astype(np.float64)
        whole = samples.size // block * block
        means.append(samples[:whole].reshape(-1, block).mean(axis=1))
        middles.append(first + block * np.arange(whole // block) + (block - 1) / 2)
    watts, at = np.concatenate(means), np.concatenate(middles)
    measured = np.isfinite(watts)  # the instrument writes NaN for samples that it lost
    if measured.sum() < 2:
        raise ConfigError(f"{path}: the signal 'power' has fewer than two milliseconds of samples")
    form = LogFormat(power="power", unit=unit or signal.units)
    device = reader.sources[signal.source_id].name if several else ""
    return power_log(path, _times(reader, signal, at)[measured], watts[measured], form, step=0.0, device=device)


def _times(reader: pyjls.Reader, signal: Any, at: Floats) -> Floats:
    """Return the Unix seconds of sample numbers; a recording without a clock begins at 0."""
    import pyjls

    seconds: Floats = at / signal.sample_rate
    ids = np.append(np.arange(0, signal.length - 1, max(int(signal.sample_rate), 1)), signal.length - 1)
    stamps = np.asarray(reader.sample_id_to_timestamp(signal.signal_id, ids))
    if stamps[0] <= 0:  # without a clock, pyjls counts from the epoch of JLS
        return seconds
    times_s = np.asarray(pyjls.jls_to_utc(stamps), dtype=np.float64)
    # The clock differs from the samples slowly: once a second is enough. The differences keep the digits.
    late_s: Floats = np.interp(seconds, ids / signal.sample_rate, times_s - ids / signal.sample_rate)
    return seconds + late_s
