"""What ``make demo`` relies on: a double per configuration of the study, valid scenarios, and rules of one minute."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import yaml

import demo
from joulewatch_exporter.emulator import scenario as scenarios
from joulewatch_harness.plan.parsing import make_plan, read_plan
from support import dashboards, demo_cluster
from support.demo_node import LoadFile
from support.doubles import DEVICES, MODELS
from support.paths import ROOT

PLANS: Final = sorted((ROOT / "harness" / "examples" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_configuration_of_the_study_has_a_double(path: Path) -> None:
    for configuration in make_plan(read_plan(path), path.stem).configurations:
        model = MODELS[configuration.runtime, configuration.precision]
        assert "execute" in model.phases and 0 < model.load <= 1
        assert configuration.runtime in DEVICES


@pytest.mark.parametrize("node", demo_cluster.NODES)
def test_every_node_has_a_valid_scenario(node: str, tmp_path: Path) -> None:
    spec = scenarios.load(demo_cluster._scenario(tmp_path, node))
    follows = node in demo_cluster.FOLLOWING or node == "cpu1"
    assert bool(spec.loads) == follows
    assert spec.refresh_s == (demo_cluster.BACKGROUND_REFRESH_S if node in demo_cluster.BACKGROUND else 0.01)


def test_the_load_of_a_double_that_has_ended_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [10**12]
    monkeypatch.setattr("support.demo_node.time.monotonic_ns", lambda: now_ns[0])
    double, emulator = LoadFile(tmp_path / "load"), LoadFile(tmp_path / "load")
    assert emulator.read() == 0.0
    double.write(0.75)
    assert emulator.read() == 0.75
    now_ns[0] += LoadFile.LEASE_NS
    assert emulator.read() == 0.0


@pytest.mark.parametrize("program", demo.PROGRAMS)
def test_a_missing_program_is_one_line_with_its_package(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("demo.shutil.which", lambda name: None if name == program else f"/usr/bin/{name}")
    monkeypatch.setattr("sys.argv", ["demo", f"--out={tmp_path / 'out'}"])
    monkeypatch.setattr("demo.console", demo.Console(stderr=True, width=200))
    assert demo.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"the demo requires {program}: apt-get install {demo.PROGRAMS[program]}"
    assert not list(tmp_path.iterdir())


def test_the_rules_of_the_demo_need_one_minute_of_data(tmp_path: Path) -> None:
    text = demo_cluster._rules(tmp_path).read_text("utf-8")
    rules = [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "record" in rule]
    assert len(rules) == sum("record" in rule for group in dashboards.rule_groups() for rule in group["rules"])
    assert not [expr for expr in rules if "[5m]" in expr or "/ 300" in expr]
