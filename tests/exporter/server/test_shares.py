"""The shares in a scrape."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from joulewatch_exporter.attribution.model import Workload
from joulewatch_exporter.attribution.shares import Shares, SharesLayout
from joulewatch_exporter.server.exposition import Exposition, Format
from support import golden
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "exporter" / "golden"
JOB = Workload(kind="slurm_job", workload="4711", job="4711", user="1000")
POD = Workload(kind="pod", workload="ml/llm-0", namespace="ml", pod="llm-0", server="vllm")
GPU = "GPU-8f6d1b2c"
SHARES = Shares(
    layout=SharesLayout(
        workloads=(JOB, POD),
        energy=(("cpu", "", JOB), ("cpu", "", POD), ("memory", "", JOB), ("memory", "", POD), ("gpu", GPU, POD)),
        unattributed=(("cpu", "", "idle"), ("cpu", "", "rest"), ("cpu", "", "system"), ("cpu", "", "gap")),
        cpu=(JOB, POD),
        gpu=((GPU, POD),),
        reserved=(JOB, POD),
        held=((GPU, POD),),
        how=(("cpu", "cpu_time", "measured", "counter"), ("gpu", "gpu_utilisation", "none", "counter")),
    ),
    energy_joules=(120.5, 33.25, 10.0, 2.5, 812.0),
    unattributed_joules=(500.0, 12.5, 3.0, 0.0),
    cpu_seconds=(60.0, 16.5),
    gpu_seconds=(3.25,),
    reserved=(0.5, 0.125),
    shown=2,
    rest=31,
    gone=0,
)


def render(shares: Shares | None, format_: Format = "text", exposition: Exposition | None = None) -> str:
    exposition = exposition or Exposition(emulated=False, start_s=1.0, nodename="node17", self_metrics=False)
    text = exposition.render([], format_, shares=shares).decode()
    return "".join([f"{line}\n" for line in text.splitlines() if "joulewatch_exporter_" not in line])


@pytest.mark.parametrize(("format_", "suffix"), [("text", "prom"), ("openmetrics", "openmetrics.prom")])
def test_golden(format_: Format, suffix: str, update_golden: bool) -> None:
    golden.check(render(SHARES, format_), GOLDEN / f"shares.{suffix}", update=update_golden)


def test_promtool_has_no_complaints() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    body = (GOLDEN / "shares.prom").read_bytes()
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


def test_nothing_changes_without_attribution() -> None:
    assert render(None) == ""


def test_names_of_workloads_are_escaped() -> None:
    evil = dataclasses.replace(POD, workload='a"b\\c\nd', pod="x" * 1000)
    layout = dataclasses.replace(SHARES.layout, workloads=(evil,), cpu=(evil, POD))
    families = {family.name: family for family in parse_openmetrics(
        Exposition(emulated=False, start_s=1.0, self_metrics=False)
        .render([], "openmetrics", shares=dataclasses.replace(SHARES, layout=layout))
        .decode()
    )}  # fmt: skip
    (first, _) = families["joulewatch_workload_cpu_seconds"].samples
    assert first.labels["workload"].startswith('a"b\\c') and first.value == 60.0
    assert len(families["joulewatch_workload_info"].samples[0].labels["pod"]) < 1000


def test_caches_follow_the_layout() -> None:
    ours = Exposition(emulated=False, start_s=1.0, self_metrics=False)
    assert render(SHARES, exposition=ours) == render(SHARES)
    other = dataclasses.replace(
        SHARES,
        layout=dataclasses.replace(SHARES.layout, cpu=(JOB,), gpu=(), held=()),
        cpu_seconds=(61.0,),
        gpu_seconds=(),
        shown=1,
    )
    assert render(other, exposition=ours) == render(other) != render(SHARES)
    assert render(SHARES, exposition=ours) == render(SHARES)
