"""An exporter without a server, for tests of recordings and of the recorder."""

from __future__ import annotations

from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.errors import ExporterUnreachableError

ENERGY = 'joulewatch_device_energy_joules_total{collector="rapl",device="%s"}'
INFO = 'joulewatch_exporter_info{version="1"}'


class FakeExporter(ExporterClient):
    """Returns or raises the given answers in order, then repeats the last one; needs no server."""

    def __init__(self, name: str = "node1:10717", *answers: Scrape | ExporterUnreachableError) -> None:
        super().__init__("http://node1:10717", name=name)
        self.answers = list(answers)
        self.asked = 0
        self.closed = False

    def scrape(self) -> Scrape:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


def scrape(at_s: float, *energies: float, info: bool = False) -> Scrape:
    samples = [(ENERGY % f"socket{number}", value) for number, value in enumerate(energies)]
    if info:
        samples.append((INFO, 1.0))
    return Scrape(at_s, at_s + 0.002, samples)
