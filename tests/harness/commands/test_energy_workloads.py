"""``joulewatch energy --workload``: series that come, go and begin again, names, bounds and idle energy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from support.fake_prometheus import URL, FakePrometheus
from support.workload_series import T0, TARGET, Life, Machine, steady

EVERY_15_S = tuple(np.arange(-300.0, 900.0, 15.0).tolist())
WINDOW = ("--start", f"{T0 + 100:.1f}", "--end", f"{T0 + 400:.1f}")
NGINX = {"kind": "unit", "workload": "nginx.service"}
TRAIN = {"kind": "pod", "workload": "prod/train-0"}


def machine(*lives: Life, scrapes_s: Sequence[float] = EVERY_15_S, **settings: Any) -> list[RawSeries]:
    return Machine(lives=lives, scrapes_s=scrapes_s, **settings).samples()


def run(capsys: pytest.CaptureFixture[str], samples: list[RawSeries], *words: str) -> tuple[int, str, str]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus(samples).install(mocked)
        capsys.readouterr()
        code = main(["energy", f"--prometheus={URL}", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def document(capsys: pytest.CaptureFixture[str], samples: list[RawSeries], *words: str) -> Any:
    code, out, err = run(capsys, samples, *WINDOW, "--format=json", *words)
    assert code == 0, err
    return json.loads(out)


def energies(result: Any) -> dict[str, float]:
    return {row["workload"]: row["energy"]["joules"] for row in result["workloads"]}


TWO = (
    steady(25, **NGINX, names={"unit": "nginx.service"}),
    steady(50, **TRAIN, names={"namespace": "prod", "pod": "train-0"}),
    steady(15, reason="rest"),
    steady(10, reason="system"),
    steady(60, reason="idle"),
)


def test_energy_and_the_bound_of_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    """100 W are active: a quarter lies between 1/7 and 2/5, a half between 1/3 and 2/3."""
    result = document(capsys, machine(*TWO), "--workload=*")
    assert energies(result) == pytest.approx({"nginx.service": 7500, "prod/train-0": 15000})
    limits = [(row["energy"]["share_lower_joules"], row["energy"]["share_upper_joules"]) for row in result["workloads"]]
    assert limits == [pytest.approx((10000, 20000)), pytest.approx((30000 / 7, 12000))]
    for row in result["workloads"]:
        energy = row["energy"]
        assert energy["lower_joules"] <= energy["joules"] <= energy["upper_joules"]
        assert energy["expanded_uncertainty"] == pytest.approx(0.02 * energy["joules"], rel=0.2)
        assert energy["covers"] == ["sampling", "accuracy"]
    total = result["total"]["energy"]
    assert total["joules"] == pytest.approx(22500)
    # The bound of three quarters, and not the sum of the two bounds.
    assert (total["share_lower_joules"], total["share_upper_joules"]) == pytest.approx((18000, 30000 * 6 / 7))
    assert (result["share_ratios"], result["findings"], result["basis"]) == ([2.0], [], "active")


def test_the_bound_of_a_machine_that_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """The ratio is that of each component; memory was not compared. The text names both."""
    lives = (*TWO, steady(5, component="memory", **NGINX), steady(15, component="memory", reason="rest"))
    samples = machine(*lives, ratios={"cpu": 1.5})
    result = document(capsys, samples, "--workload=nginx*")
    (row,) = result["workloads"]
    cpu, memory = row["energy"]["components"]
    assert (cpu["share_lower_joules"], cpu["share_upper_joules"]) == pytest.approx((7500 / 1.375, 7500 * 1.5 / 1.125))
    assert (memory["share_lower_joules"], memory["share_upper_joules"]) == pytest.approx((1500 / 1.75, 2400))
    assert result["share_ratios"] == [1.5, 2.0]
    _, text, _ = run(capsys, samples, *WINDOW, "--workload=nginx*")
    assert "one draws at most 1.5 or 2 times as much as the other" in " ".join(text.split())
    code, _, error = run(capsys, machine(*lives, ratios={"cpu": 0.5}), *WINDOW, "--workload=nginx*")
    assert (code, "(cpu) is 0.5, but must be at least 1: correct" in error) == (2, True)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("nginx*", ["nginx.service"]),
        ("unit/*", ["nginx.service"]),
        ("namespace=prod", ["prod/train-0"]),
        ("namespace=prod,pod=train-?", ["prod/train-0"]),
        ("kind=pod,pod=web-*", []),
        ("unit=nginx.service", ["nginx.service"]),
        ("prod/*", ["prod/train-0"]),
        ("NGINX*", []),
    ],
)
def test_patterns(capsys: pytest.CaptureFixture[str], pattern: str, found: list[str]) -> None:
    code, out, err = run(capsys, machine(*TWO), *WINDOW, "--format=json", "--workload", pattern)
    if not found:
        assert code == 2
        assert (
            f"no workload matches --workload {pattern}; the workloads are pod/prod/train-0, unit/nginx.service" in err
        )
        return
    assert list(energies(json.loads(out))) == found


def test_labels_that_prometheus_renamed(capsys: pytest.CaptureFixture[str]) -> None:
    """The targets have labels ``job``, ``namespace`` and ``pod`` of their own, those of the exporter."""
    target = {**TARGET, "namespace": "monitoring", "pod": "joulewatch-x2"}
    job = {"kind": "slurm_job", "workload": "123", "names": {"job": "123", "user": "ann"}}
    samples = machine(*TWO, steady(5, **job), target=target)
    assert energies(document(capsys, samples, "--workload=job=123")) == pytest.approx({"123": 1500})
    assert energies(document(capsys, samples, "--workload=namespace=prod")) == pytest.approx({"prod/train-0": 15000})
    for pattern in ("namespace=monitoring", "job=joulewatch", "pod=joulewatch-x2"):
        assert run(capsys, samples, *WINDOW, "--workload", pattern)[0] == 2


def test_series_that_come_go_and_begin_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A job of 40 s, one that is gone and comes back under its name, and one that ends after the window."""
    samples = machine(
        steady(30, kind="slurm_job", workload="1", begin_s=152, end_s=192),
        steady(20, kind="slurm_job", workload="2", begin_s=-50, end_s=141),
        steady(20, kind="slurm_job", workload="2", begin_s=232, end_s=352),
        steady(7, kind="slurm_job", workload="3", begin_s=310, end_s=800),
        steady(9, kind="slurm_job", workload="4", begin_s=500),
        steady(1, kind="slurm_job", workload="5", end_s=60),
        steady(10, reason="system"),
    )
    result = document(capsys, samples, "--workload=kind=slurm_job")
    # Up to the last scrape that has the series: the exporter keeps a series for minutes after its workload.
    assert energies(result) == pytest.approx({"1": 30 * 28, "2": 20 * (35 + 113), "3": 7 * 90}, rel=1e-9)
    assert result["total"]["energy"]["joules"] == pytest.approx(30 * 28 + 20 * (35 + 113) + 7 * 90)


def test_a_restart_of_the_exporter_loses_the_time_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    result = document(capsys, machine(*TWO, starts_s=(-1e6, 203.0)), "--workload=nginx*")
    # 195 s was the last scrape before.
    assert energies(result) == pytest.approx({"nginx.service": 25 * (300 - 8)})
    (finding,) = result["findings"]
    assert (finding["severity"], finding["reason"]) == ("warning", "exporter_restart")
    assert "the energy of the 8 s before the restart is missing" in finding["text"]


def test_a_restart_between_two_scrapes_that_the_counter_does_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    """At the restart a new workload had 1 J; 12 s later it has more than that."""
    life = steady(25, **NGINX, begin_s=180)
    result = document(capsys, machine(life, TWO[3], starts_s=(-1e6, 198.0)), "--workload=nginx*")
    # From 195 s to 198 s nothing is counted.
    assert energies(result) == pytest.approx({"nginx.service": 25 * (400 - 180 - 3)})


def test_a_machine_that_starts_in_the_window(capsys: pytest.CaptureFixture[str]) -> None:
    scrapes_s = [at_s for at_s in EVERY_15_S if at_s > 200]
    result = document(capsys, machine(*TWO, scrapes_s=scrapes_s, starts_s=(202.0,)), "--workload=nginx*")
    assert energies(result) == pytest.approx({"nginx.service": 25 * 198})
    assert result["workloads"][0]["measured_s"] == pytest.approx(198)
    (finding,) = result["findings"]
    assert "node1: samples cover 198.000 s of the 300.000 s of the window" in finding["text"]


def test_a_long_window_is_read_sparsely_with_the_same_result(capsys: pytest.CaptureFixture[str]) -> None:
    samples = machine(
        steady(25, **NGINX),
        steady(40, kind="slurm_job", workload="1", begin_s=4000, end_s=4900),
        steady(40, kind="slurm_job", workload="1", begin_s=6000, end_s=6600),
        steady(10, reason="system"),
        scrapes_s=np.arange(-300.0, 11000.0, 15.0).tolist(),
        starts_s=(-1e6, 8001.0),
    )
    window = ("--start", f"{T0 + 100:.1f}", "--end", f"{T0 + 10100:.1f}", "--format=json", "--workload=*")
    code, out, err = run(capsys, samples, *window)
    assert code == 0, err
    result = json.loads(out)
    assert energies(result)["1"] == pytest.approx(40 * (900 + 600), rel=0.03)
    # Samples are a minute apart before the restart.
    assert energies(result)["nginx.service"] == pytest.approx(25 * 10000, abs=25 * 62)
    assert energies(result)["nginx.service"] <= 25 * (10000 - 1)


def test_two_exporters_and_replicas_of_prometheus(capsys: pytest.CaptureFixture[str]) -> None:
    """One exporter under two targets counts once; two machines are two rows and one sum."""
    other = {"job": "joulewatch", "instance": "node2:10717"}
    replica = {**TARGET, "replica": "b"}
    samples = [*machine(*TWO), *machine(*TWO, target=replica), *machine(*TWO, target=other, nodename="node2")]
    result = document(capsys, samples, "--workload=nginx*")
    assert [(row["host"], row["energy"]["joules"]) for row in result["workloads"]] == [
        ("node1", pytest.approx(7500)),
        ("node2", pytest.approx(7500)),
    ]
    assert result["total"]["energy"]["joules"] == pytest.approx(15000)
    assert result["total"]["host"] == "node1 node2"


GPU = {"component": "gpu", "device": "GPU-1"}


def test_the_sole_user_of_a_gpu_has_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    samples = machine(*TWO, steady(200, **TRAIN, **GPU), steady(50, reason="idle", **GPU))
    (row,) = document(capsys, samples, "--workload=pod/*")["workloads"]
    assert row["energy"]["joules"] == pytest.approx(300 * 250)
    assert row["energy"]["share_lower_joules"] == pytest.approx(300 * (200 + 100 / 3))
    assert [part["component"] for part in row["energy"]["components"]] == ["cpu", "gpu"]


@pytest.mark.parametrize(
    ("policy", "nginx", "train"), [("own", 0, 0), ("equal", 30, 30 + 50), ("proportional", 15, 30 + 50)]
)
def test_idle_energy(capsys: pytest.CaptureFixture[str], policy: str, nginx: float, train: float) -> None:
    samples = machine(*TWO, steady(200, **TRAIN, **GPU), steady(50, reason="idle", **GPU))
    result = document(capsys, samples, "--workload=*", "--idle", policy)
    idle = {row["workload"]: row["energy"]["idle_joules"] for row in result["workloads"]}
    assert idle == pytest.approx({"nginx.service": 300 * nginx, "prod/train-0": 300 * train})
    assert result["total"]["energy"]["idle_joules"] == pytest.approx(300 * (nginx + train))


def test_equal_parts_of_idle_energy_are_for_those_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    # Its first scrape is that of 255 s.
    late = steady(10, kind="unit", workload="late.service", begin_s=250)
    result = document(capsys, machine(*TWO[:1], late, TWO[4]), "--workload=nginx*", "--idle=equal")
    assert result["workloads"][0]["energy"]["idle_joules"] == pytest.approx(60 * 140 + 30 * 160)


def test_idle_energy_by_reserved_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 60 W, nginx has reserved a tenth; train, which comes at 250 s, a half. Nobody reserves the idle GPU."""
    nginx = steady(25, **NGINX, reserved=0.1)
    train = steady(50, **TRAIN, reserved=0.5, begin_s=250)
    samples = machine(nginx, train, *TWO[2:], steady(200, **TRAIN, **GPU), steady(50, reason="idle", **GPU))
    result = document(capsys, samples, "--workload=*", "--idle=reserved")
    idle = {row["workload"]: row["energy"]["idle_joules"] for row in result["workloads"]}
    # Its first scrape is that of 255 s, and the step before it is its own.
    assert idle == pytest.approx({"nginx.service": 0.1 * 60 * 300, "prod/train-0": 0.5 * 60 * 160})
    _, text, _ = run(capsys, samples, *WINDOW, "--workload=*", "--idle=reserved")
    assert "by the share of the processors that the weights of cgroups give" in " ".join(text.split())


def test_reserved_shares_that_no_exporter_has_published(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, machine(*TWO), *WINDOW, "--workload=*", "--idle=reserved")
    assert code == 2
    assert "--idle reserved: node1: the exporter has published no joulewatch_workload_reserved_ratio" in err


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(capsys, machine(*TWO), *WINDOW, "--workload=*", "--idle=equal")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith(("unit/", "pod/", "sum"))]
    assert rows[1][:4] == ["unit/nginx.service", "node1", "cpu", "7500"]
    assert rows[1][5:] == ["4286", "to", "12000", "25.0", "%", "16500"]
    assert rows[2][0] == "sum"
    assert "share bounds: of two workloads, one draws at most 2 times as much as the other" in out


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    samples = machine(*TWO, steady(200, **TRAIN, **GPU), method="emulated", accuracy="")
    code, out, _ = run(capsys, samples, *WINDOW, "--workload=pod/*", "--format=csv")
    assert code == 0
    cpu, gpu = csv.DictReader(io.StringIO(out))
    assert (cpu["host"], cpu["kind"], cpu["pod"], cpu["component"]) == ("node1", "pod", "train-0", "cpu")
    assert (gpu["component"], gpu["device"], float(gpu["energy_joules"])) == ("gpu", "GPU-1", pytest.approx(60000))
    assert (cpu["methods"], cpu["uncertainty_covers"], cpu["idle_policy"]) == ("emulated", "sampling", "own")
    assert float(cpu["share_upper_joules"]) == pytest.approx(20000)


def test_without_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, machine(steady(1, reason="idle")), *WINDOW, "--workload=*")
    assert (code, "no joulewatch exporter has published workloads in this window" in err) == (2, True)


def test_a_workload_whose_energy_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """No scrape for a minute and a half around the start of the window."""
    scrapes_s = [at_s for at_s in EVERY_15_S if not 90 < at_s < 180]
    code, out, _ = run(capsys, machine(*TWO, scrapes_s=scrapes_s), *WINDOW, "--workload=nginx*", "--format=json")
    result = json.loads(out)
    assert (code, result["total"], result["workloads"][0]["missing"]) == (1, None, "sample_gap")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--workload=*", "--sensor=x"), "--workload and --sensor exclude each other"),
        (("--workload=*", "--every=1h"), "--workload and --every exclude each other"),
        (("--workload=*", "--scope=device"), "--workload and --scope exclude each other"),
        (("--workload=*", "--source=dcgm"), "--workload and --source exclude each other"),
        (("--workload=colour=red",), "no label colour; the labels are kind, workload, namespace"),
        (("--idle=equal",), "--idle needs --workload"),
    ],
)
def test_arguments_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], text: str
) -> None:
    code, _, err = run(capsys, machine(*TWO), *WINDOW, *words)
    assert (code, text in err) == (2, True), err


def test_a_recording_has_no_workloads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["energy", *WINDOW, f"--recording={tmp_path}", "--workload=*"]) == 2
    assert "--workload and --recording exclude each other" in capsys.readouterr().err
