"""Debian's node_exporter and ipmi_exporter next to joulewatch's exporter on one emulated machine: equal energies."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from support.require import require_program
from support.servers import Server, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WRAP_S = 11.0
"""After the start of the machine."""
METER = {"kind": "power", "number": 1, "key": "ACPI000D:00/power1", "signal": "node", "average": True, "update_s": 1}
SCENARIO = {
    "name": "read-by-three-exporters",
    "refresh_s": 0.01,
    "signals": {
        "package": {"kind": "square", "low_watts": 150, "high_watts": 210, "period_s": 8},
        "node": {"kind": "sum", "of": [100, "package"]},
    },
    "machine": {"sockets": 1, "cpus_per_socket": 4, "cores_per_socket": 4, "cpu_name": "Intel(R) Xeon(R) Gold 6548Y+"},
    "zones": [
        {
            "zone": "intel-rapl:0",
            "name": "package-0",
            "key": "socket0/package",
            "signal": "package",
            "wrap_at_s": WRAP_S,
        }
    ],
    "hwmon": [
        {
            "chip": "power_meter",
            "path": "devices/LNXSYSTM:00/LNXSYBUS:00/ACPI000D:00",
            "files_at_device": True,
            "files": {"power1_is_battery": "0"},
            "channels": [METER],
        }
    ],
    "bmcs": [{"name": "bmc", "signal": "node"}],
}
MODULE = {"user": "monitor", "pass": "emulated", "driver": "LAN_2_0", "privilege": "user", "timeout": 5000}

SCRAPED = (
    'count_over_time({__name__=~"joulewatch_(device|node)_energy_joules_total|node_rapl_package_joules_total|'
    'node_hwmon_power_average_watt|ipmi_dcmi_power_consumption_watts"}[1m]) > 1'
)


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main([*words, "--format", "json"])
    output = capsys.readouterr()
    assert code == 0, output.err + output.out
    return json.loads(output.out)  # type: ignore[no-any-return]


def test_the_same_machine_by_three_exporters(
    tmp_path: Path,
    emulator: StartEmulator,
    exporter_server: StartExporter,
    prometheus_server: StartPrometheus,
    servers: list[Server],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """RAPL's counter wraps inside the window, and node_exporter shows it as it is; ipmi_exporter has watts only."""
    pytest.importorskip("pyghmi")
    node_program = require_program("prometheus-node-exporter", "prometheus-node-exporter")
    ipmi_program = require_program("prometheus-ipmi-exporter", "prometheus-ipmi-exporter")
    scenario = tmp_path / "machine.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO, sort_keys=False), encoding="utf-8")
    machine = emulator(scenario)
    started_s = time.time()
    config = yaml.safe_load((machine.folder / "exporter.yaml").read_text())
    (bmc,) = config["collectors"]["ipmi"]["targets"]
    modules = tmp_path / "ipmi.yml"
    modules.write_text(yaml.safe_dump({"modules": {"emulated": {**MODULE, "collectors": ["dcmi"]}}}), encoding="utf-8")
    node_address, ipmi_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    collectors = ["--collector.disable-defaults", "--collector.rapl", "--collector.hwmon"]
    target = f"{bmc['address']}:{bmc['port']}"
    own = exporter_server(f"--config.file={machine.folder / 'exporter.yaml'}")
    params = {"__metrics_path__": "/ipmi", "__param_target": target, "__param_module": "emulated"}
    prometheus = prometheus_server(
        scrape_targets=[own.address],
        scrape_jobs={"node": [(node_address, {})], "ipmi": [(ipmi_address, params)]},
        scrape_interval="1s",
    )
    for command, url in (
        (
            [node_program, f"--path.sysfs={machine.sysfs}", *collectors, f"--web.listen-address={node_address}"],
            f"http://{node_address}/",
        ),
        (
            [ipmi_program, f"--config.file={modules}", f"--web.listen-address={ipmi_address}"],
            f"http://{ipmi_address}/",
        ),
    ):
        folder = tmp_path / Path(command[0]).name
        folder.mkdir()
        server = Server(command, folder, url)
        servers.append(server)
        server.start()
    with PrometheusClient(PrometheusOptions(prometheus.url)) as client:
        wait_until(lambda: len(client.query(SCRAPED, time.time())) == 6, "two scrapes of each exporter", limit_s=60)
    start_s = time.time()
    end_s = max(start_s + 8, started_s + WRAP_S + 2)  # some refreshes of the BMC, also on a busy machine
    time.sleep(end_s + 2.5 - time.time())
    words = ["energy", f"--prometheus={prometheus.url}", f"--start={start_s:.3f}", f"--end={end_s:.3f}"]
    sources = [f"--source={name}" for name in ("joulewatch", "node_exporter", "ipmi_exporter")]
    result = json_of(capsys, *words, *sources)
    energies = {(row["collector"], row["domain"]): row["energy"] for row in result["sensors"]}
    missing = {row["collector"]: row["missing"] for row in result["sensors"] if row["energy"] is None}
    assert not missing
    for mine, other in (
        (("rapl", "package"), ("node_exporter", "package")),
        (("ipmi", "total"), ("ipmi_exporter", "total")),
        (("hwmon", "power1"), ("node_exporter", "power1")),
    ):
        one, two = energies[mine], energies[other]
        limit = math.hypot(one["expanded_uncertainty"], two["expanded_uncertainty"])
        assert abs(one["joules"] - two["joules"]) <= limit, (mine, one["joules"], two["joules"], limit)
        assert two["covers"] == ["sampling"], "the accuracy of a foreign sensor is not known"
    scopes = {(row["collector"], row["domain"]): row["scope"] for row in result["sensors"]}
    assert scopes["node_exporter", "package"] == "part", "it reads what joulewatch reads, and is not added"
    assert "source_overlap" in {notice["reason"] for notice in result["findings"]}
    alone = json_of(capsys, *words, "--source=node_exporter")
    joules = {row["scope"]: row["energy"]["joules"] for row in alone["sensors"]}
    assert joules == {
        scope: energies["node_exporter", domain]["joules"]
        for scope, domain in (("device", "package"), ("node", "power1"))
    }


def test_a_run_by_node_exporter_alone(
    tmp_path: Path,
    emulator: StartEmulator,
    prometheus_server: StartPrometheus,
    servers: list[Server],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No exporter of joulewatch: the windows of ``profile`` get their energy from the scrapes of another one."""
    program = require_program("prometheus-node-exporter", "prometheus-node-exporter")
    scenario = tmp_path / "machine.yaml"
    steady = {"package": {"kind": "constant", "watts": 180}}
    zones = [{**SCENARIO["zones"][0], "wrap_at_s": 12.0}]  # type: ignore[index]
    scenario.write_text(
        yaml.safe_dump(
            {"name": "steady", "refresh_s": 0.01, "signals": steady, "machine": SCENARIO["machine"], "zones": zones}
        ),
        encoding="utf-8",
    )
    machine = emulator(scenario)
    address = f"127.0.0.1:{free_port()}"
    flags = ["--collector.disable-defaults", "--collector.rapl", f"--web.listen-address={address}"]
    server = Server([program, f"--path.sysfs={machine.sysfs}", *flags], tmp_path, f"http://{address}/")
    servers.append(server)
    server.start()
    prometheus = prometheus_server(scrape_jobs={"node": [(address, {})]}, scrape_interval="250ms")
    wanted = "count_over_time(node_rapl_package_joules_total[1m]) > 3"
    with PrometheusClient(PrometheusOptions(prometheus.url)) as client:
        wait_until(lambda: client.query(wanted, time.time()), "scrapes", limit_s=60)
    runs = tmp_path / "runs"
    words = ["--precision=fp32", "--batch-sizes=8", "--preset=quick", "--rounds=3", "--no-isolate", f"--output={runs}"]
    result = json_of(
        capsys, "profile", *words, f"--prometheus={prometheus.url}", "--source=node_exporter", "--no-publish"
    )
    (group,) = result["results"]
    assert {sensor["collector"] for sensor in result["sensors"]} == {"node_exporter"}
    gross, rate = group["energy"]["total"]["gross"], group["throughput"]["value"]
    assert gross["value"] * rate == pytest.approx(180, abs=max(gross["expanded_uncertainty"] * rate, 0.02 * 180))
    again = json_of(capsys, "analyze", result["run"]["id"], f"--output={runs}", f"--prometheus={prometheus.url}")
    assert again["results"][0]["energy"]["total"]["gross"]["value"] == pytest.approx(gross["value"], rel=1e-6)


def test_recorded_samples_of_other_exporters(
    tmp_path: Path, prometheus_server: StartPrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four hours of scrapes every 15 s, written by promtool: counters, one of which wraps, and power."""
    promtool = require_program("promtool", "prometheus")
    now_s = int(time.time()) // 15 * 15
    times_s = range(now_s - 4 * 3600, now_s - 600, 15)
    labels = 'instance="node1:9400",job="gpu"'
    counters = {
        f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total{{UUID="GPU-1",Hostname="node1",{labels}}}': (200e3, 0.0),
        f'ceems_rapl_package_joules_total{{index="0",hostname="node1",{labels}}}': (100.0, 262143.328850),
    }
    gauges = {
        f'all_smi_gpu_power_consumption_watts{{uuid="GPU-2",{labels}}}': 200.0,
        f'scaph_socket_power_microwatts{{socket_id="1",{labels}}}': 100e6,
    }
    lines = []
    for series, (slope, wrap) in counters.items():
        lines.append(f"# TYPE {series.partition('{')[0].removesuffix('_total')} counter")
        values = [slope * (at - times_s[0]) % wrap if wrap else slope * (at - times_s[0]) for at in times_s]
        lines += [f"{series} {value!r} {at}" for at, value in zip(times_s, values, strict=True)]
    for series, watts in gauges.items():
        lines.append(f"# TYPE {series.partition('{')[0]} gauge")
        lines += [f"{series} {watts!r} {at}" for at in times_s]
    text = tmp_path / "samples.txt"
    text.write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
    mapping = tmp_path / "gpu.yaml"
    sensor = {"type": "counter", "unit": "mJ", "component": "gpu", "device": "{UUID}"}
    name = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total"
    mapping.write_text(yaml.safe_dump({"sensors": [{"metric": name, **sensor}]}), encoding="utf-8")
    prometheus = prometheus_server()
    prometheus.stop()
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(prometheus.folder / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    prometheus.start()
    words = ["energy", f"--prometheus={prometheus.url}", f"--start={now_s - 3 * 3600}", f"--end={now_s - 1200}"]
    sources = [f"--source={source}" for source in (mapping, "ceems", "all-smi", "scaphandre")]
    result = json_of(capsys, *words, *sources)
    powers = {row["device"]: row["energy"]["mean_power_watts"] for row in result["sensors"]}
    assert powers == pytest.approx({"GPU-1": 200, "GPU-2": 200, "socket0": 100, "socket1": 100}, rel=1e-6)
