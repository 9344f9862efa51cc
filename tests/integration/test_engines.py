"""Other servers with the API of Prometheus: a real VictoriaMetrics, a real agent, and gateways with tenants."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import load_options
from joulewatch_harness.storage.journal import list_runs
from support.commands import SLEEPER, joulewatch
from support.paths import ROOT
from support.require import require_program
from support.servers import Server, free_port
from support.synthetic import TWO_SOCKETS, make_world, send_world
from support.tenant_gateway import ENGINES, TenantGateway
from support.truth import true_joules_per_inference
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus, StartVictoriaMetrics
    from support.servers import Emulator, ExporterServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

DEPLOY: Final = ROOT / "deploy" / "prometheus"
SWEEP: Final = ("--network", SLEEPER, "--batch-sizes=4", "--window=1", "--rounds=3", "--preset=quick", "--idle=1")


@pytest.fixture
def machine(tmp_path: Path, emulator: StartEmulator) -> Emulator:
    """One socket at 150 W."""
    scenario = tmp_path / "one_socket.yaml"
    zone = {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": 150}
    data = {"name": "one-socket", "refresh_s": 0.002, "machine": {"sockets": 1}, "zones": [zone]}
    scenario.write_text(yaml.safe_dump(data))
    return emulator(scenario)


@pytest.fixture
def exporter(machine: Emulator, exporter_server: StartExporter) -> ExporterServer:
    return exporter_server(*machine.flags)


def check_analyzed_elsewhere(machine: Emulator, folder: Path, *server: str) -> None:
    """Analyze the only run in another folder, with the server alone, and compare the energies with the truth."""
    (record,) = list_runs(folder / "runs").values()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    answer = joulewatch("analyze", record.header.run, *server, "--format=json", folder=elsewhere)
    assert answer.code == 0, answer.err
    (cell,) = json.loads(answer.out)["results"]
    (true,) = true_joules_per_inference(record, Truth.load(machine.folder)).values()
    assert len(cell["windows"]) == 3
    assert cell["energy"]["total"]["gross"]["value"] == pytest.approx(true, rel=0.02)


@pytest.mark.long  # VictoriaMetrics shows new series after 10 s
def test_a_run_is_scraped_delivered_published_and_analyzed_on_victoria_metrics(
    machine: Emulator,
    exporter: ExporterServer,
    victoria_metrics_server: StartVictoriaMetrics,
    tmp_path: Path,
) -> None:
    server = victoria_metrics_server(scrape_targets=[exporter.address])
    done = joulewatch("profile", *SWEEP, "--prometheus", server.url, "--exporter", exporter.url, folder=tmp_path)
    assert done.code == 0, done.err
    assert f"7 windows are in {server.url} (confirmed by reading back)" in done.err
    assert "published " in done.err
    check_analyzed_elsewhere(machine, tmp_path, "--prometheus", server.url)


def client_options(engine: str, gateway: TenantGateway, **more: object) -> dict[str, Any]:
    """Return the committed options of joulewatch for an engine, with the gateway's host and port."""
    options: dict[str, Any] = yaml.safe_load((DEPLOY / "clients" / f"{engine}.yaml").read_text("utf-8"))
    for key in ("url", "remote_write_url"):
        options[key] = urlsplit(options[key])._replace(netloc=gateway.address).geturl()
    return options | more


def written(folder: Path, options: dict[str, Any]) -> Path:
    path = folder / "client.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_is_written_to_and_read_from_a_tenant(
    engine: str, prometheus_server: StartPrometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the committed options, which have the addresses, the tenant's header and the parameters."""
    header = ENGINES[engine].tenant_header
    tenant = "energy" if header else ""
    storages = {name: prometheus_server(out_of_order=True).url for name in ((tenant, "other") if header else ("",))}
    start_s = float(int(time.time() - 600))
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"
    world = make_world(TWO_SOCKETS, start_s=start_s, run=run)
    with TenantGateway(ENGINES[engine], storages) as gateway:
        path = written(tmp_path, client_options(engine, gateway))
        options = load_options(None, path)
        assert options is not None
        send_world(options, world)
        words = [f"--prometheus.config={path}", f"--output={tmp_path}", "--format=json"]
        assert main(["analyze", run, *words, "--publish"]) == 0
        out, err = capsys.readouterr()
        assert len(json.loads(out)["results"]) == 6 and "published" in err
        if header:
            path = written(tmp_path, client_options(engine, gateway, headers={header: "other"}))
            assert main(["runs", f"--prometheus.config={path}", "--format=json"]) == 0
            assert json.loads(capsys.readouterr().out) == []
            path = written(tmp_path, client_options(engine, gateway, headers={}))
            assert main(["runs", f"--prometheus.config={path}", "--format=json"]) == 2
            assert "HTTP 401" in capsys.readouterr().err


def start_agent(folder: Path, target: str, write_url: str) -> Server:
    """Start a real agent with the committed configuration."""
    program = require_program("prometheus", "prometheus")
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "agent.yaml").read_text("utf-8"))
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    config["remote_write"][0]["url"] = write_url
    folder.mkdir()
    (folder / "agent.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [program, "--enable-feature=agent", f"--config.file={folder / 'agent.yaml'}"]
    command += [f"--storage.agent.path={folder / 'data'}", f"--web.listen-address={address}"]
    server = Server(command, folder, f"http://{address}/-/ready")
    server.start()
    return server


@pytest.mark.long  # the agent sends nothing in its first ten seconds
def test_an_agent_sends_the_samples_with_which_a_run_is_analyzed(
    machine: Emulator, exporter: ExporterServer, prometheus_server: StartPrometheus, tmp_path: Path
) -> None:
    storage = prometheus_server(out_of_order=True)
    with ExitStack() as stack:
        gateway = stack.enter_context(TenantGateway(ENGINES["mimir"], {"energy": storage.url}))
        options = client_options("mimir", gateway)
        agent = start_agent(tmp_path / "agent", exporter.address, f"{options['remote_write_url']}?tenant=energy")
        stack.callback(agent.stop)
        wait_until(lambda: gateway.requests["/api/v1/push", "energy"], "the agent sends samples")
        server = f"--prometheus.config={written(tmp_path, options)}"
        done = joulewatch("profile", *SWEEP, server, "--exporter", exporter.url, "--no-publish", folder=tmp_path)
        assert done.code == 0, done.err
        check_analyzed_elsewhere(machine, tmp_path, server, "--match", "cluster=my-cluster")
