"""An exporter over HTTP whose counters rise at a constant power, for tests of meters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from support.loopback import LoopbackServer, QuietHandler


@dataclasses.dataclass(kw_only=True)
class Counter:
    """One energy counter."""

    component: str = "cpu"
    device: str = "socket0"
    domain: str = "package"
    scope: str = "device"
    watts: float = 100.0
    refresh_s: float = 1e-6
    accuracy: str = ""
    method: str = "counter"
    still: bool = False
    """The counter does not change."""

    def labels(self) -> str:
        collector = "nvml" if self.component == "gpu" else "rapl"
        return f'collector="{collector}",component="{self.component}",device="{self.device}",domain="{self.domain}"'


class CountingExporter(LoopbackServer):
    """Answers like joulewatch-exporter; ``down`` makes it answer 503."""

    def __init__(self, counters: Sequence[Counter] = (Counter(),), nodename: str = "node1") -> None:
        self.counters = [dataclasses.replace(counter) for counter in counters]
        self.nodename = nodename
        self.down = False
        self.requests = 0
        self.burned_joules = 0.0
        """Added to every counter by requests of ``/burn?JOULES``."""
        self.started_s = time.time()
        outer = self

        class Page(QuietHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if self.path.startswith("/burn?"):
                    outer.burned_joules += float(self.path.partition("?")[2])
                body = outer.page().encode()
                self.send_response(503 if outer.down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Page)

    def page(self) -> str:
        """Return the metrics page of this moment."""
        now_s = time.time()
        lines = [
            f'joulewatch_exporter_info{{version="0",nodename="{self.nodename}",emulated="0"}} 1',
            f"joulewatch_exporter_start_timestamp_seconds {self.started_s!r}",
            f"process_cpu_seconds_total {0.001 * self.requests!r}",
        ]
        for counter in self.counters:
            labels = counter.labels()
            joules = 1000.0 + self.burned_joules + (0.0 if counter.still else counter.watts * (now_s - self.started_s))
            device = ",".join(label for label in labels.split(",") if label.startswith(("collector", "device")))
            lines += [
                f"joulewatch_{counter.scope}_energy_joules_total{{{labels}}} {joules!r}",
                f"joulewatch_read_timestamp_seconds{{{device}}} {now_s!r}",
                f'joulewatch_sensor_info{{scope="{counter.scope}",{labels},method="{counter.method}",reads="energy",'
                f'read_mode="on_request",primary="",host="{self.nodename}",model="",source="",resolution="1 uJ",'
                f'accuracy="{counter.accuracy}"}} 1',
                f"joulewatch_sensor_refresh_seconds{{{labels}}} {counter.refresh_s!r}",
            ]
        return "".join(f"{line}\n" for line in lines)
