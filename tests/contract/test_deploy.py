"""The files under deploy/ and dashboards/provisioning/ are valid and agree with the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from joulewatch_exporter import catalog
from joulewatch_exporter.sampling.family_thread import STUCK_S
from joulewatch_exporter.server.connections import MAX_CONNECTIONS
from joulewatch_exporter.server.edge_socket import DEFAULT_FOLDER, MOST_CONNECTIONS
from support.dashboards import NAMES, ROOT, load
from support.require import require_program

DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final = DEPLOY / "compose"
DOCKERFILE: Final = DEPLOY / "container" / "Dockerfile"
QUADLET: Final = DEPLOY / "container" / "joulewatch-exporter.container"
PROVISIONING: Final = ROOT / "dashboards" / "provisioning"
SERVICE: Final = DEPLOY / "systemd" / "joulewatch-exporter.service"
PORT: Final = str(catalog.DEFAULT_PORT)


def parse(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tool(name: str) -> str:
    """Return the path of a program of the dependency group ``release``."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.fail(f"{name} is not installed: pip install --group release", pytrace=False)
    return str(path)


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a command that must succeed; return its output."""
    outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def test_yaml_passes_the_linter() -> None:
    pytest.importorskip("yamllint", reason="pip install --group test")
    run(sys.executable, "-m", "yamllint", "--strict", "deploy", "dashboards")


def test_the_release_workflow_builds_and_uploads_what_make_packages_builds() -> None:
    path = ROOT / ".github" / "workflows" / "release.yaml"
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(path))
    commands = [step.get("run") for job in parse(path)["jobs"].values() for step in job["steps"]]
    assert {".ci/run", "make packages"} <= set(commands)
    assert "\npackages:" in (ROOT / "Makefile").read_text("utf-8")


# Prometheus


def test_promtool_accepts_the_configuration() -> None:
    program = require_program("promtool", "prometheus")
    out = run(program, "check", "config", "prometheus.yaml", cwd=DEPLOY / "prometheus")
    assert "2 rule files found" in out


@pytest.mark.parametrize("folder", [DEPLOY / "prometheus", COMPOSE], ids=lambda path: path.name)
def test_the_configuration_loads_the_rules_that_were_copied_next_to_it(folder: Path, tmp_path: Path) -> None:
    """README.md of deploy/ says to copy them to ``rules``; compose.yaml mounts them there."""
    program = require_program("promtool", "prometheus")
    shutil.copy(folder / "prometheus.yaml", tmp_path)
    (tmp_path / "rules").mkdir()
    shutil.copy(ROOT / "dashboards" / "rules" / "joulewatch.rules.yaml", tmp_path / "rules")
    assert "1 rule files found" in run(program, "check", "config", "prometheus.yaml", cwd=tmp_path)


def test_the_two_configurations_differ_only_in_their_targets() -> None:
    plain, compose = parse(DEPLOY / "prometheus" / "prometheus.yaml"), parse(COMPOSE / "prometheus.yaml")
    for data in (plain, compose):
        del data["rule_files"]
        for job in data["scrape_configs"]:
            job["static_configs"][0]["targets"] = [
                target.rpartition(":")[2] for target in job["static_configs"][0]["targets"]
            ]
    assert plain == compose


@pytest.mark.parametrize("path", [DEPLOY / "prometheus" / "prometheus.yaml", COMPOSE / "prometheus.yaml"], ids=str)
def test_the_jobs_are_those_that_the_rules_and_the_harness_need(path: Path) -> None:
    data = parse(path)
    jobs = {job["job_name"]: job for job in data["scrape_configs"]}
    (target,) = jobs["joulewatch"]["static_configs"][0]["targets"]
    assert target.endswith(f":{PORT}")
    assert data["storage"]["tsdb"]["out_of_order_time_window"]
    assert data["global"]["scrape_interval"] == source()["jsonData"]["timeInterval"]


# systemd


def unit_settings() -> dict[str, list[str]]:
    """Return the settings of the unit file, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in SERVICE.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def copy_of_unit(folder: Path) -> Path:
    """Copy the unit to ``folder`` without the program and the page, which are not installed where tests run."""
    text = re.sub(r"(?m)^Documentation=.*$", "", SERVICE.read_text(encoding="utf-8"))
    copy = folder / SERVICE.name
    copy.write_text(text.replace("/opt/joulewatch/bin/joulewatch-exporter", sys.executable), encoding="utf-8")
    return copy


def test_the_unit_grants_one_capability_and_no_writing() -> None:
    unit = unit_settings()
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == ["CAP_DAC_READ_SEARCH"]
    assert unit["DynamicUser"] == unit["NoNewPrivileges"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    assert "ReadWritePaths" not in unit and "StateDirectory" not in unit
    assert unit["RuntimeDirectory"] == [str(DEFAULT_FOLDER.relative_to("/run"))]
    assert "MemoryMax" in unit
    assert "ProcSubset" not in unit, "hides /proc/stat and /proc/cpuinfo, which the collector estimate needs"
    assert unit["ExecStart"] == ["/opt/joulewatch/bin/joulewatch-exporter $ARGS"]


def test_the_limits_of_threads_leave_room_for_all_connections_and_the_sensors() -> None:
    least = MAX_CONNECTIONS + MOST_CONNECTIONS + 64
    for path in (DEPLOY / "systemd").rglob("*.conf"):
        for number in re.findall(r"(?m)^TasksMax=(.*)$", path.read_text(encoding="utf-8")):
            assert int(number) >= least, path
    assert int(unit_settings()["TasksMax"][0]) >= least
    assert services()["exporter"]["pids_limit"] >= least  # that of the quadlet is the same


def test_the_unit_waits_for_the_first_scan_and_has_a_watchdog_longer_than_a_stuck_family() -> None:
    unit = unit_settings()
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) * 0.75 > STUCK_S  # the exporter reports at half of it
    assert unit["EnvironmentFile"] == ["-/etc/default/joulewatch-exporter"]
    assert unit["Documentation"] == ["man:joulewatch-exporter(1)"]


def test_systemd_accepts_the_unit_and_rates_it_as_hardened(tmp_path: Path) -> None:
    program = require_program("systemd-analyze", "systemd")
    copy = copy_of_unit(tmp_path)
    assert run(program, "verify", str(copy)).strip() == ""
    if "--offline" in run(program, "--help"):  # systemd 250 and newer
        out = run(program, "security", "--offline=true", "--threshold=20", "--no-pager", str(copy))
        assert "Overall exposure level" in out


def test_the_rule_of_udev_lets_the_group_read_the_counter(tmp_path: Path) -> None:
    """udev runs each RUN of a matching device; here the same programs run on a copy of a zone."""
    folder = DEPLOY / "systemd"
    rules = (folder / "joulewatch-rapl.rules").read_text("utf-8")
    (rule,) = [line for line in rules.splitlines() if not line.startswith("#")]
    assert 'SUBSYSTEM=="powercap"' in rule
    group = "joulewatch-rapl"
    assert f"g {group} -" in (folder / "joulewatch-rapl.sysusers.conf").read_text("utf-8")
    assert f"SupplementaryGroups={group}\n" in (SERVICE.with_name(f"{SERVICE.name}.d") / "rapl-group.conf").read_text()
    zone = tmp_path / "devices/virtual/powercap/intel-rapl/intel-rapl:0"
    zone.mkdir(parents=True)
    counter = zone / "energy_uj"
    counter.write_text("1\n")
    counter.chmod(0o400)
    commands = re.findall(r'RUN\+="([^"]+)"', rule)
    assert len(commands) == 2
    for command in commands:
        path = "/devices/virtual/powercap/intel-rapl/intel-rapl:0"
        filled = command.replace("%S", str(tmp_path)).replace("%p", path).replace(group, str(os.getgid()))
        run(*filled.split())
    assert counter.stat().st_mode & 0o777 == 0o440
    udevadm = shutil.which("udevadm")
    if udevadm is not None and "verify" in run(udevadm, "--help"):  # systemd 254 and newer
        run(udevadm, "verify", "--resolve-names=never", str(folder / "joulewatch-rapl.rules"))


TEXTFILE: Final = DEPLOY / "textfile"


def test_systemd_accepts_the_timer_of_the_textfile_collector_and_its_service(tmp_path: Path) -> None:
    program = require_program("systemd-analyze", "systemd")
    for name in ("joulewatch-textfile.service", "joulewatch-textfile.timer"):
        text = re.sub(r"(?m)^Documentation=.*$", "", (TEXTFILE / name).read_text("utf-8"))
        (tmp_path / name).write_text(text.replace("/opt/joulewatch/bin/joulewatch-textfile", sys.executable), "utf-8")
    assert run(program, "verify", *map(str, sorted(tmp_path.iterdir()))).strip() == ""


def test_cron_and_the_service_run_the_script_that_the_readme_installs() -> None:
    readme = (TEXTFILE / "README.md").read_text("utf-8")
    assert "install deploy/textfile/joulewatch-textfile /opt/joulewatch/bin/" in readme
    installed = "/opt/joulewatch/bin/joulewatch-textfile"
    (line,) = [line for line in (TEXTFILE / "cron").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert line.split() == ["*"] * 5 + ["root", installed]
    assert f"ExecStart={installed}\n" in (TEXTFILE / "joulewatch-textfile.service").read_text("utf-8")
    run("sh", "-n", str(TEXTFILE / "joulewatch-textfile"))


DROP_INS: Final = sorted((DEPLOY / "systemd" / "joulewatch-exporter.service.d").iterdir())


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_systemd_accepts_the_unit_with_each_drop_in(drop_in: Path, tmp_path: Path) -> None:
    program = require_program("systemd-analyze", "systemd")
    copy = copy_of_unit(tmp_path)
    folder = tmp_path / f"{SERVICE.name}.d"
    folder.mkdir()
    (folder / drop_in.name).write_text(drop_in.read_text("utf-8"), "utf-8")
    assert run(program, "verify", str(copy)).strip() == ""
    if "--offline" in run(program, "--help"):
        run(program, "security", "--offline=true", "--threshold=20", "--no-pager", str(copy))
    (folder / "broken.conf").write_text("[Service]\nNoSuchKey=yes\n", "utf-8")
    assert "NoSuchKey" in run(program, "verify", str(copy)), "systemd-analyze did not read the drop-ins"


def test_every_drop_in_is_in_the_readme() -> None:
    readme = (DEPLOY / "systemd" / "README.md").read_text("utf-8")
    assert [path.name for path in DROP_INS if f"`{path.name}`" not in readme] == []


# compose


def services() -> dict[str, Any]:
    return dict(parse(COMPOSE / "compose.yaml")["services"])


def mounts() -> Iterator[tuple[str, str, str]]:
    """Yield (service, path on the host or name of a volume, path in the container)."""
    for name, service in services().items():
        for volume in service.get("volumes", ()):
            host, inside, *_ = volume.split(":")
            yield name, host, inside


def test_compose_has_the_whole_stack_with_pinned_images() -> None:
    assert set(services()) == {"exporter", "prometheus", "grafana"}
    for name, service in services().items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
    for line in DOCKERFILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("FROM"):
            assert re.match(r"FROM python:\d+\.\d+\.\d+-", line)


def test_compose_agrees_with_the_schema_of_compose() -> None:
    path = COMPOSE / "compose.yaml"
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path))
    data = parse(path)
    for service in data["services"].values():
        assert set(service.get("depends_on", ())) <= set(data["services"])
        assert set(service.get("secrets", ())) <= set(data["secrets"])


def test_compose_mounts_files_that_exist() -> None:
    volumes = set(parse(COMPOSE / "compose.yaml")["volumes"])
    for service, host, _ in mounts():
        if not host.startswith("/") and host not in volumes:
            assert (COMPOSE / host).exists(), f"{service}: {host}"
    context = (COMPOSE / services()["exporter"]["build"]["context"]).resolve()
    assert context == ROOT
    dockerfile = (context / services()["exporter"]["build"]["dockerfile"]).read_text(encoding="utf-8")
    for line in dockerfile.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source_path in line.split()[1:-1]:
                assert (ROOT / source_path).exists(), line


def test_compose_binds_all_ports_to_loopback() -> None:
    published = {name: service["ports"] for name, service in services().items()}
    assert published["exporter"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    assert f"EXPOSE {PORT}" in dockerfile and f"--web.listen-address=:{PORT}" in dockerfile
    targets = [job["static_configs"][0]["targets"][0] for job in parse(COMPOSE / "prometheus.yaml")["scrape_configs"]]
    assert targets == [f"exporter:{PORT}"]


def test_compose_mounts_the_paths_of_the_exporters_flags_read_only() -> None:
    exporter = services()["exporter"]
    assert exporter["read_only"] is True
    assert (exporter["cap_drop"], exporter["cap_add"]) == (["ALL"], ["DAC_READ_SEARCH"])
    assert "user" not in exporter, "the image's own user is not root"
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    for service, host, inside in mounts():
        if service == "exporter":
            assert f"{host}:{inside}:ro" in exporter["volumes"]
            assert f"--path.{'sysfs' if host == '/sys' else 'procfs'}={inside}" in dockerfile


def test_compose_enables_the_receiver_and_provisions_grafana() -> None:
    assert "--web.enable-remote-write-receiver" in services()["prometheus"]["command"]
    inside = {target: host for service, host, target in mounts() if service == "grafana"}
    folder = provider()["options"]["path"]
    for name in NAMES:
        assert f"{folder}/{name}.json" in inside
    assert source()["url"] == "$PROMETHEUS_URL"
    assert services()["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    assert {"/etc/grafana/provisioning/datasources", "/etc/grafana/provisioning/dashboards"} <= set(inside)


def test_docker_compose_accepts_the_file() -> None:
    docker = require_compose()
    run(docker, "compose", "-f", str(COMPOSE / "compose.yaml"), "config", "--quiet")


def test_hadolint_accepts_the_dockerfile() -> None:
    run(tool("hadolint"), str(DOCKERFILE))


def test_the_image_runs_without_root_and_with_one_capability() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert text.count("FROM ") == 2
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)
    assert re.findall(r"setcap (\S+)", text) == ["cap_dac_read_search=ep"]
    assert "HEALTHCHECK --interval=30s --timeout=5s --start-period=15s CMD" in text
    assert f"http://127.0.0.1:{PORT}/-/healthy" in text


KEYS: Final = {
    "Unit": {"Description", "Wants", "After"},
    "Container": {
        *("Image", "ContainerName", "DropCapability", "AddCapability", "ReadOnly", "HostName", "Volume"),
        *("PublishPort", "PodmanArgs"),
    },
    "Service": {"Restart"},
    "Install": {"WantedBy"},
}
"""Keys of podman-systemd.unit(5) and systemd that the quadlet uses; Podman ignores a file with an unknown key."""


def test_the_quadlet_has_known_keys_and_the_rights_of_compose() -> None:
    sections: dict[str, dict[str, list[str]]] = {}
    for line in QUADLET.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(heading[1], {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    assert {name: set(keys) for name, keys in sections.items()} == KEYS
    container, exporter = sections["Container"], services()["exporter"]
    assert container["Image"] == [f"localhost/{exporter['image']}"]
    assert (container["DropCapability"], container["AddCapability"]) == (["all"], ["CAP_DAC_READ_SEARCH"])
    assert container["ReadOnly"] == ["true"]
    assert (container["HostName"], exporter["uts"]) == (["%H"], "host"), "the machine has the name of the host"
    assert container["Volume"] == exporter["volumes"]
    assert container["PublishPort"] == exporter["ports"]
    assert container["PodmanArgs"] == [f"--memory={exporter['mem_limit']} --pids-limit={exporter['pids_limit']}"]


def require_compose() -> str:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30).returncode:
        # Debian 12 does not have it. Where this test is skipped, the tests above check the structure.
        pytest.skip("docker compose is not installed (Docker's own package docker-compose-plugin)")
    return docker


# Grafana's provisioning


def source() -> dict[str, Any]:
    (datasource,) = parse(PROVISIONING / "datasources" / "joulewatch.yaml")["datasources"]
    return dict(datasource)


def provider() -> dict[str, Any]:
    (entry,) = parse(PROVISIONING / "dashboards" / "joulewatch.yaml")["providers"]
    return dict(entry)


def test_provisioning_has_version_1_and_a_prometheus() -> None:
    for path in PROVISIONING.rglob("*.yaml"):
        assert parse(path)["apiVersion"] == 1
    assert source()["type"] == "prometheus" and len(source()["uid"]) <= 40
    assert source()["jsonData"]["httpMethod"] == "POST"


def test_provisioned_dashboards_cannot_be_overwritten() -> None:
    assert provider()["allowUiUpdates"] is False
    assert all(load(name)["editable"] is False for name in NAMES)


def test_documents_have_the_default_port() -> None:
    for path in (DEPLOY / "systemd" / "README.md", SERVICE):
        ports = set(re.findall(r"(?:localhost|10\.0\.0\.5|=):(\d{4,5})\b", path.read_text(encoding="utf-8")))
        assert ports == {PORT}, path
