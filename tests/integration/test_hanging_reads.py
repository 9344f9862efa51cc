"""A file that hangs while the thread of a scrape reads it: the same connection is answered by another thread."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import ExporterServer
from support.sysfs import FakeSysfs
from support.waiting import wait_until

pytestmark = pytest.mark.integration

SCRAPE_TIMEOUT_S = 2.0
SCRAPERS = 3


@pytest.fixture
def tree(tmp_path: Path) -> FakeSysfs:
    tree = FakeSysfs(tmp_path / "machine")
    tree.write("class/powercap/intel-rapl:0", name="package-0", energy_uj=1000, max_energy_range_uj=65532610987)
    for chip in (0, 1):
        tree.hwmon(chip, "ltc2992", device=f"platform/board.{chip}", power1_input=12_000_000)
    return tree


@pytest.fixture
def exporter(tree: FakeSysfs, tmp_path: Path) -> Iterator[ExporterServer]:
    flags = (f"--path.sysfs={tree.sys}", f"--path.procfs={tree.proc}", "--no-attribution")
    server = ExporterServer(tmp_path / "exporter", *flags)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def scrapers(exporter: ExporterServer) -> Iterator[list[Scraper]]:
    scrapers = [Scraper(exporter.address) for _ in range(SCRAPERS)]
    for scraper in scrapers:
        scraper.start()
    yield scrapers
    for scraper in scrapers:
        scraper.end()


class Scraper(threading.Thread):
    """Scrapes over one connection, as Prometheus does."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(address, timeout=10 * SCRAPE_TIMEOUT_S)
        self.answers: list[tuple[float, str]] = []
        self.is_ending = threading.Event()

    def run(self) -> None:
        while not self.is_ending.wait(0.2):
            began_s = time.monotonic()
            offered = {"X-Prometheus-Scrape-Timeout-Seconds": str(SCRAPE_TIMEOUT_S)}
            self.connection.request("GET", "/metrics", headers=offered)
            text = self.connection.getresponse().read().decode()
            self.answers.append((time.monotonic() - began_s, text))

    def end(self) -> None:
        self.is_ending.set()
        self.join(10.0)
        self.connection.close()


def down(text: str) -> set[str]:
    return set(re.findall(r'joulewatch_sensor_up\{collector="\w+",device="([^"]*)"\} 0\.0', text))


def replace(file: Path, *, by_fifo: bool) -> None:
    new = file.with_name("new")
    if by_fifo:
        os.mkfifo(new)  # opening it hangs until somebody writes into it
    else:
        new.write_text("12000000\n")
    new.replace(file)


def test_no_scrape_is_lost_when_a_read_hangs(tree: FakeSysfs, scrapers: list[Scraper]) -> None:
    def latest() -> str:
        return scrapers[0].answers[-1][1]

    wait_until(lambda: all(len(scraper.answers) > 10 for scraper in scrapers))
    assert down(latest()) == set()
    file = tree.sys / "devices/platform/board.1/hwmon/hwmon1/power1_input"
    hanging = file.with_name("hanging")
    replace(file, by_fifo=True)
    os.link(file, hanging)
    wait_until(lambda: down(latest()) == {"board.1"})
    others = [
        'joulewatch_device_energy_joules_total{collector="rapl"',
        'joulewatch_part_energy_joules_total{collector="hwmon",component="other",device="board.0"',
        'joulewatch_read_errors_total{collector="hwmon",device="board.1",reason="timeout"} 1.0',
    ]
    # The scrape that meets the hang may end before the other devices have been read.
    wait_until(lambda: all(line in latest() for line in others))
    replace(file, by_fifo=False)
    os.close(os.open(hanging, os.O_WRONLY))  # the read returns
    wait_until(lambda: down(latest()) == set())
    for scraper in scrapers:
        scraper.end()
        spans_s = [span_s for span_s, _ in scraper.answers]
        assert max(spans_s) < SCRAPE_TIMEOUT_S, "no scraper has given up"
        assert all(text.endswith("\n") and down(text) <= {"board.1"} for _, text in scraper.answers)
