"""``--per SERVER`` on the texts that servers serve at ``/metrics``: each is found under the names of the mapping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import responses
from prometheus_client.parser import text_string_to_metric_families

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.analysis.sources.llm_servers import llm_servers
from joulewatch_harness.cli import main
from support.fake_prometheus import URL, FakePrometheus
from support.paths import ROOT
from support.synthetic import T0, Signal, World, sensor

FOLDER = ROOT / "tests" / "support" / "llm_metrics"
TEXTS = sorted(FOLDER.glob("*.prom"))
WATTS = 100.0
JOULES = {"input": WATTS * 100 / 8000, "output": WATTS * 100 / 2000, "requests": WATTS * 100 / 20}
"""Per unit: 100 s of 100 W, and the values of the texts in that time."""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_the_counters_of_a_server(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The values of the text rise from 0 at a steady rate, and reach it in 100 s."""
    server = llm_servers()[path.stem]
    world = World({sensor("socket0", "package", host="node1"): Signal((T0,), (WATTS,))}, scrape_s=1.0)
    world.start_s, world.end_s = T0 - 60, T0 + 160
    times_s = T0 + np.arange(-60.0, 160.0)
    target = {"job": "llm", "instance": "node1:8000"}
    text = path.read_text("utf-8")
    series = [
        RawSeries(
            # The parser adds _total to counters of servers that omit it.
            name=sample.name if sample.name in text else sample.name.removesuffix("_total"),
            labels={**target, **sample.labels},
            times_s=times_s,
            values=sample.value * (times_s - times_s[0]) / 100,
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.type != "gauge"
    ]
    known = {one.name: one.labels for one in series}
    for name in (*server.output, *server.input, *server.requests):
        if name in known and server.model:
            assert server.model in known[name], name
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus([*world.scrapes(), *series]).install(mocked)
        words = [f"--prometheus={URL}", f"--start={T0}", f"--end={T0 + 100}", f"--per={path.stem}", "--format=json"]
        assert main(["energy", *words]) == 0
    found = {row["counter"]: row["joules_per_unit"]["value"] for row in json.loads(capsys.readouterr().out)["counters"]}
    for kind, joules in JOULES.items():
        names = [name for name in getattr(server, kind) if name in found]
        assert len(names) == 1, kind
        assert found[names[0]] == pytest.approx(joules, rel=1e-3)
