"""Networks on a real NVIDIA GPU through PyTorch: joules per inference over precisions and batch sizes, by NVML.

`joulewatch profile` itself does it: two built-in networks in FP32, TF32, FP16 and BF16. Nothing is downloaded, nothing
need be installed but the packages that are looked for first, and the whole of it ends within ten minutes: a run that
would take longer is ended as by Ctrl-C, and what was measured until then is kept.

A session with a GPU, from the top folder, a command each (the last two may take ten minutes together):

    python3 -m pytest -q -W default tests/harness/runtimes/test_torch.py -k on_a_gpu
    PYTHONPATH=exporter:harness:tests python3 -m benchmarks.gpu
    PYTHONPATH=exporter:harness:tests python3 -m benchmarks.gpu_networks
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine as machines
from benchmarks.machine import describe_machine, host_line, write_result
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector, NvmlOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError
from joulewatch_exporter.model import Host

TOP = Path(__file__).parents[2]
NETWORKS = ("radioml-vgg10", "resnet-like")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
BATCH_SIZES, QUICK_BATCH_SIZES = (1, 8, 64, 512), (1, 64)
LIMIT_S = 500.0
"""From the beginning of it all; then the run is told to end."""
ENDING_S = 40.0
"""What ending it may take."""
PROBE_LIMIT_S = 200.0
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "onnx": "onnx",
    "requests": "requests",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "yaml": "pyyaml",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
}
"""Module -> package."""


def probe(device: str) -> None:
    """Load and check every configuration; one JSON line each, on a process of its own, which then lets the GPU go."""
    from joulewatch_harness.records import Configuration
    from joulewatch_harness.runtimes import open_network

    for network in NETWORKS:
        for precision in PRECISIONS:
            why = ""
            try:
                found: Any = open_network(
                    Configuration(
                        name="n", network=network, runtime="torch", precision=precision, options={"device": device}
                    )
                )
                found.load()
                found.check()
                found.close()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            sys.stdout.write(json.dumps({"network": network, "precision": precision, "why": why}) + "\n")
            sys.stdout.flush()


def missing_packages() -> list[str]:
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def no_gpu(device: str) -> str:
    """Why nothing can be measured; empty: it can."""
    if missing := missing_packages():
        return f"missing: {', '.join(missing)}"
    if device == "cpu":
        return ""
    try:
        NvmlCollector.open(Host(), NvmlOptions()).close()
    except (SensorAbsentError, SensorDeniedError) as error:
        return str(error)
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True
    )
    return "" if done.stdout.strip() == "True" else f"torch sees no GPU {done.stderr.strip()[-200:]}"


def configurations(device: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Those that load and compute rightly, and the others with why."""
    words = [sys.executable, "-m", "benchmarks.gpu_networks", "--probe", "--device", device]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        # What it has told until it hangs or crashes is kept.
        try:
            said, _ = process.communicate(timeout=PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    found = [json.loads(line) for line in said.splitlines()]
    told = {(item["network"], item["precision"]): item["why"] for item in found}
    good, bad = [], []
    for network in NETWORKS:
        for precision in PRECISIONS:
            why = told.get((network, precision), f"the process that tried it ended with {process.returncode}")
            if why:
                bad.append({"network": network, "precision": precision, "why": why})
            else:
                options = {"device": device}
                good.append({"network": network, "runtime": "torch", "precision": precision, "options": options})
    return good, bad


def environment() -> dict[str, str]:
    """Of children: this tree, whether joulewatch is installed or not."""
    paths = [str(TOP / name) for name in ("exporter", "harness", "tests")]
    return {
        **os.environ,
        "COLUMNS": "110",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def profile(plan: dict[str, Any], folder: Path, limit_s: float) -> tuple[Path, bool]:
    """Run a plan for so long at most; answers the run's folder, and whether it came to its end."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    words = [sys.executable, "-m", "joulewatch_harness", "profile", str(path), "--output", str(folder / "runs")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment()) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    runs = sorted((folder / "runs").glob("*/journal.jsonl"))
    if not runs:
        raise SystemExit(f"gpu_networks: joulewatch profile ended with {code} and left no run")
    return runs[0].parent, code == 0


def run(quick: bool = False, device: str = "cuda:0", exporter_flags: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """Measure; writes ``gpu_networks.json``, ``.md`` and ``.png``.

    Args:
        quick: Fewer batch sizes.
        device: ``cpu`` to see that it runs where there is no GPU; nothing is kept then.
        exporter_flags: Others than those that read NVIDIA GPUs and estimate nothing.
    """
    if why := no_gpu(device):
        sys.stdout.write(f"gpu_networks: not run, nothing written: {why}\n")
        return None
    start_s = time.monotonic()
    machine = describe_machine()
    good, bad = configurations(device)
    if not good:
        raise SystemExit(
            "gpu_networks: " + "; ".join(f"{item['network']} {item['precision']}: {item['why']}" for item in bad)
        )
    plan = {
        "name": "networks on a GPU",
        "preset": "quick",
        "configurations": good,
        "batch_sizes": list(QUICK_BATCH_SIZES if quick else BATCH_SIZES),
        "exporter_flags": list(exporter_flags or ("--collector.nvml", "--no-collector.estimate")),
    }
    with tempfile.TemporaryDirectory() as name:
        folder, ended = profile(plan, Path(name), LIMIT_S - (time.monotonic() - start_s))
        analyze = [sys.executable, "-m", "joulewatch_harness", "analyze", str(folder)]
        figure = folder / "gpu_networks.png"
        text, document = (
            subprocess.run([*analyze, *words], capture_output=True, text=True, env=environment(), check=True).stdout
            for words in (("--figure", str(figure)), ("--format", "json"))
        )
        result = {"machine": machine, "left_out": bad, "ended_early": not ended, "result": json.loads(document)}
        table = "# Networks on an NVIDIA GPU, through PyTorch\n\n" + host_line(machine)
        table += "\nInputs and outputs stay on the device, launches are eager. By `joulewatch profile`:\n\n"
        table += f"```text\n{text}```\n"
        if not ended:
            table += "\nEnded before all was measured: the time was up.\n"
        table += "".join(f"\nLeft out: {item['network']} {item['precision']}: {item['why']}\n" for item in bad)
        if device == "cpu":
            sys.stdout.write(table)
        else:
            write_result("gpu_networks", result, table + "\n![](gpu_networks.png)\n")
            shutil.copy(figure, machines.RESULTS / "gpu_networks.png")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Networks on a real NVIDIA GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes")
    parser.add_argument("--device", default="cuda:0", help="cpu: to see that it runs without a GPU; nothing is kept")
    parser.add_argument("--exporter-flag", action="append", default=[], help="instead of those for NVIDIA GPUs")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        probe(args.device)
    else:
        run(args.quick, args.device, tuple(args.exporter_flag))
    return 0


if __name__ == "__main__":
    sys.exit(main())
