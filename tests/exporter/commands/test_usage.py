"""``check`` and ``--once``: whose joules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.model import UsageSource, Workload
from joulewatch_exporter.commands.check import check
from joulewatch_exporter.commands.once import once
from joulewatch_exporter.config.config import AttributionSettings, Config, ExporterSettings, SourceSettings
from joulewatch_exporter.errors import SensorDeniedError
from joulewatch_exporter.model import Host
from support.clock import FakeClock
from support.fake_family import Machine, energy_sensor, fake_family
from support.usage import ScriptedUsage, scripted, scripted_source

FAMILIES = [fake_family("rapl", Machine([energy_sensor()]))]


@pytest.fixture
def script() -> ScriptedUsage:
    script = scripted(FakeClock())
    script.cgroups.make("system/a", "system/b")
    return script


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path)


def findings(
    host: Host, sources: list[type[UsageSource]], settings: AttributionSettings, capsys: pytest.CaptureFixture[str]
) -> dict[tuple[str, str], str]:
    check(FAMILIES, host, Config(attribution=settings), sources=sources, as_json=True)
    found = json.loads(capsys.readouterr().out)["findings"]
    return {
        (one["collector"], one["status"]): f"{one['text']} {one['cure']}".strip()
        for one in found
        if one["collector"] != "rapl"
    }


def test_check_shows_the_sources_and_what_is_shared(
    host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str]
) -> None:
    other = scripted_source(scripted(FakeClock()), "other")
    settings = AttributionSettings(max_workloads=7)
    shown = findings(host, [scripted_source(script), other], settings, capsys)
    assert shown["scripted", "found"] == "a scripted tree"
    assert shown["other", "skipped"] == "not needed: another source has the same usage"
    assert script.closed == 1
    check(FAMILIES, host, Config(attribution=settings), sources=[scripted_source(script)], as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "shares the energy of cpu by cpu_time (scripted: 3)" in text
    assert "of which at most 7 have series" in text
    assert "idle power not known yet" in text


def test_check_shows_why_nothing_is_shared(
    host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str]
) -> None:
    script.error = SensorDeniedError("/sys/fs/cgroup: Permission denied; run `chmod`")
    shown = findings(host, [scripted_source(script)], AttributionSettings(), capsys)
    assert shown["scripted", "denied"] == "Permission denied; run `chmod` chmod"
    assert shown["attribution", "absent"] == "no usage can be read"
    shown = findings(host, [scripted_source(script)], AttributionSettings(enabled=False), capsys)
    assert shown == {
        ("attribution", "skipped"): "disabled by the configuration: energy is not shared between workloads"
    }
    settings = AttributionSettings(sources={"scripted": SourceSettings(enabled=False)})
    assert findings(host, [scripted_source(script)], settings, capsys)["scripted", "skipped"] == (
        "disabled by the configuration"
    )


def test_check_shows_the_idle_power(
    host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"collector": "rapl", "component": "cpu", "device": "socket1", "domain": "package"}
    data = {"joulewatch_idle": 1, "devices": [{**entry, "watts": 21.25, "measured_at_s": 1_700_000_000.0}]}
    (host.sysfs / "idle.json").write_text(json.dumps(data), "utf-8")
    monkeypatch.setenv("STATE_DIRECTORY", str(host.sysfs))
    settings = AttributionSettings(idle_watts={"socket0": 31.5})
    shown = findings(host, [scripted_source(script)], settings, capsys)
    assert shown["attribution", "found"] == "socket0 31.5 W (configured); socket1/package 21.2 W (2023-11-14)"


def run_once(host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str], *, enabled: bool) -> str:
    config = Config(exporter=ExporterSettings(exporter_metrics=False), attribution=AttributionSettings(enabled=enabled))
    assert once(FAMILIES, host, config, sources=[scripted_source(script)]) == 0
    return capsys.readouterr().out


def test_once_shows_who_is_working_now(host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str]) -> None:
    script.names["system/a"] = Workload(kind="unit", workload="a.service")
    script.cgroups.between_reads = lambda: script.cgroups.use("system/a", 0.001)
    text = run_once(host, script, capsys, enabled=True)
    assert 'joulewatch_workload_cpu_seconds_total{kind="unit",workload="a.service"} 0.0' in text
    assert 'joulewatch_workloads{state="shown"} 1.0' in text
    assert 'joulewatch_unattributed_energy_joules_total{component="cpu",device="",reason="gap"} 0.0' in text


def test_once_without_attribution_shows_no_shares(
    host: Host, script: ScriptedUsage, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_once(host, script, capsys, enabled=False)
    assert "workload" not in text and "attribut" not in text
    assert script.reads == 0
