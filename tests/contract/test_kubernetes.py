"""The Helm chart and the manifests of Kubernetes are valid, agree with the image, and need few rights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from joulewatch_exporter import catalog
from support import dashboards
from support.helm import CHART, FOLDER, FULL, helm, objects, one, require_helm
from support.paths import ROOT
from support.require import require_program

MANIFESTS: Final = sorted((FOLDER / "manifests").glob("*.yaml"))
VERSIONS: Final = [f"1.{minor}" for minor in range(25, 38)]
OPERATOR: Final = "monitoring.coreos.com/v1"
RULES: Final = [dashboards.FOLDER / "rules" / name for name in ("joulewatch.rules.yaml", dashboards.LLM_RULES)]
SCHEMA: Final = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES: Final = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def from_manifests() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text("utf-8"))]


def pod(values: dict[str, Any] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = one("DaemonSet", values)["spec"]["template"]["spec"]
    return spec


def container(values: dict[str, Any] | None = None) -> dict[str, Any]:
    (only,) = pod(values)["containers"]
    return dict(only)


# The chart


def test_helm_accepts_the_chart() -> None:
    report = helm("lint", FULL)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_the_chart_has_the_version_of_the_project_which_is_the_tag_of_the_image() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version
    compose = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text("utf-8"))
    assert container()["image"] == compose["services"]["exporter"]["image"]


def test_the_chart_has_links_to_the_rules_and_to_every_dashboard() -> None:
    links = {path.name: path for path in (CHART / "files").rglob("*.*") if not path.is_dir()}
    originals = {f"{name}.json": dashboards.FOLDER / f"{name}.json" for name in dashboards.NAMES}
    originals |= {path.name: path for path in RULES}
    assert {name: path.resolve() for name, path in links.items()} == originals
    assert all(path.is_symlink() for path in links.values())


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the schema of every value."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}{name}", inner
        yield from schemas(inner, f"{path}{name}.")


def test_the_schema_describes_every_value_and_no_other() -> None:
    described = dict(schemas(SCHEMA))
    assert [path for path, inner in described.items() if not inner.get("description", "").endswith(".")] == []
    assert SCHEMA["properties"].keys() - {"global"} == VALUES.keys()
    for name, value in VALUES.items():
        properties = SCHEMA["properties"][name].get("properties")
        if properties is not None:
            assert properties.keys() == value.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"nvidea": {}},
        {"image": {"repository": ""}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"prometheusOperator": {"scrapeInterval": "5m"}},
        {"networkPolicy": {"from": "monitoring"}},
        {"config": "exporter.yaml"},
    ],
    ids=json.dumps,
)
def test_a_wrong_value_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=rf"at '(/{next(iter(wrong))}.*)?'"):
        helm("render", wrong)


def test_two_releases_in_one_namespace_share_no_name() -> None:
    first, second = ({(o["kind"], o["metadata"]["name"]) for o in objects(FULL, name)} for name in ("cpu", "gpu"))
    assert len(first) == len(second) == len(objects(FULL))
    assert not first & second
    selectors = [one_of["spec"]["selector"] for one_of in objects(FULL, "gpu") if one_of["kind"] == "Service"]
    assert selectors == [{"app.kubernetes.io/name": "joulewatch-exporter", "app.kubernetes.io/instance": "gpu"}]


# The objects


def test_the_manifests_are_what_the_chart_renders_to() -> None:
    require_helm()
    outcome = subprocess.run(
        [sys.executable, str(FOLDER / "build.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr
    assert len(MANIFESTS) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_objects_are_valid(version: str) -> None:
    checked = [o for o in [*from_manifests(), *objects(FULL)] if o["apiVersion"] != OPERATOR]
    assert {o["kind"] for o in checked} == {"ConfigMap", "DaemonSet", "NetworkPolicy", "Service", "ServiceAccount"}
    for document in checked:
        assert validate(document, version, strict=True) == version


def test_an_unknown_field_is_not_valid() -> None:
    daemonset = one("DaemonSet")
    daemonset["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(ValidationError, match="hostPid"):
        validate(daemonset, VERSIONS[0], strict=True)


def test_the_operators_objects_exist_only_if_they_are_enabled() -> None:
    assert [o["kind"] for o in objects() if o["apiVersion"] == OPERATOR] == []
    assert {o["kind"] for o in objects(FULL) if o["apiVersion"] == OPERATOR} == {"ServiceMonitor", "PrometheusRule"}
    without = {"prometheusOperator": {"enabled": True, "rules": False}, "dashboards": {"enabled": False}}
    assert {o["kind"] for o in objects(without)} == {
        *("ServiceAccount", "ConfigMap", "NetworkPolicy", "Service", "DaemonSet", "ServiceMonitor")
    }
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert one(kind, FULL)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_rules_and_dashboards_are_the_originals() -> None:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]
    assert one("PrometheusRule", FULL)["spec"] == {"groups": groups}
    maps = [o for o in objects() if o["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert len(maps) == len(dashboards.NAMES)
    for document in maps:
        ((name, text),) = document["data"].items()
        assert json.loads(text) == dashboards.load(name.removesuffix(".json"))
        # kubectl apply keeps a copy in an annotation, and all annotations of an object have 256 KiB.
        assert len(json.dumps(document)) < 250 * 1024


def test_the_service_and_the_monitor_select_the_pods() -> None:
    daemonset, service, monitor = one("DaemonSet"), one("Service"), one("ServiceMonitor", FULL)
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert daemonset["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("metrics", catalog.DEFAULT_PORT, "metrics")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("metrics", "1s")
    assert container()["ports"] == [{"name": "metrics", "containerPort": catalog.DEFAULT_PORT}]


def test_only_the_namespace_monitoring_may_connect() -> None:
    policy = one("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == one("DaemonSet")["spec"]["selector"]["matchLabels"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "metrics"}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])


# Rights


@pytest.mark.parametrize("values", [{}, FULL], ids=["default", "full"])
def test_the_pod_has_one_capability_and_can_write_nothing(values: dict[str, Any]) -> None:
    spec, only = pod(values), container(values)
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy/container/Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert user is not None
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["DAC_READ_SEARCH"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["automountServiceAccountToken"] is False
    assert all(mount["readOnly"] for mount in only["volumeMounts"])
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/sys/bus", "/sys/class", "/sys/devices"}


def test_the_limits_are_those_of_the_service_of_systemd() -> None:
    unit = (ROOT / "deploy/systemd/joulewatch-exporter.service").read_text("utf-8")
    assert "\nMemoryMax=128M\n" in unit and "\nCPUQuota=25%\n" in unit
    assert container()["resources"]["limits"] == {"cpu": "250m", "memory": "128Mi"}


def test_gpus_need_the_runtime_class_and_the_variables_of_the_toolkit() -> None:
    names = {variable["name"] for variable in container(FULL)["env"]}
    assert names == {"NODE_NAME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    assert pod(FULL)["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pod() | pod({"nvidia": {"enabled": True, "runtimeClassName": ""}})
    assert ".[nvml]" in (ROOT / "deploy/container/Dockerfile").read_text("utf-8")


# What runs


def arguments(values: dict[str, Any], host: Path) -> list[str]:
    """Return the command of the container, with the files below ``host`` instead of those of the container."""
    dockerfile = (ROOT / "deploy/container/Dockerfile").read_text("utf-8")
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)
    assert entry is not None
    python, *words = json.loads(entry[1])
    assert python == "/opt/joulewatch/bin/python"
    only = container(values)
    assert {mount["mountPath"]: mount["name"] for mount in only["volumeMounts"]}["/etc/joulewatch"] == "config"
    words += [word.replace("$(NODE_NAME)", "node7") for word in only["args"]]
    return [
        sys.executable,
        *(re.sub("=(/host/sys|/etc/joulewatch)", lambda match: f"={host}{match[1]}", word) for word in words),
    ]


def test_the_pod_reads_the_energy_of_its_node(tmp_path: Path) -> None:
    """With nothing of the node but the mounted folders, and under the name of the node."""
    node = tmp_path / "node"
    command = [sys.executable, "-m", "joulewatch_exporter", "emulate", "epyc-7763-node", str(node), "--duration", "0.2"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    host = tmp_path / "container"
    for mount in container(FULL)["volumeMounts"]:
        inside = mount["mountPath"].removeprefix("/host/sys/")
        if inside != mount["mountPath"] and (node / "sys" / inside).is_dir():
            shutil.copytree(node / "sys" / inside, host / "host" / "sys" / inside, symlinks=True)
    configuration = host / "etc" / "joulewatch" / "exporter.yaml"
    configuration.parent.mkdir(parents=True)
    (data,) = (o["data"] for o in objects(FULL) if o["kind"] == "ConfigMap" and "exporter.yaml" in o["data"])
    configuration.write_text(data["exporter.yaml"], "utf-8")
    outcome = subprocess.run([*arguments(FULL, host), "--once"], capture_output=True, text=True, timeout=30)
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(r'^joulewatch_device_energy_joules_total\{collector="rapl",.* ', outcome.stdout, re.MULTILINE)
    assert set(re.findall(r'nodename="([^"]*)"', outcome.stdout)) == {"node7"}
    assert set(re.findall(r'^joulewatch_sensor_info\{.*,host="([^"]*)"', outcome.stdout, re.MULTILINE)) == {"node7"}


def discovered(job: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return the labels that Prometheus gives to a pod of the exporter, by promtool."""
    program = require_program("promtool", "prometheus")
    target = {
        "__address__": "10.0.0.9:10717",
        "__meta_kubernetes_pod_node_name": "node7",
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "joulewatch-exporter",
        "__meta_kubernetes_pod_container_port_name": "metrics",
        "pod": "joulewatch-exporter-x7k2p",
        "container": "exporter",
        "endpoint": "metrics",
    }
    address = target.pop("__address__")
    job = {**job, "static_configs": [{"targets": [address], "labels": target}]}
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"scrape_configs": [job]}), "utf-8")
    outcome = subprocess.run(
        # promtool waits until the timeout for more targets.
        [program, "check", "service-discovery", "--timeout=300ms", str(config), job["job_name"]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    (result,) = json.loads(outcome.stdout)
    return {name: value for name, value in result["labels"].items() if not name.startswith("__")}


def test_a_new_pod_continues_the_series_of_its_node(tmp_path: Path) -> None:
    """The operator writes the labels pod, container and endpoint before the relabelings of the monitor."""
    (endpoint,) = one("ServiceMonitor", FULL)["spec"]["endpoints"]
    renamed = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    rules = [{renamed.get(key, key): value for key, value in rule.items()} for rule in endpoint["relabelings"]]
    labels = discovered({"job_name": "joulewatch", "relabel_configs": rules}, tmp_path)
    assert labels == {"job": "joulewatch", "instance": "node7"}


# README.md


def test_the_scrape_configuration_of_the_readme_finds_the_pods(tmp_path: Path) -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    (text,) = re.findall(r"^```yaml\n(scrape_configs:.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    (job,) = yaml.safe_load(text)["scrape_configs"]
    # Debian's Prometheus has no service discovery of Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    assert discovered(job, tmp_path)["instance"] == "node7"


def test_the_commands_of_the_readme_name_values_and_files_that_exist() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    commands = re.sub(r"\\\n\s*", "", "".join(re.findall(r"^```text\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)))
    described = dict(schemas(SCHEMA))
    settings = re.findall(r"--set(?:-string)? ([\w.]+)=", commands)
    assert settings
    for setting in settings:
        assert any(setting == path or setting.startswith(f"{path}.") for path in described), setting
    paths = set(re.findall(r"(?<!\S)(?:deploy|dashboards)/[\w./*-]+", commands))
    assert {"deploy/kubernetes/chart", "dashboards/*.json"} <= paths
    assert [path for path in paths if not list(ROOT.glob(path))] == []
