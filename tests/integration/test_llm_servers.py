"""Real servers: llama.cpp next to an emulated machine, its joules per token against the truth; Triton, if installed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import requests
import yaml

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.sources.llm_servers import llm_servers
from joulewatch_harness.cli import main
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.kserve import network as kserve
from joulewatch_harness.runtimes.openai import network as openai
from support.llama_server import LlamaServer, Load
from support.require import require_package
from support.servers import Server, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SCRAPE_S: Final = 0.25
WINDOW_S: Final = 3.0
SCENARIO: Final = {
    "name": "next-to-a-language-model",
    "refresh_s": 0.001,
    "machine": {"sockets": 1},
    "signals": {"package": {"kind": "square", "low_watts": 150, "high_watts": 210, "period_s": 1.7}},
    "zones": [{"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": "package"}],
}
OUTPUT: Final = "llamacpp:tokens_predicted_total"
INPUT: Final = "llamacpp:prompt_tokens_total"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    require_package("xllamacpp")
    require_package("gguf")
    server = LlamaServer(tmp_path_factory.mktemp("llama"))
    server.start()
    yield server
    server.stop()


def energy(capsys: pytest.CaptureFixture[str], url: str, start_s: float, end_s: float) -> Any:
    words = [f"--prometheus={url}", f"--start={start_s:.3f}", f"--end={end_s:.3f}", "--per=llama.cpp", "--format=json"]
    code = main(["energy", *words])
    output = capsys.readouterr()
    assert code == 0, output.err + output.out
    return json.loads(output.out)


def test_joules_per_token_next_to_a_real_server(
    tmp_path: Path,
    llama: LlamaServer,
    emulator: StartEmulator,
    exporter_server: StartExporter,
    prometheus_server: StartPrometheus,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tokens are exact over the whole load, and joules per token have the truth within ± inside it."""
    scenario = tmp_path / "machine.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO, sort_keys=False), encoding="utf-8")
    machine = emulator(scenario)
    exporter = exporter_server(*machine.flags)
    prometheus = prometheus_server(
        scrape_targets=[exporter.address],
        scrape_jobs={"llama": [(llama.address, {})]},
        scrape_interval=f"{SCRAPE_S * 1000:.0f}ms",
    )

    def scrapes() -> int:
        query = f"min(count_over_time({OUTPUT}[1m]) or count_over_time(joulewatch_device_energy_joules_total[1m]))"
        answer = requests.get(f"{prometheus.url}/api/v1/query", params={"query": query}, timeout=10).json()
        return int(answer["data"]["result"][0]["value"][1]) if answer["data"]["result"] else 0

    wait_until(lambda: scrapes() >= 3, "three scrapes of both")
    whole_s = time.time()
    time.sleep(1.2 * SCRAPE_S)
    with Load(llama.url) as load:
        time.sleep(1.5 * SCRAPE_S)
        start_s = time.time()
        time.sleep(WINDOW_S)
        end_s = time.time()
        time.sleep(2.5 * SCRAPE_S)
    time.sleep(1.2 * SCRAPE_S)
    ended_s = time.time()
    time.sleep(2.5 * SCRAPE_S)
    truth = Truth.load(machine.folder)

    result = energy(capsys, prometheus.url, whole_s, ended_s)
    rows = {row["counter"]: row for row in result["counters"]}
    assert rows[OUTPUT]["increase"]["value"] == sum(answer.output for answer in load.answers)
    assert rows[INPUT]["increase"]["value"] == sum(answer.prompt - answer.cached for answer in load.answers)

    result = energy(capsys, prometheus.url, start_s, end_s)
    rows = {row["counter"]: row for row in result["counters"]}
    joules = truth.energy_joules("socket0/package", start_s, end_s)
    inside = [answer for answer in load.answers if start_s < answer.at_s <= end_s]
    for name, tokens in (
        (OUTPUT, sum(answer.output for answer in inside)),
        (INPUT, sum(answer.prompt - answer.cached for answer in inside)),
    ):
        quotient = rows[name]["joules_per_unit"]
        assert abs(quotient["value"] - joules / tokens) <= quotient["expanded_uncertainty"], (quotient, joules, tokens)
        assert quotient["expanded_uncertainty"] < 0.2 * quotient["value"]
        assert quotient["lower"] <= joules / tokens <= quotient["upper"]


def test_the_openai_runtime_counts_what_a_real_server_counts(llama: LlamaServer) -> None:
    """Prefill, decode and the tokens of llama.cpp's own ``usage``, for both APIs."""
    before = counter(llama)
    for api in ("completions", "chat"):
        options = {"url": f"{llama.url}/v1", "api": api, "max_tokens": "12", "ignore_eos": "true"}
        network = openai.open_network("tiny", "native", options)
        network.load()
        network.prepare(4)
        phases = Phases()
        network.run(3, phases)
        network.close()
        assert set(phases.spans) == {"prefill", "decode"}
        assert phases.counts["output_tokens"] == 3 * 4 * 12
    # The probes of load() are counted as well.
    assert counter(llama) - before >= 2 * 3 * 4 * 12


def counter(llama: LlamaServer) -> float:
    lines = requests.get(f"{llama.url}/metrics", timeout=10).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{OUTPUT} "))


def test_the_kserve_runtime_and_the_counters_of_a_real_triton(tmp_path: Path) -> None:
    """Triton from nvidia-pytriton, which needs Debian's Python 3.11: its interpreter is in JOULEWATCH_PYTRITON."""
    python = os.environ.get("JOULEWATCH_PYTRITON")
    if not python:
        pytest.skip("JOULEWATCH_PYTRITON names no Python with nvidia-pytriton (/usr/bin/python3 -m venv, 3.11)")
    ports = [free_port() for _ in range(3)]
    url, metrics = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[2]}/metrics"
    child = Path(__file__).parents[1] / "support" / "triton_child.py"
    server = Server([python, str(child), *map(str, ports)], tmp_path, f"{url}/v2/models/matmul/ready")
    server.start()
    try:
        network = kserve.open_network("matmul", "native", {"url": url, "reference": "none"})
        network.load()
        assert str(network.describe()["runtime_version"]).startswith("triton ")
        network.prepare(4)
        before = triton_counters(metrics)
        phases = Phases()
        network.run(5, phases)
        network.close()
        after = triton_counters(metrics)
    finally:
        server.stop()
    assert set(phases.spans) == {"pack", "wait", "unpack"}
    (requests_counter,) = llm_servers()["triton"].requests
    assert after[requests_counter] - before[requests_counter] == 5
    assert after["nv_inference_count"] - before["nv_inference_count"] == 5 * 4  # elements, not requests


def triton_counters(url: str) -> dict[str, float]:
    lines = [line for line in requests.get(url, timeout=10).text.splitlines() if line.startswith("nv_inference_")]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
