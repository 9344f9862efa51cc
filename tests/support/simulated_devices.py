"""Networks of known shapes, and simulated devices with known coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from joulewatch_harness.prediction.features import Features
from joulewatch_harness.prediction.table import Row

# Joules per unit on the mean device: dense and depthwise MACs, weights, activations, layers, pixels, constant.
COEFFICIENTS = np.array([1e-10, 4e-10, 1e-9, 3e-9, 2e-5, 2e-8, 2e-4])
POWER_WATTS = 4.0


@dataclass(frozen=True)
class Shape:
    """A network."""

    name: str
    family: str
    features: Features


def networks() -> list[Shape]:
    """Return 80 networks of four families: plain, residual and separable convolutions, with few or many weights."""
    shapes = []
    for family, blocks, depthwise, weights, layers in (
        ("plain", 10, 0.0, 60.0, 12),
        ("residual", 16, 0.0, 12.0, 60),
        ("separable", 13, 0.05, 8.0, 29),
        ("inverted", 17, 0.09, 6.0, 64),
    ):
        for width in (0.35, 0.5, 0.75, 1.0, 1.4):
            for size in (96, 128, 160, 224):
                pixels = size * size
                macs = 40.0 * width * width * blocks * pixels
                features = Features(
                    macs_dense=macs * (1 - depthwise * 0.5 / width),
                    macs_depthwise=macs * depthwise * 0.5 / width,
                    weight_elements=weights * 1e5 * width * width * blocks / 10,
                    activation_elements=2.5 * pixels * width * blocks,
                    layers=layers,
                    input_pixels=pixels,
                )
                shapes.append(Shape(f"{family}-{width}-{size}", family, features))
    return shapes


def device_rows(
    seed: int,
    shapes: Sequence[Shape],
    *,
    noise: float = 0.05,
    device: str = "",
    batch_sizes: Sequence[int] = (1,),
    precision: str = "fp32",
    runtime: str = "runtime",
    timed: bool = True,
) -> list[Row]:
    """Return measured rows of a device: coefficients that scatter around ``COEFFICIENTS``, and noise on each energy."""
    random = np.random.default_rng(seed)
    coefficients = _coefficients(random)
    rows = []
    for shape in shapes:
        for batch_size in batch_sizes:
            joules = true_joules(coefficients, shape.features, batch_size) * math.exp(noise * random.normal())
            seconds = joules / POWER_WATTS * math.exp(noise * random.normal())
            rows.append(
                Row(
                    network=shape.name, family=shape.family, device=device or f"board {seed}", platform="",
                    runtime=runtime, precision=precision, batch_size=batch_size, scope="wall", joules=joules,
                    seconds=seconds if timed else None, features=shape.features, where=f"row {len(rows) + 2}",
                )
            )  # fmt: skip
    return rows


def coefficients_of(seed: int) -> np.ndarray:
    """Return the coefficients that ``device_rows`` draws for a seed."""
    return _coefficients(np.random.default_rng(seed))


def _coefficients(random: np.random.Generator) -> np.ndarray:
    return COEFFICIENTS * np.exp(0.5 * random.normal(size=7)) * math.exp(random.normal())


def true_joules(coefficients: np.ndarray, features: Features, batch_size: int) -> float:
    """Return the energy per inference without noise: weights, layers and the constant are paid once per batch."""
    vector = np.array([*features.vector(), 1.0])
    vector[[2, 4, 6]] /= batch_size
    return float(coefficients @ vector)
