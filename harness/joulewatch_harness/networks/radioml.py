"""I/Q frames shaped like RadioML 2018.01A: 24 modulations, made by modulating random symbols.

Frames are ``[2, 1024]`` float32 (I row, Q row) at 8 samples per symbol. Digital classes carry random
symbols through a root-raised-cosine filter (GMSK: a Gaussian one), analogue classes a band-limited random
message. Each frame gets a random carrier phase and a small frequency offset, white noise at its SNR, and
is scaled to unit mean power. Time and energy of a network depend little on its input, but plain noise
would not test the range of a quantiser or a calibration as real signals do.

Source: O'Shea, Roy, Clancy, Over-the-Air Deep Learning Based Radio Signal Classification, 2018 (classes,
frame length, SNR range). The recordings themselves are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FRAME_LENGTH: Final = 1024
SAMPLES_PER_SYMBOL: Final = 8
ROLL_OFF: Final = 0.25
FILTER_SYMBOLS: Final = 10
"""Half-length of the pulse-shaping filter, in symbols."""
SNR_RANGE_DB: Final = (-20.0, 30.0)
MAX_FREQUENCY_OFFSET: Final = 1e-3
"""Cycles per sample."""

CLASSES: Final = (
    "OOK", "4ASK", "8ASK", "BPSK", "QPSK", "8PSK", "16PSK", "32PSK",
    "16APSK", "32APSK", "64APSK", "128APSK", "16QAM", "32QAM", "64QAM", "128QAM", "256QAM",
    "AM-SSB-WC", "AM-SSB-SC", "AM-DSB-WC", "AM-DSB-SC", "FM", "GMSK", "OQPSK",
)  # fmt: skip
"""Class names in the order of the data set's corrected list; a label is an index into this tuple."""

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames with their labels and SNR."""

    iq: NDArray[np.float32]
    """Samples [n, 2, 1024] with a mean power |I + jQ|² of 1 per frame."""
    labels: NDArray[np.int64]
    """Index into ``CLASSES``, [n]."""
    snr_db: Real
    """Signal-to-noise ratio in dB, [n]."""


def make_frames(
    count: int,
    *,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    snr_db: tuple[float, float] = SNR_RANGE_DB,
) -> Frames:
    """Return ``count`` frames with the classes in equal shares and random order.

    Args:
        count: Number of frames, >= 1.
        seed: Random seed; the same seed gives the same frames.
        classes: Names from ``CLASSES``.
        snr_db: Range from which each frame's SNR is drawn uniformly.
    """
    rng = np.random.default_rng(seed)
    index = np.array([CLASSES.index(name) for name in classes])
    labels = rng.permutation(np.resize(index, count))
    signal = np.empty((count, FRAME_LENGTH), dtype=np.complex128)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        signal[rows] = modulate(CLASSES[label], len(rows), rng)
    signal /= np.sqrt(_power(signal))
    phase = rng.uniform(0.0, 2.0 * np.pi, (count, 1))
    offset = rng.uniform(-MAX_FREQUENCY_OFFSET, MAX_FREQUENCY_OFFSET, (count, 1))
    signal *= np.exp(1j * (phase + 2.0 * np.pi * offset * np.arange(FRAME_LENGTH)))
    snr = rng.uniform(*snr_db, count)
    noise = rng.standard_normal((count, FRAME_LENGTH)) + 1j * rng.standard_normal((count, FRAME_LENGTH))
    signal += noise * np.sqrt(0.5 * 10.0 ** (-snr / 10.0))[:, None]
    signal /= np.sqrt(_power(signal))
    return Frames(np.stack([signal.real, signal.imag], axis=1).astype(np.float32), labels, snr)


def modulate(name: str, count: int, rng: np.random.Generator) -> Complex:
    """Return clean modulated frames: complex baseband ``[count, 1024]``, power not normalised.

    After a matched filter (``root_raised_cosine`` again), the symbols of the linear modulations are at samples 0, 8,
    16, ...
    """
    analogue = _ANALOGUE.get(name)
    if analogue is not None:
        return analogue(_message(count, rng))
    if name == "GMSK":
        return _gmsk(count, rng)
    points = constellation(name)
    symbols = points[rng.integers(0, len(points), (count, _SYMBOLS))]
    samples = _shape(symbols)
    if name == "OQPSK":  # Q is delayed by half a symbol.
        samples = samples.real + 1j * np.roll(samples.imag, SAMPLES_PER_SYMBOL // 2, axis=1)
    return np.asarray(samples[:, _VISIBLE], dtype=np.complex128)


def constellation(name: str) -> Complex:
    """Return the constellation points of a linear modulation, with a mean power of 1.

    16APSK and 32APSK have the rings of DVB-S2; 64APSK and 128APSK have rings at nearly equal distances.
    """
    points = _points(name)
    return np.asarray(points / np.sqrt(np.mean(np.abs(points) ** 2)), dtype=np.complex128)


def root_raised_cosine() -> Real:
    """Return the pulse: unit energy, 2 * FILTER_SYMBOLS * SAMPLES_PER_SYMBOL + 1 taps.

    Source: Proakis, Digital Communications, section 9.2; the values at t = 0 and t = ±1/(4β) are its limits.
    """
    time = np.arange(-FILTER_SYMBOLS * SAMPLES_PER_SYMBOL, FILTER_SYMBOLS * SAMPLES_PER_SYMBOL + 1) / SAMPLES_PER_SYMBOL
    beta = ROLL_OFF
    singular = np.isclose(np.abs(time), 1.0 / (4.0 * beta))
    t = np.where(singular | (time == 0.0), 0.1, time)  # Avoids a division by zero; set below.
    taps = (np.sin(np.pi * t * (1.0 - beta)) + 4.0 * beta * t * np.cos(np.pi * t * (1.0 + beta))) / (
        np.pi * t * (1.0 - (4.0 * beta * t) ** 2)
    )
    taps[time == 0.0] = 1.0 + beta * (4.0 / np.pi - 1.0)
    taps[singular] = (beta / np.sqrt(2.0)) * (
        (1.0 + 2.0 / np.pi) * np.sin(np.pi / (4.0 * beta)) + (1.0 - 2.0 / np.pi) * np.cos(np.pi / (4.0 * beta))
    )
    return np.asarray(taps / np.sqrt(np.sum(taps**2)), dtype=np.float64)


_GUARD: Final = 2 * FILTER_SYMBOLS
"""Extra symbols before and after the frame, so that the filter's start and end lie outside the frame."""
_SYMBOLS: Final = FRAME_LENGTH // SAMPLES_PER_SYMBOL + 2 * _GUARD
_VISIBLE: Final = slice(_GUARD * SAMPLES_PER_SYMBOL, _GUARD * SAMPLES_PER_SYMBOL + FRAME_LENGTH)


def _points(name: str) -> Complex:
    if name == "OOK":
        return np.array([0.0, 1.0], dtype=np.complex128)
    if name.endswith("APSK"):
        return _apsk(_RINGS[name])
    if name.endswith("ASK"):
        return np.arange(int(name.removesuffix("ASK"))).astype(np.complex128)
    if name.endswith("QAM"):
        return _qam(int(name.removesuffix("QAM")))
    order = {"BPSK": 2, "QPSK": 4, "OQPSK": 4}.get(name) or int(name.removesuffix("PSK"))
    turn = np.pi / 4.0 if order == 4 else 0.0
    return np.asarray(np.exp(1j * (2.0 * np.pi * np.arange(order) / order + turn)), dtype=np.complex128)


_RINGS: Final[dict[str, tuple[tuple[int, float], ...]]] = {
    "16APSK": ((4, 1.0), (12, 2.85)),
    "32APSK": ((4, 1.0), (12, 2.84), (16, 5.27)),
    "64APSK": ((4, 1.0), (12, 2.4), (20, 3.8), (28, 5.2)),
    "128APSK": ((8, 1.0), (16, 2.0), (24, 3.0), (32, 4.0), (48, 5.0)),
}


def _apsk(rings: Sequence[tuple[int, float]]) -> Complex:
    points = [radius * np.exp(2j * np.pi * (np.arange(size) + 0.5) / size) for size, radius in rings]
    return np.asarray(np.concatenate(points), dtype=np.complex128)


def _qam(order: int) -> Complex:
    """Return a square for 16, 64 and 256, and a cross (a larger square without its corners) for 32 and 128."""
    side = int(np.ceil(np.sqrt(order)))
    side += side % 2
    axis = np.arange(side) * 2.0 - (side - 1)
    grid = axis[:, None] + 1j * axis[None, :]
    corner = round(((side * side - order) / 4) ** 0.5)
    limit = side - 1 - 2 * corner
    inside = (np.abs(grid.real) <= limit) | (np.abs(grid.imag) <= limit)
    return np.asarray(grid[inside], dtype=np.complex128)


def _shape(symbols: Complex) -> Complex:
    """Turn symbols [frame, symbol] into samples with the root-raised-cosine filter."""
    sparse = np.zeros((len(symbols), symbols.shape[1] * SAMPLES_PER_SYMBOL), dtype=np.complex128)
    sparse[:, ::SAMPLES_PER_SYMBOL] = symbols
    return _filter(sparse, root_raised_cosine())


def _filter(signal: Complex, taps: Real) -> Complex:
    """Convolve every row with symmetric ``taps``, without delay; circular, because the guard symbols hide the ends."""
    size = signal.shape[1]
    kernel = np.zeros(size)
    kernel[: len(taps)] = taps
    kernel = np.roll(kernel, -(len(taps) // 2))
    return np.asarray(np.fft.ifft(np.fft.fft(signal, axis=1) * np.fft.fft(kernel), axis=1), dtype=np.complex128)


def _message(count: int, rng: np.random.Generator) -> Real:
    """Return band-limited random messages (1/512 to 1/32 cycles per sample) with a peak of about 1."""
    size = _SYMBOLS * SAMPLES_PER_SYMBOL
    frequency = np.fft.rfftfreq(size)
    spectrum = np.fft.rfft(rng.standard_normal((count, size)), axis=1)
    spectrum[:, (frequency > 1.0 / 32.0) | (frequency < 1.0 / 512.0)] = 0.0
    message = np.fft.irfft(spectrum, size, axis=1)
    return np.asarray(message / (3.0 * np.std(message, axis=1, keepdims=True)), dtype=np.float64)


def _analytic(message: Real) -> Complex:
    """Return the message without its negative frequencies: a single sideband."""
    spectrum = np.fft.fft(message, axis=1)
    spectrum[:, message.shape[1] // 2 + 1 :] = 0.0
    return np.asarray(2.0 * np.fft.ifft(spectrum, axis=1), dtype=np.complex128)


def _gmsk(count: int, rng: np.random.Generator) -> Complex:
    """Return Gaussian minimum-shift keying with BT 0.35 and modulation index 0.5."""
    bits = rng.integers(0, 2, (count, _SYMBOLS)) * 2.0 - 1.0
    time = np.arange(-2 * SAMPLES_PER_SYMBOL, 2 * SAMPLES_PER_SYMBOL + 1) / SAMPLES_PER_SYMBOL
    sigma = np.sqrt(np.log(2.0)) / (2.0 * np.pi * 0.35)
    taps = np.exp(-0.5 * (time / sigma) ** 2)
    frequency = _filter(np.repeat(bits, SAMPLES_PER_SYMBOL, axis=1).astype(np.complex128), taps / np.sum(taps)).real
    phase = np.cumsum(frequency, axis=1) * (np.pi / 2.0) / SAMPLES_PER_SYMBOL
    return np.asarray(np.exp(1j * phase)[:, _VISIBLE], dtype=np.complex128)


def _fm(message: Real) -> Complex:
    deviation = 0.05  # cycles per sample at the message's peak
    return np.asarray(np.exp(2j * np.pi * deviation * np.cumsum(message, axis=1))[:, _VISIBLE], dtype=np.complex128)


_ANALOGUE: Final[dict[str, Callable[[Real], Complex]]] = {
    "AM-DSB-SC": lambda message: message[:, _VISIBLE].astype(np.complex128),
    "AM-DSB-WC": lambda message: (1.0 + message[:, _VISIBLE]).astype(np.complex128),
    "AM-SSB-SC": lambda message: _analytic(message)[:, _VISIBLE],
    "AM-SSB-WC": lambda message: 1.0 + _analytic(message)[:, _VISIBLE],
    "FM": _fm,
}


def _power(signal: Complex) -> Real:
    """Return the mean power of each row, [n, 1]; 1 for an OOK frame that contains only zeros."""
    power = np.mean(np.abs(signal) ** 2, axis=1, keepdims=True)
    return np.asarray(np.where(power > 0.0, power, 1.0), dtype=np.float64)
