"""Hostile peers of one exporter: 64 password guessers against a scraper, and 30 Redfish services that answer with as
many JSON values as the limits allow, or without end. The exporter is a process of its own; so are the guessers."""

from __future__ import annotations

import base64
import http.client
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.collectors.redfish.client import MAX_BODY_BYTES, MAX_VALUES
from support.servers import Emulator, ExporterServer
from support.watched_machine import Resources

GUESSERS = 64
TARGETS = 30
COST = 10
"""Cost of bcrypt, which is what ``htpasswd -C 10`` makes."""
REDFISH = """exporter: {{read_timeout_seconds: 2}}
collectors:
  redfish:
    interval_seconds: 1
    deadline_seconds: 5
    targets: {targets}
"""


class GuardedServer(ExporterServer):
    """An exporter that answers 401 until it is given a password."""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        host, port = self.address.split(":")
        end_s = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < end_s, self.log.read_text()
                time.sleep(0.02)


def guess(address: str, is_keeping: bool, until_s: float) -> None:
    """Send wrong passwords from ``GUESSERS`` threads, and from another address than the scraper's."""

    def loop(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=5, source_address=("127.0.0.2", 0))
        count = 0
        while time.time() < until_s:
            count += 1
            header = base64.b64encode(f"scraper:{number}-{count}".encode()).decode()
            try:
                connection.request("GET", "/metrics", headers={"Authorization": f"Basic {header}"})
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            if not is_keeping:
                connection.close()

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(GUESSERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def latencies(address: str, headers: dict[str, str], status: int, seconds: float) -> list[float]:
    """Return the times of requests on one connection, 20 per second, in milliseconds."""
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        times = []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            began_s = time.perf_counter()
            connection.request("GET", "/metrics", headers=headers)
            response = connection.getresponse()
            response.read()
            times.append(1e3 * (time.perf_counter() - began_s))
            assert response.status == status, response.status
            time.sleep(0.05)
    return times


def measure_guessers(folder: Path, emulator: Emulator, seconds: float) -> list[dict[str, Any]]:
    """Return the latencies without guessers, with guessers that keep their connections, and with others."""
    import bcrypt

    stored = bcrypt.hashpw(b"correct", bcrypt.gensalt(COST)).decode()
    web = folder / "web.yaml"
    web.write_text(f"basic_auth_users: {{scraper: '{stored}'}}\n")
    server = GuardedServer(folder / "exporter", *emulator.flags, f"--web.config.file={web}")
    server.start()
    rows = []
    try:
        good = {"Authorization": "Basic " + base64.b64encode(b"scraper:correct").decode()}
        latencies(server.address, good, 200, 0.2)  # the password is in the cache from here on
        for name, is_keeping in (("none", None), ("kept connections", True), ("new connections", False)):
            until_s = time.time() + 2 * seconds + 1.0
            guessers = multiprocessing.get_context("spawn").Process(
                target=guess, args=(server.address, bool(is_keeping), until_s)
            )
            if is_keeping is not None:
                guessers.start()
                time.sleep(1.0)
            try:
                cached = latencies(server.address, good, 200, seconds)
                without = latencies(server.address, {}, 401, seconds)
            finally:
                if is_keeping is not None:
                    guessers.join()
            for kind, times in (("password in the cache", cached), ("no password", without)):
                ordered = sorted(times)
                rows.append(
                    {
                        "guessers": name,
                        "request": kind,
                        "median_ms": statistics.median(ordered),
                        "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
                        "requests": len(ordered),
                    }
                )
    finally:
        server.stop()
    return rows


@contextmanager
def services(count: int) -> Iterator[list[str]]:
    """Serve hostile Redfish services: a third with large bodies, a third that drip, a third without end."""
    values = json.dumps({"Chassis": {"@odata.id": "/redfish/v1/C"}, "x": [{}] * ((MAX_VALUES - 40) // 2)}).encode()
    padded = values + b" " * (MAX_BODY_BYTES - len(values) - 1)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]

    def answer(connection: socket.socket, kind: int) -> None:
        with connection, suppress(OSError):
            while connection.recv(65536):
                if kind == 0:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(padded) + padded)
                elif kind == 1:
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(padded)
                    connection.sendall(head + padded[:-200])
                    while True:
                        time.sleep(0.1)
                        connection.sendall(b" ")
                else:
                    while True:
                        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    def accept(listener: socket.socket, kind: int) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0], kind), daemon=True).start()

    for index, listener in enumerate(listeners):
        threading.Thread(target=accept, args=(listener, index % 3), daemon=True).start()
    try:
        yield [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def serve_forever(count: int, connection: Any) -> None:
    with services(count) as urls:
        connection.send(urls)
        connection.recv()


def measure_services(folder: Path, emulator: Emulator, seconds: float) -> dict[str, Any]:
    """Return memory and processor of an exporter that reads hostile services."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_forever, args=(TARGETS, there))
    process.start()
    urls = here.recv()
    targets = [{"name": f"bmc{index}", "url": url, "insecure": True} for index, url in enumerate(urls)]
    config = folder / "redfish.yaml"
    config.write_text(REDFISH.format(targets=json.dumps(targets)))
    server = ExporterServer(folder / "redfish", *emulator.flags, f"--config.file={config}")
    server.start()
    try:
        assert server.process is not None
        before = Resources.of(server.process.pid)
        most = 0.0
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            most = max(most, Resources.of(server.process.pid).rss_mebibytes)
            time.sleep(0.1)
        after = Resources.of(server.process.pid)
        with closing(http.client.HTTPConnection(server.address, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        down = sum(line.startswith('joulewatch_sensor_up{collector="redfish"') for line in text.splitlines())
        return {
            "targets": TARGETS,
            "targets_down": down,
            "rss_mebibytes_at_start": before.rss_mebibytes,
            "rss_mebibytes_most": most,
            "cpu_of_a_core": (after.cpu_s - before.cpu_s) / seconds,
        }
    finally:
        server.stop()
        here.send(None)
        process.join(10)


def run(*, quick: bool = False) -> None:
    """Measure and write the result."""
    machine = describe_machine()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    emulator = Emulator("epyc-7763-node")
    emulator.start()
    try:
        with tempfile.TemporaryDirectory() as name:
            rows = measure_guessers(Path(name), emulator, 2.0 if quick else 15.0)
            redfish = measure_services(Path(name), emulator, 5.0 if quick else 40.0)
    finally:
        emulator.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    result = {"machine": machine, "guessers": rows, "redfish": redfish}
    table = f"# Hostile clients and services\n\n{host_line(machine)}\n"
    table += (
        f"Load average at the start {machine['load_average_at_start']:.1f}, at the end {os.getloadavg()[0]:.1f}.\n\n"
    )
    table += (
        f"{GUESSERS} guessers in another process of the same machine, with an address of their own; bcrypt has cost "
        f"{COST}.\n\n"
    )
    table += markdown_table(
        ["guessers", "request", "median ms", "p99 ms", "requests"],
        [
            [row["guessers"], row["request"], f"{row['median_ms']:.1f}", f"{row['p99_ms']:.1f}", str(row["requests"])]
            for row in rows
        ],
    )
    table += (
        f"\n{redfish['targets']} Redfish services: a third answers with {MAX_BODY_BYTES >> 10} KiB and {MAX_VALUES} "
        "JSON values, a third drips such a body, a third sends `100 Continue` without end: "
        f"at most {redfish['rss_mebibytes_most']:.0f} MiB ({redfish['rss_mebibytes_at_start']:.0f} at the start), "
        f"{redfish['cpu_of_a_core']:.2f} of a core, {redfish['targets_down']} of them have "
        "`joulewatch_sensor_up`.\n"
    )
    write_result("hostile_clients", result, table)
