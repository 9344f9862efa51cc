"""The exporter under all attacks at once: slow clients, password guessers, clients that leak connections, hostile BMCs
and Redfish services, and devices that disappear and return. ``soak_attacks.py`` has the attackers and their rates.

One device of each kind is healthy; another vanishes, hangs or fails every few seconds for a few seconds. One
well-behaved client scrapes every second, as Prometheus does. Checked are its scrapes, the energy of the healthy
devices, and that memory, threads and descriptors do not grow, neither during the attack nor from before it to after it.

    python tests/benchmarks/soak.py --minutes 60

writes ``results/soak.md`` and exits with status 1 if a check fails. Other jobs on the same machine would disturb the
result, so all processes run at nice -10 if that is permitted. In less than about 20 minutes, the age of the first and
last power readings of the BMCs (1 to 2 s) is more than 0.05 % of the energy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import soak_attacks
from benchmarks.faulty_node import quick_settings
from benchmarks.hostile_clients import COST, GuardedServer
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from support.paths import ROOT
from support.servers import Emulator
from support.watched_machine import Resources, Series, Watched

MINUTES: Final = 60.0
SETTLE_S: Final = 10.0
"""Time from the first answer of the exporter until the test begins."""
QUIET_S: Final = 20.0
"""Time before and after the attack of the clients; the hostile devices are there all the time."""
SCRAPE_TIMEOUT_S: Final = 1.0
"""For a whole scrape: the longest that Prometheus allows at an interval of one second."""
HOSTILE_INTERVAL_S: Final = 5.0
GROWTH_SHARE: Final = 0.25
"""The slopes do not use this share of the attack, at its start."""
MAX_BLOCKS: Final = 30
MAX_RSS_GROWTH_MEBIBYTES: Final = 4.0
MAX_RSS_MEBIBYTES: Final = 128.0
"""``MemoryMax`` of the systemd unit."""
MAX_THREAD_GROWTH: Final = 4.0
MAX_DESCRIPTOR_GROWTH: Final = 16.0
MAX_DEVIATION: Final = 0.0005

HEALTHY: tuple[Series, ...] = (
    ("rapl", "socket0", "package"),
    ("nvml", "GPU-50a00000-0000-4000-8000-000000000000", "total"),
    ("fpga", "0000:3b:00", "total"),
    ("hwmon", "i2c-3-3-0040", "power1"),
    ("ipmi", "bmc0", "total"),
    ("redfish", "chassis0", "total"),
)
HOT_PLUGGED: Final = (
    ("rapl", "socket1"),
    ("nvml", "GPU-50a00000-0000-4000-8000-000000000001"),
    ("fpga", "0000:86:00"),
    ("hwmon", "i2c-3-3-0041"),
)
"""The local devices that disappear, each several times in a minute."""
GARBLED: Final = "bmc2"
"""Its datagrams are garbled on the way."""


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
    """Return two devices of each kind: the first is healthy, the second disappears and returns. A third BMC is healthy
    behind a bad network."""
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
            {"name": GARBLED, "signal": "node"},
        ],
        "redfish": [
            {"name": "chassis0", "signal": "node"},
            {"name": "chassis1", "signal": "node", **churn(11, 22, "vanish", "hang", "busy")},
        ],
    }


class Scraper:
    """A well-behaved client, as Prometheus: it keeps its connection, and opens another if the server has closed it."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SCRAPE_TIMEOUT_S)
        self.reconnects = 0

    def scrape(self) -> tuple[str, float]:
        """Return the text and the time that it took.

        Raises:
            OSError: There was no complete answer in time, or not the status 200.
            http.client.HTTPException: The answer is not valid.
        """
        start_s = time.perf_counter()
        was_open = self._connection.sock is not None
        try:
            try:
                status, text = self._ask()
            except (ConnectionError, http.client.RemoteDisconnected):
                if not was_open:
                    raise
                self._connection.close()
                self.reconnects += 1
                status, text = self._ask()
            took_s = time.perf_counter() - start_s
            if status != 200:
                raise OSError(f"status {status}")
            if took_s > SCRAPE_TIMEOUT_S:
                raise TimeoutError(f"{took_s:.3f} s")
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        return text, took_s

    def _ask(self) -> tuple[int, str]:
        headers = {"Authorization": soak_attacks.PASSWORD, "X-Prometheus-Scrape-Timeout-Seconds": f"{SCRAPE_TIMEOUT_S}"}
        self._connection.request("GET", "/metrics", headers=headers)
        response = self._connection.getresponse()
        return response.status, response.read().decode()

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Growth over the last three quarters of the attack."""

    growth: float
    uncertainty: float
    """Half of the 95 % interval."""
    span_s: float

    @classmethod
    def of(cls, times_s: list[float], values: list[float]) -> Slope:
        """Fit a line through the means of at most ``MAX_BLOCKS`` blocks, because neighbouring values are correlated."""
        first = int(len(values) * GROWTH_SHARE)
        times_s, values = times_s[first:], values[first:]
        size = max(1, len(values) // MAX_BLOCKS)
        xs = [statistics.fmean(times_s[at : at + size]) for at in range(0, len(values) - size + 1, size)]
        ys = [statistics.fmean(values[at : at + size]) for at in range(0, len(values) - size + 1, size)]
        line = statistics.linear_regression(xs, ys)
        residuals = [y - line.slope * x - line.intercept for x, y in zip(xs, ys, strict=True)]
        spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
        error = math.sqrt(sum(residual**2 for residual in residuals) / (len(xs) - 2) / spread)
        span_s = times_s[-1] - times_s[0]
        return cls(growth=line.slope * span_s, uncertainty=2.05 * error * span_s, span_s=span_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise, and whether it was kept."""

    promise: str
    limit: str
    seen: str
    is_kept: bool


@dataclass(slots=True, kw_only=True)
class Soaked:
    """Results of a soak test."""

    watched: Watched = field(default_factory=Watched)
    scrapes: int = 0
    lost: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the start, and the reason."""
    reconnects: int = 0
    before: list[Resources] = field(default_factory=list)
    samples: list[tuple[float, Resources]] = field(default_factory=list)
    """During the attack."""
    after: list[Resources] = field(default_factory=list)
    deviations: dict[Series, float] = field(default_factory=dict)
    """Relative errors of the energy of the healthy devices."""
    attackers: dict[str, int] = field(default_factory=dict)
    """What the clients counted."""
    refused: dict[str, float] = field(default_factory=dict)
    """What the exporter refused, by limit."""
    cpu_of_a_core: dict[str, float] = field(default_factory=dict)
    """Share of a core, by process."""
    loads: list[float] = field(default_factory=list)
    tracebacks: int = 0

    def slope(self, name: str) -> Slope:
        """Return the growth of a field of `Resources`."""
        return Slope.of([at_s for at_s, _ in self.samples], [getattr(values, name) for _, values in self.samples])

    def left_over(self, name: str) -> float:
        """Return the least value after the attack minus the least before it.

        A search for devices opens files for a moment; what leaks is in the minimum, too.
        """
        least = [min(float(getattr(values, name)) for values in phase) for phase in (self.before, self.after)]
        return least[1] - least[0]

    def garbled_watts(self) -> list[float]:
        """Return all values of the BMC whose datagrams are garbled."""
        samples = self.watched.samples[("ipmi", GARBLED, "total")]
        return [sample.watts for sample in samples if sample.watts is not None]

    def checks(self) -> list[Check]:
        """Return all checks."""
        rss = max(values.rss_mebibytes for _, values in self.samples)
        down = [
            f"{collector} {device} {sum(not is_up for _, is_up in self.watched.up[collector, device])}"
            for collector, device, _ in HEALTHY
            if not self.watched.was_always_up((collector, device))
        ]
        wrong = [watts for watts in self.garbled_watts() if not 890.0 <= watts <= 1510.0]
        checks = [
            Check(
                promise=f"scrapes lost (time-out {SCRAPE_TIMEOUT_S:g} s)", limit="0",
                seen=f"{len(self.lost)} of {self.scrapes}", is_kept=not self.lost,
            ),
            Check(
                promise="rules broken (a total that fell, two totals for one timestamp, a negative value)", limit="0",
                seen=str(len(self.watched.complaints)), is_kept=not self.watched.complaints,
            ),
            Check(
                promise="scrapes in which a healthy device was down", limit="0", seen=", ".join(down) or "0",
                is_kept=not down,
            ),
            Check(
                promise="values of the garbled BMC that it never had", limit="0",
                seen=f"{len(wrong)} of {len(self.garbled_watts())}", is_kept=not wrong,
            ),
            Check(
                promise="tracebacks in the log", limit="0", seen=str(self.tracebacks), is_kept=not self.tracebacks
            ),
            Check(
                promise="most memory, MiB", limit=f"{MAX_RSS_MEBIBYTES:g}", seen=f"{rss:.1f}",
                is_kept=rss <= MAX_RSS_MEBIBYTES,
            ),
        ]  # fmt: skip
        for name, label, limit in (
            ("rss_mebibytes", "memory, MiB", MAX_RSS_GROWTH_MEBIBYTES),
            ("threads", "threads", MAX_THREAD_GROWTH),
            ("descriptors", "descriptors", MAX_DESCRIPTOR_GROWTH),
        ):
            slope = self.slope(name)
            checks.append(
                Check(
                    promise=f"growth in the last {slope.span_s / 60:.0f} min: {label}",
                    limit=f"{limit:g}",
                    seen=f"{slope.growth:+.2f} ± {slope.uncertainty:.2f}",
                    is_kept=slope.growth + slope.uncertainty <= limit,
                )
            )
        for name, label, limit in (
            ("threads", "threads", MAX_THREAD_GROWTH),
            ("descriptors", "descriptors", MAX_DESCRIPTOR_GROWTH),
        ):
            more = self.left_over(name)
            promise = f"{label} after the attack, compared with before"
            checks.append(Check(promise=promise, limit=f"{limit:g}", seen=f"{more:+.0f}", is_kept=more <= limit))
        for series, deviation in self.deviations.items():
            checks.append(
                Check(
                    promise=f"energy of {series[0]} {series[1]}: deviation from the truth, %",
                    limit=f"{100 * MAX_DEVIATION:g}",
                    seen=f"{100 * deviation:+.4f}",
                    is_kept=abs(deviation) <= MAX_DEVIATION,
                )
            )
        return checks


def settings(machine: Emulator, folder: Path, devices: soak_attacks.Devices) -> Path:
    """Write the configuration of the machine, with the hostile devices added."""
    path = quick_settings(machine.folder / "exporter.yaml", folder)
    config = yaml.safe_load(path.read_text())
    families = config["collectors"]
    bmcs = families["ipmi"]["targets"]
    garbled = next(target for target in bmcs if target["name"] == GARBLED)
    like = {**garbled, "this_machine": False, "interval_seconds": HOSTILE_INTERVAL_S}
    garbled["port"] = devices.garbled_port
    bmcs += [{**like, "name": name, "port": port} for name, port in devices.ipmi.items()]
    families["redfish"]["targets"] += [
        {"name": name, "url": url, "insecure": True, "interval_seconds": HOSTILE_INTERVAL_S}
        for name, url in devices.redfish.items()
    ]
    path.write_text(yaml.safe_dump(config))
    return path


def web_settings(folder: Path) -> Path:
    """Write the web configuration, with one user."""
    import bcrypt

    stored = bcrypt.hashpw(b"correct", bcrypt.gensalt(COST)).decode()
    path = folder / "web.yaml"
    path.write_text(f"basic_auth_users: {{scraper: '{stored}'}}\n")
    return path


def bmc_port(machine: Emulator) -> int:
    """Return the port of the BMC whose datagrams are garbled."""
    targets = yaml.safe_load((machine.folder / "exporter.yaml").read_text())["collectors"]["ipmi"]["targets"]
    return next(int(target["port"]) for target in targets if target["name"] == GARBLED)


def wait_for_answer(address: str) -> None:
    """Wait for the exporter's first answer: while it starts, no scraper can succeed."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("GET", "/metrics", headers={"Authorization": soak_attacks.PASSWORD})
        connection.getresponse().read()


class Phases:
    """The test's own loop: a scrape and a look at the exporter's resources each second."""

    def __init__(self, exporter: GuardedServer, soaked: Soaked) -> None:
        assert exporter.process is not None
        self._pid = exporter.process.pid
        self._scraper = Scraper(exporter.url)
        self._soaked = soaked
        self._start_s = time.monotonic()
        self._text = ""

    def run(self, duration_s: float) -> list[tuple[float, Resources]]:
        """Scrape for ``duration_s``; return the resources, with the seconds since the start."""
        soaked = self._soaked
        begun_s = time.monotonic()
        samples = []
        for tick in range(max(1, round(duration_s))):
            time.sleep(max(0.0, begun_s + tick - time.monotonic()))
            soaked.scrapes += 1
            at_s = time.monotonic() - self._start_s
            try:
                self._text, took_s = self._scraper.scrape()
                soaked.watched.record(self._text, took_s)
                self._report_down(at_s)
            except (OSError, http.client.HTTPException) as error:
                soaked.lost.append((at_s, f"{type(error).__name__}: {error}"))
                report(f"{at_s:.0f} s: lost: {soaked.lost[-1][1]}; load {os.getloadavg()[0]:.1f}")
            samples.append((at_s, Resources.of(self._pid)))
            if tick % 60 == 0:
                soaked.loads.append(os.getloadavg()[0])
                now = samples[-1][1]
                report(
                    f"{at_s:.0f} s: {soaked.scrapes} scrapes, {len(soaked.lost)} lost, {now.rss_mebibytes:.1f} MiB, "
                    f"{now.threads} threads, {now.descriptors} descriptors, load {soaked.loads[-1]:.1f}"
                )
        return samples

    def _report_down(self, at_s: float) -> None:
        for collector, device, _ in HEALTHY:
            if not self._soaked.watched.up[collector, device][-1][1]:
                start = f'joulewatch_sensor_state{{collector="{collector}",device="{device}"'
                states = [line for line in self._text.splitlines() if line.startswith(start) and line.endswith(" 1.0")]
                report(f"{at_s:.0f} s: {collector} {device} is down: {states}")

    def end(self) -> None:
        """Note what only the last scrape has."""
        self._scraper.close()
        self._soaked.reconnects = self._scraper.reconnects
        for line in self._text.splitlines():
            if line.startswith("joulewatch_exporter_refused_total{"):
                labels, _, value = line.rpartition(" ")
                self._soaked.refused[labels.split('"')[1]] = float(value)


def report(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def soak(attack_s: float, quiet_s: float = QUIET_S, settle_s: float = SETTLE_S) -> Soaked:
    """Run the scenario; the clients attack for ``attack_s``, and not in ``quiet_s`` before and after."""
    soaked = Soaked()
    folder = Path(tempfile.mkdtemp(prefix="joulewatch-soak-"))
    file = folder / "soak.yaml"
    file.write_text(yaml.safe_dump(scenario(attack_s + 2 * quiet_s)))
    machine = Emulator(file)
    machine.start()
    try:
        with soak_attacks.in_process(soak_attacks.serve_devices, bmc_port(machine)) as (pipe, devices_pid):
            flags = [f"--config.file={settings(machine, folder, pipe.recv())}"]
            exporter = GuardedServer(folder / "exporter", *flags, f"--web.config.file={web_settings(folder)}")
            exporter.start()
            try:
                wait_for_answer(exporter.address)
                time.sleep(settle_s)
                _attack(soaked, exporter, machine, devices_pid, attack_s, quiet_s)
            finally:
                exporter.stop()
                log = exporter.log.read_text()
                soaked.tracebacks = log.count("Traceback")
                report(log[-20_000:])
        truth = Truth.load(machine.folder)
        soaked.deviations = {series: soaked.watched.deviation(series, truth) for series in HEALTHY}
    finally:
        machine.remove()
        shutil.rmtree(folder)
    return soaked


def _attack(
    soaked: Soaked, exporter: GuardedServer, machine: Emulator, devices_pid: int, attack_s: float, quiet_s: float
) -> None:
    assert exporter.process is not None
    assert machine.process is not None
    phases = Phases(exporter, soaked)
    soaked.before = [values for _, values in phases.run(quiet_s)]
    with soak_attacks.in_process(soak_attacks.attack_server, exporter.address) as (pipe, clients_pid):
        pids = {
            "exporter": exporter.process.pid,
            "clients that attack": clients_pid,
            "hostile devices": devices_pid,
            "emulator": machine.process.pid,
        }
        cpu_s = {name: Resources.of(pid).cpu_s for name, pid in pids.items()}
        start_s = time.monotonic()
        soaked.samples = phases.run(attack_s)
        for name, pid in pids.items():
            soaked.cpu_of_a_core[name] = (Resources.of(pid).cpu_s - cpu_s[name]) / (time.monotonic() - start_s)
        pipe.send(None)
        if pipe.poll(30):
            soaked.attackers = pipe.recv()
    soaked.after = [values for _, values in phases.run(quiet_s)]
    phases.end()


def text_of(soaked: Soaked, machine: dict[str, Any], minutes: float) -> str:
    """Return the result as Markdown."""
    checks = soaked.checks()
    rows = [[check.promise, check.limit, check.seen, "yes" if check.is_kept else "**no**"] for check in checks]
    returns = {
        device: sum(1 for (_, was), (_, is_up) in itertools.pairwise(ups) if is_up and not was)
        for device, ups in soaked.watched.up.items()
    }
    came_back = ", ".join(f"{'/'.join(device)} {count}" for device, count in sorted(returns.items()) if count)
    marks = [soaked.samples[round(share * (len(soaked.samples) - 1))] for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    latencies_ms = sorted(1e3 * latency_s for latency_s in soaked.watched.latencies_s)
    attacks = "\n".join(f"- {attack}" for attack in (*soak_attacks.CLIENT_ATTACKS, *soak_attacks.DEVICE_ATTACKS))
    verdict = "All checks passed." if all(check.is_kept for check in checks) else "**Checks failed.**"
    lost = "".join(f"\nLost at {at_s:.0f} s: {reason}." for at_s, reason in soaked.lost[:20])
    slopes = {name: soaked.slope(name) for name in ("rss_mebibytes", "threads", "descriptors")}
    per_hour = [
        [
            name.replace("rss_mebibytes", "RSS, MiB"),
            f"{slope.growth * 3600 / slope.span_s:+.2f}",
            f"{slope.uncertainty * 3600 / slope.span_s:.2f}",
        ]
        for name, slope in slopes.items()
    ]
    measured = [
        [f"{at_s:.0f}", f"{values.rss_mebibytes:.1f}", str(values.threads), str(values.descriptors)]
        for at_s, values in marks
    ]
    cpu = [[name, f"{100 * share:.1f}"] for name, share in soaked.cpu_of_a_core.items()]
    counts = ", ".join(f"{name} {count}" for name, count in sorted(soaked.attackers.items()))
    refused = ", ".join(f"{name} {count:.0f}" for name, count in soaked.refused.items())
    return f"""# Soak test: all attacks at once

{host_line(machine)}
{minutes:g} minutes of attack, {QUIET_S:g} s before and after it without attacking clients. Commit {machine["commit"]}.
Load average (the machine has other jobs): median {statistics.median(soaked.loads):.1f}, most {max(soaked.loads):.1f};
{machine["priority"]}.

{verdict}

{markdown_table(["check", "limit", "seen", "kept"], rows)}{lost}
A growth is the slope over the last three quarters of the attack times their length, ± half of its 95 % interval; the
limit applies to the sum. Slopes per hour:

{markdown_table(["", "per hour", "±"], per_hour)}
The scraper asks every second on one connection that it keeps, with a password. A scrape that meets a device that hangs
takes {0.75 * SCRAPE_TIMEOUT_S:g} s, because the exporter answers after three quarters of the time-out. Scrape: median
{statistics.median(latencies_ms):.1f} ms, p99 {latencies_ms[int(0.99 * len(latencies_ms))]:.0f} ms, longest
{latencies_ms[-1]:.0f} ms; it had to open {soaked.reconnects} new connections.

Attacks, all the time and all at once:

{attacks}

The exporter reads each hostile device every {HOSTILE_INTERVAL_S:g} s and the others every 1 or 2 s. Counts of the
clients: {counts}. Refused by the exporter: {refused}. {sum(returns.values())} returns of a device ({came_back}).

{markdown_table(["at, s", "RSS, MiB", "threads", "descriptors"], measured)}
{markdown_table(["process", "CPU, % of a core"], cpu)}"""


def run_minutes(minutes: float) -> bool:
    """Run the test and write the result; return whether all checks passed."""
    machine = describe_machine()
    revision = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    machine["commit"] = revision.stdout.strip() or "unknown"
    try:
        machine["priority"] = f"all processes of the test run at nice {os.nice(-10)}"
    except PermissionError:
        machine["priority"] = "all processes of the test run at nice 0"
    soaked = soak(60.0 * minutes)
    checks = soaked.checks()
    result = {
        "machine": machine,
        "minutes": minutes,
        "checks": [dataclasses.asdict(check) for check in checks],
        "lost": soaked.lost,
        "samples": [[round(at_s, 1), dataclasses.asdict(values)] for at_s, values in soaked.samples[::10]],
        "deviations": {"/".join(series): value for series, value in soaked.deviations.items()},
        "complaints": soaked.watched.complaints,
        "attackers": soaked.attackers,
        "refused": soaked.refused,
        "cpu_of_a_core": soaked.cpu_of_a_core,
        "loads": soaked.loads,
    }
    write_result("soak", result, text_of(soaked, machine, minutes))
    return all(check.is_kept for check in checks)


def run(*, quick: bool = False) -> None:
    """Run for an hour (quick: two minutes) and write the result."""
    run_minutes(2.0 if quick else MINUTES)


def main() -> int:
    """Run for the minutes of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the attack (default: %(default)g)")
    return 0 if run_minutes(parser.parse_args().minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
