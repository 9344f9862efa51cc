"""Sensors disappear and return all the time: memory, threads and descriptors of the exporter must not grow.

One device of each kind vanishes, hangs or fails every few seconds for a few seconds, and one is healthy; the
exporter probes lost devices every second. Half an hour has about 400 disappearances and returns.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faulty_node import quick_settings
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from support.servers import Emulator, ExporterServer
from support.watched_machine import Resources, Series, Watched

DURATION_S = 1800.0
WARM_UP_SHARE = 0.2
SAMPLE_S = 5.0
MAX_RSS_GROWTH_MEBIBYTES = 4.0
MAX_THREAD_GROWTH = 4
MAX_DESCRIPTOR_GROWTH = 16

HEALTHY: tuple[Series, ...] = (
    ("rapl", "socket0", "package"),
    ("nvml", "GPU-50a00000-0000-4000-8000-000000000000", "total"),
    ("fpga", "0000:3b:00", "total"),
    ("hwmon", "i2c-3-3-0040", "power1"),
    ("ipmi", "bmc0", "total"),
    ("redfish", "chassis0", "total"),
)


def timetable(
    kinds: tuple[str, ...], first_s: float, every_s: float, for_s: float, end_s: float
) -> list[dict[str, Any]]:
    """Return faults of these kinds in turn."""
    faults, at_s, number = [], first_s, 0
    while at_s < end_s:
        faults.append({"kind": kinds[number % len(kinds)], "at_s": round(at_s, 3), "for_s": for_s})
        at_s, number = at_s + every_s, number + 1
    return faults


def scenario(duration_s: float) -> dict[str, Any]:
    """Return two devices of each kind: the first is healthy, the second disappears and returns."""
    end_s = duration_s + 60.0

    def churn(first_s: float, every_s: float, *kinds: str) -> dict[str, Any]:
        return {"faults": timetable(kinds, first_s, every_s, 3.0, end_s)}

    def gpu(number: int, **more: Any) -> dict[str, Any]:
        uuid = f"GPU-50a00000-0000-4000-8000-00000000000{number}"
        return {"uuid": uuid, "bus_id": f"0000:{17 + number}:00.0", "signal": "device", **more}

    def zone(number: int, **more: Any) -> dict[str, Any]:
        name = f"package-{number}"
        return {
            "zone": f"intel-rapl:{number}",
            "name": name,
            "key": f"socket{number}/package",
            "signal": "device",
            **more,
        }

    def chip(number: int, **more: Any) -> dict[str, Any]:
        place = f"3-004{number}"
        channel = {"kind": "power", "number": 1, "key": f"i2c-3-{place}/power1", "signal": "device"}
        return {"chip": "ina226", "path": f"devices/platform/axi/i2c-3/{place}", "channels": [channel], **more}

    return {
        "name": "soak",
        "refresh_s": 0.02,
        "signals": {
            "device": {"kind": "sine", "mean_watts": 120, "amplitude_watts": 30, "period_s": 21},
            "node": {"kind": "scale", "factor": 10, "signal": "device"},
        },
        "machine": {"vendor": "AuthenticAMD", "family": 25, "model": 1, "sockets": 2, "cpus_per_socket": 4},
        "zones": [zone(0), zone(1, **churn(5, 17, "vanish", "eio", "hang"))],
        "gpus": [gpu(0), gpu(1, **churn(6, 19, "absent", "vanish", "hang"))],
        "fpgas": [
            {"card": "0000:3b:00", "signal": "device"},
            {"card": "0000:86:00", "signal": "device", **churn(7, 18, "vanish", "hang", "eio")},
        ],
        "hwmon": [chip(0), chip(1, **churn(8, 16, "vanish"))],
        "bmcs": [
            {"name": "bmc0", "signal": "node"},
            {"name": "bmc1", "signal": "node", **churn(9, 23, "vanish", "hang")},
        ],
        "redfish": [
            {"name": "chassis0", "signal": "node"},
            {"name": "chassis1", "signal": "node", **churn(11, 22, "vanish", "hang", "busy")},
        ],
    }


@dataclass(frozen=True, slots=True)
class Soaked:
    """Results of a soak test."""

    samples: list[tuple[float, Resources]]
    watched: Watched
    deviations: dict[Series, float]
    """Relative errors of the energy of the healthy devices."""

    def _thirds(self) -> tuple[list[Resources], list[Resources]]:
        """Return the first and the last third after the warm-up."""
        warm = [resources for _, resources in self.samples[int(len(self.samples) * WARM_UP_SHARE) :]]
        third = max(1, len(warm) // 3)
        return warm[:third], warm[-third:]

    def growth(self, field: str) -> float:
        """Return the minimum of the last third minus the minimum of the first third.

        A search for devices opens files for a moment; what leaks is in the minimum, too.
        """
        early, late = self._thirds()
        return float(
            min(getattr(resources, field) for resources in late) - min(getattr(resources, field) for resources in early)
        )


def soak(duration_s: float) -> Soaked:
    """Run the scenario for ``duration_s``."""
    folder = Path(tempfile.mkdtemp(prefix="joulewatch-soak-"))
    file = folder / "soak.yaml"
    file.write_text(yaml.safe_dump(scenario(duration_s)))
    machine = Emulator(file)
    watched = Watched()
    samples: list[tuple[float, Resources]] = []
    machine.start()
    try:
        exporter = ExporterServer(
            folder / "exporter", f"--config.file={quick_settings(machine.folder / 'exporter.yaml', folder)}"
        )
        exporter.start()
        assert exporter.process is not None
        try:
            start = time.monotonic()
            while (at_s := time.monotonic() - start) < duration_s:
                watched.watch(exporter.url, min(SAMPLE_S, duration_s - at_s))
                samples.append((time.monotonic() - start, Resources.of(exporter.process.pid)))
        finally:
            exporter.stop()
        truth = Truth.load(machine.folder)
        deviations = {series: watched.deviation(series, truth) for series in HEALTHY}
    finally:
        machine.remove()
        shutil.rmtree(folder)
    return Soaked(samples, watched, deviations)


def run(*, quick: bool = False) -> None:
    """Run for half an hour (quick: two minutes) and write the result."""
    machine = describe_machine()
    duration_s = 120.0 if quick else DURATION_S
    soaked = soak(duration_s)
    returns = {
        device: sum(1 for (_, was), (_, is_up) in itertools.pairwise(ups) if is_up and not was)
        for device, ups in soaked.watched.up.items()
    }
    cpu = soaked.samples[-1][1].cpu_s / soaked.samples[-1][0]
    marks = [soaked.samples[round(share * (len(soaked.samples) - 1))] for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    rows = [
        [f"{at_s:.0f}", f"{resources.rss_mebibytes:.1f}", str(resources.threads), str(resources.descriptors)]
        for at_s, resources in marks
    ]
    healthy = [
        [series[0], series[1], f"{100 * deviation:+.4f}", str(returns.get(series[:2], 0))]
        for series, deviation in soaked.deviations.items()
    ]
    came_back = ", ".join(f"{'/'.join(device)} {count}" for device, count in returns.items() if count)
    text = f"""# Soak test: sensors that disappear and return all the time

{host_line(machine)}

{duration_s:.0f} s at one scrape per second; {sum(returns.values())} returns of a device ({came_back}). Rules broken:
{len(soaked.watched.complaints)}. CPU {100 * cpu:.2f} % of a core.

{markdown_table(["at, s", "RSS, MiB", "threads", "descriptors"], rows)}
Growth from the first third to the last, after the warm-up: RSS {soaked.growth("rss_mebibytes"):+.1f} MiB, threads
{soaked.growth("threads"):+.0f}, descriptors {soaked.growth("descriptors"):+.0f}.

Energy of the devices that were healthy all the time, compared with the truth:

{markdown_table(["family", "device", "deviation, %", "times lost"], healthy)}"""
    result = {
        "machine": machine,
        "samples": [[at_s, dataclasses.asdict(resources)] for at_s, resources in soaked.samples],
        "returns": {"/".join(device): count for device, count in returns.items()},
        "deviations": {"/".join(series): value for series, value in soaked.deviations.items()},
        "complaints": soaked.watched.complaints,
    }
    write_result("soak", result, text)
