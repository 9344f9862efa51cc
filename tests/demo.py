"""``make demo``: the whole chain on an emulated cluster, which compares every result with the true energy.

Eight emulated nodes (CPUs, GPUs, FPGAs, BMCs) have real exporters, which a real Prometheus scrapes. First joulewatch
profiles RadioML VGG10 in ONNX Runtime on a node whose power follows the real CPU load of this machine. Then it runs
the study of the paper (harness/examples/paper) on three other nodes, with doubles of TVM, TensorRT and FINN. All runs
are analyzed from Prometheus alone, and each energy is compared with the truth of the emulator. At the end, there is a
figure, a report, and a picture of each dashboard.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.storage.journal import find_run, read_run
from support import renderer
from support.demo_cluster import Node, cluster
from support.npm import install
from support.paths import ROOT
from support.servers import PrometheusServer
from support.truth import true_joules_per_inference

PROGRAMS: Final = {
    "prometheus": "prometheus",
    "gcc": "gcc libc6-dev",
    renderer.BROWSER: renderer.BROWSER,
    "node": "nodejs",
    "npm": "npm",
}
"""Program -> its Debian packages."""
JOULEWATCH: Final = (sys.executable, "-m", "joulewatch_harness")
PLANS: Final = ROOT / "harness" / "examples" / "paper"
STUDY: Final = {"cpu2": "epyc-tvm", "gpu1": "a100-tensorrt", "fpga1": "u280-finn"}
"""Node -> plan of the paper."""
BATCH_SIZES: Final = (1, 16, 256, 1024)
BOARDS: Final = ("fleet", "node", "experiment", "results", "trust")
EMPTY: Final = frozenset({"Energy per hour", "Sensors in trouble", "Predictions"})
"""Panels that have no data in the first hour, if no sensor is in trouble, and if nothing was predicted."""
SHOWN_NODE: Final = "gpu2"
"""It has sensors of most kinds."""
LONGEST_WINDOWS_S: Final = {"cpu2": 0.6, "gpu1": 1.5, "fpga1": 4.0}
LARGEST_ERRORS_PERCENT: Final = {"cpu": 2.0, "gpu": 5.0, "fpga": 10.0}
"""Of a node. Counters of CPUs change every 10 ms, 1 % of a window; those of GPUs every 0.1 s; the power of an FPGA is
read once per second."""
console: Final = Console(stderr=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the results (default: demo)")
    out = parser.parse_args().out
    for program, packages in PROGRAMS.items():
        if shutil.which(program) is None:
            console.print(f"the demo requires {program}: apt-get install {packages}")
            return 1
    out.mkdir(parents=True, exist_ok=True)
    try:
        # The first time, this takes a minute and 650 MB.
        modules = install(renderer.MANIFEST, "renderer") / "node_modules"
    except RuntimeError as error:
        console.print(f"the demo requires Grafana's components from npm: {error}")
        return 1
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with cluster(folder, "prometheus") as (nodes, prometheus):
            start_s = time.time()
            step(began_s, f"{len(nodes)} emulated nodes ({', '.join(nodes)}), Prometheus {prometheus.url}")
            runs = {"cpu1": profile(real_plan(), nodes["cpu1"], prometheus, folder, out)}
            step(began_s, "real run: RadioML VGG10 in ONNX Runtime on cpu1")
            study_s = time.time()
            with ThreadPoolExecutor(len(STUDY)) as pool:
                plans = {node: double_plan(plan, nodes[node]) for node, plan in STUDY.items()}
                pending = {
                    node: pool.submit(profile, plan, nodes[node], prometheus, folder, out)
                    for node, plan in plans.items()
                }
                runs |= {node: future.result() for node, future in pending.items()}
            step(began_s, f"the paper's study with doubles, on {', '.join(STUDY)}")
            time.sleep(1.5)
            alone = [f"--prometheus={prometheus.url}", f"--output={folder / 'no runs here'}"]
            wrong = [node for node, run in runs.items() if not check(nodes[node], run, out, alone)]
            step(began_s, "every energy compared with the truth")
            study = [runs[node] for node in STUDY]
            stored = [f"--prometheus={prometheus.url}", f"--output={out / 'runs'}"]
            joulewatch("compare", *study, *stored, f"--figure={out / 'study.png'}", "--main-device")
            joulewatch("report", runs["cpu1"], *study, *stored, f"--out={out / 'report.html'}")
            step(began_s, "figure and report")
            values = {
                "node": {"host": SHOWN_NODE, "instance": nodes[SHOWN_NODE].instance},
                "experiment": {"run": runs["gpu1"]},
                "results": {"run": "|".join(study)},
            }
            starts_s = dict.fromkeys(BOARDS, start_s) | {"experiment": study_s}
            problems = render(modules, folder, prometheus, starts_s, values, out)
            step(began_s, "dashboards")
    for text in problems:
        console.print(f"[red]dashboard {text}")
    console.print(f"report: {out / 'report.html'}; figure of the study: {out / 'study.png'}")
    console.print(f"dashboards: {', '.join(str(out / f'{board}.png') for board in BOARDS)}")
    return 1 if wrong or problems else 0


def step(began_s: float, text: str) -> None:
    console.print(f"[bold]{time.monotonic() - began_s:5.0f} s[/]  {text}")


def joulewatch(*words: str) -> str:
    """Run the command and return its output; its progress is shown only if it fails."""
    done = subprocess.run([*JOULEWATCH, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"joulewatch {' '.join(words)} failed with {done.returncode}:\n{done.stderr}")
    return done.stdout


def real_plan() -> dict[str, Any]:
    network = {"network": "radioml-vgg10", "precision": ["fp32", "int8"]}
    return {"configurations": [network], "batch_sizes": [1, 16, 256], "window_s": 1}


def double_plan(name: str, node: Node) -> dict[str, Any]:
    """Return a plan of the paper whose network is replaced by a double, with fewer batch sizes."""
    plan: dict[str, Any] = yaml.safe_load((PLANS / f"{name}.yaml").read_text("utf-8"))
    for configuration in plan["configurations"]:
        configuration["options"] = {"runtime": configuration.pop("runtime"), "load": str(node.load)}
        configuration["network"] = f"{ROOT / 'tests' / 'support' / 'doubles.py'}:VGG10"
    return plan | {"batch_sizes": list(BATCH_SIZES), "max_window_s": LONGEST_WINDOWS_S[node.name]}


def profile(plan: Mapping[str, Any], node: Node, prometheus: PrometheusServer, folder: Path, out: Path) -> str:
    """Run a plan on a node and return the id of the run."""
    measuring = {"preset": "quick", "rounds": 3, "exporters": node.exporters(), "prometheus": prometheus.url}
    path = folder / f"{node.name}-plan.yaml"
    path.write_text(yaml.safe_dump({**plan, **measuring, "output": str(out / "runs")}), "utf-8")
    result: dict[str, Any] = json.loads(joulewatch("profile", str(path), "--format=json"))
    return str(result["run"]["id"])


def check(node: Node, run: str, out: Path, alone: Sequence[str]) -> bool:
    """Compare the energies of a run, from Prometheus alone, with the truth; return whether all errors are small."""
    result = json.loads(joulewatch("analyze", run, "--format=json", *alone))
    devices = [f"{one['device']}/{one['domain']}" for one in result["sensors"] if one["scope"] == "device"]
    record = read_run(find_run(run, out / "runs"))
    truth = true_joules_per_inference(record, Truth.load(node.machine.folder), devices)
    runtimes = ", ".join(dict.fromkeys(cell["configuration"]["runtime"] for cell in result["results"]))
    table = Table(title=f"{node.name}, {runtimes}: from Prometheus alone, compared with the truth")
    for column in ("precision", "batch", "J/inf measured", "± meter", "J/inf true", "error %", "true within ±"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    worst, inside = 0.0, 0
    for cell in result["results"]:
        energy = cell["energy"]["total"]["gross"]
        if energy is None:
            table.add_row(cell["configuration"]["precision"], str(cell["batch_size"]), "missing")
            worst = math.inf
            continue
        true = truth[cell["configuration"]["name"], cell["batch_size"]]
        error = 100 * (energy["value"] / true - 1)
        # Both energies are of the same windows, so only the uncertainty of the meter counts.
        meter = 2 * math.hypot(*(entry["standard_uncertainty"] for entry in energy["budget"] if entry["type"] == "B"))
        is_within = abs(energy["value"] - true) <= meter
        worst, inside = max(worst, abs(error)), inside + is_within
        table.add_row(
            cell["configuration"]["precision"],
            str(cell["batch_size"]),
            f"{energy['value']:.5g}",
            f"{meter:.2g}",
            f"{true:.5g}",
            f"{error:+.2f}",
            "yes" if is_within else "NO",
        )
    Console().print(table)
    cells = len(result["results"])
    limit = next(percent for kind, percent in LARGEST_ERRORS_PERCENT.items() if node.name.startswith(kind))
    Console().print(
        f"largest error {worst:.2f} % (limit {limit:g} %); {inside} of {cells} within ± (95 % coverage, uncertainty of "
        "the meter only)"
    )
    return worst <= limit


def render(
    modules: Path,
    folder: Path,
    prometheus: PrometheusServer,
    starts_s: Mapping[str, float],
    values: Mapping[str, Mapping[str, str]],
    out: Path,
) -> list[str]:
    """Write a picture of each dashboard and return what is wrong with them.

    Args:
        modules: The folder node_modules with Grafana's components.
        folder: For temporary files.
        prometheus: The data.
        starts_s: Dashboard -> start of its time range.
        values: Dashboard -> variables that do not have the first choice.
        out: For the pictures.
    """
    site = folder / "site"
    site.mkdir()
    renderer.bundle(modules, site)
    allowed = {f"{panel}: no data" for panel in EMPTY}
    problems = []
    with renderer.serve(site) as server:
        for name in BOARDS:
            board = json.loads((ROOT / "dashboards" / f"{name}.json").read_text("utf-8"))
            view = renderer.View(
                board=board,
                prometheus=prometheus.url,
                start_s=starts_s[name],
                end_s=time.time(),
                scrape_s=1.0,
                values=values.get(name),
            )
            page = renderer.render(view, site, server.url, out / f"{name}.png")
            problems += [f"{name}: {text}" for text in page.problems if text not in allowed]
    return problems


if __name__ == "__main__":
    sys.exit(main())
