"""Networks on a real NVIDIA GPU through PyTorch: joules per inference over precisions and batch sizes, by NVML.

The benchmark runs `joulewatch profile` with two built-in networks in FP32, TF32, FP16 and BF16. It downloads nothing,
checks the required packages first, and ends within ten minutes: a run that would take longer is ended as by Ctrl-C,
and its results so far are kept.

On a machine with a GPU, run these commands from the top folder (the last two may take ten minutes together):

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
"""Time limit from the start of the benchmark; after it, the run is interrupted."""
ENDING_S = 40.0
"""Time limit for the end of an interrupted run."""
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
    """Load and check every configuration; print one JSON line each. A separate process does this, to free the GPU."""
    from joulewatch_harness.records import Configuration
    from joulewatch_harness.runtimes import open_network

    for network in NETWORKS:
        for precision in PRECISIONS:
            why = ""
            try:
                opened: Any = open_network(
                    Configuration(
                        name="n", network=network, runtime="torch", precision=precision, options={"device": device}
                    )
                )
                opened.load()
                opened.check()
                opened.close()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            sys.stdout.write(json.dumps({"network": network, "precision": precision, "why": why}) + "\n")
            sys.stdout.flush()


def missing_packages() -> list[str]:
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def no_gpu(device: str) -> str:
    """Return the reason why the benchmark cannot run; empty if it can."""
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
    """Return the configurations that load and compute correctly, and the others with the reason."""
    words = [sys.executable, "-m", "benchmarks.gpu_networks", "--probe", "--device", device]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        # Keep the output of a process that hangs or crashes.
        try:
            output, _ = process.communicate(timeout=PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    entries = [json.loads(line) for line in output.splitlines()]
    reasons = {(entry["network"], entry["precision"]): entry["why"] for entry in entries}
    good, bad = [], []
    for network in NETWORKS:
        for precision in PRECISIONS:
            why = reasons.get((network, precision), f"the process that loads it ended with {process.returncode}")
            if why:
                bad.append({"network": network, "precision": precision, "why": why})
            else:
                options = {"device": device}
                good.append({"network": network, "runtime": "torch", "precision": precision, "options": options})
    return good, bad


def environment() -> dict[str, str]:
    """Return the environment of child processes, which use this tree even if joulewatch is not installed."""
    paths = [str(TOP / name) for name in ("exporter", "harness", "tests")]
    return {
        **os.environ,
        "COLUMNS": "110",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def profile(plan: dict[str, Any], folder: Path, limit_s: float) -> tuple[Path, bool]:
    """Run a plan for at most ``limit_s``; return the folder of the run and whether it is complete."""
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
    """Run the benchmark; write ``gpu_networks.json``, ``.md`` and ``.png``.

    Args:
        quick: Fewer batch sizes.
        device: With ``cpu``, the benchmark is tested without a GPU and writes no result.
        exporter_flags: Flags in place of those that read NVIDIA GPUs and disable the estimate.
    """
    if why := no_gpu(device):
        sys.stdout.write(f"gpu_networks: not run, no result written: {why}\n")
        return None
    start_s = time.monotonic()
    machine = describe_machine()
    good, bad = configurations(device)
    if not good:
        raise SystemExit(
            "gpu_networks: " + "; ".join(f"{entry['network']} {entry['precision']}: {entry['why']}" for entry in bad)
        )
    plan = {
        "name": "networks on a GPU",
        "preset": "quick",
        "rounds": 3,
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
        table += "\nInputs and outputs stay on the device, launches are eager. Output of `joulewatch profile`:\n\n"
        table += f"```text\n{text}```\n"
        if not ended:
            table += "\nEnded before all windows were measured, because the time limit was reached.\n"
        table += "".join(f"\nExcluded: {entry['network']} {entry['precision']}: {entry['why']}\n" for entry in bad)
        if device == "cpu":
            sys.stdout.write(table)
        else:
            write_result("gpu_networks", result, table + "\n![](gpu_networks.png)\n")
            shutil.copy(figure, machines.RESULTS / "gpu_networks.png")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Networks on a real NVIDIA GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes")
    parser.add_argument("--device", default="cuda:0", help="cpu: test the benchmark without a GPU; writes no result")
    parser.add_argument(
        "--exporter-flag", action="append", default=[], help="exporter flag, in place of those for NVIDIA GPUs"
    )
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        probe(args.device)
    else:
        run(args.quick, args.device, tuple(args.exporter_flag))
    return 0


if __name__ == "__main__":
    sys.exit(main())
