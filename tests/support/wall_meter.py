"""A meter at the wall of a synthetic machine, whose sensors read too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.synthetic import Signal, World, make_world, sensor

GAIN, OFFSET_WATTS = 1.06, 7.0
"""True power = gain * what the sensor reads + offset."""
NODE = sensor(
    "bmc", "total", "node", "node", collector="ipmi", primary=True, host="node1", model="PowerEdge", accuracy=0.1
)


def true_watts(
    signal: Signal, at_s: NDArray[np.float64], gain: float = GAIN, offset: float = OFFSET_WATTS
) -> NDArray[np.float64]:
    """Return the true power at some times."""
    index = np.clip(np.searchsorted(signal.times_s, at_s, side="right") - 1, 0, len(signal.watts) - 1)
    return np.asarray(gain * np.asarray(signal.watts)[index] + offset)


def wall_log(
    path: Path,
    world: World,
    *,
    gain: float = GAIN,
    offset: float = OFFSET_WATTS,
    bend: float = 0.0,
    rate_hz: float = 10.0,
    noise_watts: float = 0.0,
    meter_error: float = 0.0,
    shift_s: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write the log of the wall meter for all the time of a run, and return its path.

    Args:
        path: The file: ``time`` in Unix seconds, ``watts``, and ``joules`` since the start.
        world: The run; the true power follows from its first sensor.
        gain: Of the truth.
        offset: Of the truth, in watts.
        bend: By which the sensor is not linear: watts at 1 kW, quadratic.
        rate_hz: Rows per second.
        noise_watts: Standard deviation of a reading.
        meter_error: Relative error of the meter.
        shift_s: Clock of the log minus that of the run.
        seed: Of the noise.
    """
    signal = next(iter(world.sensors.values()))
    times_s = np.arange(world.start_s - 5, world.end_s + 5, 1 / rate_hz)
    read = true_watts(signal, times_s, 1.0, 0.0)
    watts = gain * read + offset + bend * (read / 1000) ** 2
    watts = watts * (1 + meter_error) + noise_watts * np.random.default_rng(seed).standard_normal(times_s.shape)
    joules = np.concatenate(([0.0], np.cumsum(watts[:-1]) / rate_hz))
    rows = zip(times_s + shift_s, watts, joules, strict=True)
    path.write_text("time,watts,joules\n" + "".join(f"{t:.4f},{w:.4f},{j:.4f}\n" for t, w, j in rows))
    return path


def node_world(
    *,
    rounds: int = 2,
    seed: int = 0,
    noise: float = 0.0,
    load: float = 1.0,
) -> World:
    """Return a run of two configurations at three batch sizes: the sensor of the node reads 120 to 630 W."""

    def power(_: object, configuration: str, batch_size: int) -> float:
        if configuration == "idle":
            return 120.0
        return load * (150.0 + 60.0 * np.log2(batch_size) + (90.0 if configuration.endswith("int8") else 0.0))

    return make_world([NODE], power=power, rounds=rounds, seed=seed, noise=noise, window_s=2.5, scrape_s=0.2)
