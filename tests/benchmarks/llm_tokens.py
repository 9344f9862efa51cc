"""Joules per token of a real llama.cpp server next to an emulated machine, by ``--per`` and by the recording rules.

llama.cpp's server answers about 40 requests a second, whose prompts and answers have random lengths. The machine has a
processor with a square power and one that follows the load of this machine. Prometheus scrapes both every second. The
truth is the emulator's energy, and the tokens of the requests that the client saw end inside a window. The rules are
those of ``joulewatch.llm.rules.yaml`` over one minute instead of five, so that their range is the window.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.cli import main
from support.llama_server import LlamaServer, Load
from support.paths import ROOT
from support.servers import Emulator, ExporterServer, PrometheusServer

OUTPUT: Final = "llamacpp:tokens_predicted_total"
INPUT: Final = "llamacpp:prompt_tokens_total"
HOST: Final = "llm-node"
LENGTHS_S: Final = (60.0, 10.0)
TARGETS: Final = {60.0: 1.0, 10.0: 3.0}
"""Largest error in percent, by the length of the window."""
WINDOWS: Final = 5
"""Of 60 s; those of 10 s lie inside them."""
SCENARIO: Final = {
    "name": "llm-tokens",
    "refresh_s": 0.001,
    "machine": {"sockets": 2},
    "signals": {
        "square": {"kind": "square", "low_watts": 60.0, "high_watts": 260.0, "period_s": 7.3, "duty": 0.5},
        "load": {"kind": "cpu_load", "idle_watts": 90.0, "full_watts": 280.0},
    },
    "zones": [
        {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": "square"},
        {"zone": "intel-rapl:1", "name": "package-1", "key": "socket1/package", "signal": "load"},
    ],
}


def rules(folder: Path) -> list[Path]:
    """Write the rules over one minute."""
    paths = []
    for name in ("joulewatch.rules.yaml", "joulewatch.llm.rules.yaml"):
        text = (ROOT / "dashboards" / "rules" / name).read_text("utf-8")
        path = folder / name
        path.write_text(text.replace("[5m]", "[1m]").replace("/ 300", "/ 60"), "utf-8")
        paths.append(path)
    return paths


def measured(url: str, start_s: float, end_s: float) -> dict[str, Any]:
    """Return counter -> row of ``joulewatch energy --per``."""
    words = ["energy", f"--prometheus={url}", f"--start={start_s:.3f}", f"--end={end_s:.3f}", "--format=json"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*words, f"--per={OUTPUT}", f"--per={INPUT}"]) == 0
    return {row["counter"]: row for row in json.loads(out.getvalue())["counters"]}


def by_rule(url: str, record: str, at_s: float) -> float | None:
    """Return the value of a recorded series of the machine."""
    answer = requests.get(
        f"{url}/api/v1/query", params={"query": f'{record}{{host="{HOST}"}}', "time": at_s}, timeout=10
    )
    result = answer.json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def collect(windows: int) -> list[dict[str, Any]]:
    """Return one row for each window and counter."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        scenario = folder / "scenario.yaml"
        scenario.write_text(yaml.safe_dump(SCENARIO))
        machine = Emulator(scenario)
        stack.callback(machine.remove)
        machine.start()
        exporter = ExporterServer(folder / "exporter", *machine.flags, f"--nodename={HOST}")
        llama = LlamaServer(folder / "llama")
        for server in (exporter, llama):
            stack.callback(server.stop)
            server.start()
        prometheus = PrometheusServer(
            shutil.which("prometheus") or "prometheus",
            folder / "prometheus",
            scrape_targets=[exporter.address],
            scrape_jobs={"llama": [(llama.address, {"host": HOST})]},
            rule_files=rules(folder),
            evaluation_interval="1s",
        )
        stack.callback(prometheus.stop)
        prometheus.start()
        time.sleep(5)
        edges_s = []
        with Load(llama.url, period_s=0.025) as load:
            time.sleep(5)
            for _ in range(windows + 1):
                edges_s.append(time.time())
                time.sleep(LENGTHS_S[0] if len(edges_s) <= windows else 4)
        truth = Truth.load(machine.folder)
        spans = list(itertools.pairwise(edges_s))
        parts = int(LENGTHS_S[0] / LENGTHS_S[1])
        short = [
            (start_s + (end_s - start_s) * at / parts, start_s + (end_s - start_s) * (at + 1) / parts)
            for start_s, end_s in spans
            for at in range(parts)
        ]
        rows = []
        for length_s, of_length in zip(LENGTHS_S, (spans, short), strict=True):
            for start_s, end_s in of_length:
                joules = sum(truth.energy_joules(key, start_s, end_s) for key in truth.keys)
                inside = [answer for answer in load.answers if start_s < answer.at_s <= end_s]
                counters = measured(prometheus.url, start_s, end_s)
                for counter, record, tokens in (
                    (OUTPUT, "host:llm_joules_per_output_token:rate5m", sum(one.output for one in inside)),
                    (INPUT, "host:llm_joules_per_input_token:rate5m", sum(one.prompt - one.cached for one in inside)),
                ):
                    quotient = counters[counter]["joules_per_unit"]
                    recorded = by_rule(prometheus.url, record, end_s) if length_s == LENGTHS_S[0] else None
                    rows.append(
                        {
                            "length_s": length_s,
                            "counter": counter,
                            "tokens": tokens,
                            "true_joules_per_token": joules / tokens,
                            "joules_per_token": quotient["value"],
                            "uncertainty": quotient["expanded_uncertainty"],
                            "by_rule": recorded,
                        }
                    )
        return rows


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    rows = collect(1 if quick else WINDOWS)
    lines, verdicts = [], []
    for length_s in LENGTHS_S:
        for counter in (OUTPUT, INPUT):
            group = [row for row in rows if row["length_s"] == length_s and row["counter"] == counter]
            errors = [100 * (row["joules_per_token"] / row["true_joules_per_token"] - 1) for row in group]
            held = sum(
                abs(row["joules_per_token"] - row["true_joules_per_token"]) <= row["uncertainty"] for row in group
            )
            stated = [100 * row["uncertainty"] / row["joules_per_token"] for row in group]
            ruled = [100 * (row["by_rule"] / row["true_joules_per_token"] - 1) for row in group if row["by_rule"]]
            worst = max(map(abs, errors))
            lines.append(
                [
                    f"{length_s:g}",
                    counter,
                    str(len(group)),
                    f"{statistics.fmean(row['tokens'] for row in group):.0f}",
                    f"{statistics.fmean(errors):+.3f}",
                    f"{worst:.3f}",
                    f"{statistics.median(stated):.2f}",
                    f"{held}/{len(group)}",
                    f"{max(map(abs, ruled)):.3f}" if ruled else "-",
                ]
            )
            met = worst <= TARGETS[length_s]
            verdicts.append(
                f"{counter} over {length_s:g} s: largest error {worst:.2f} % (target {TARGETS[length_s]:g} %): "
                f"{'met' if met else 'MISSED'}"
            )
    head = ["window s", "counter", "n", "tokens", "mean error %", "largest %", "median ± %", "truth within ±"]
    table = "\n".join(
        [
            "# Joules per token of a real server",
            "",
            (__doc__ or "").split("\n\n", 1)[1].strip(),
            "",
            *verdicts,
            "",
            markdown_table([*head, "largest % by rules"], lines),
            "",
            host_line(machine),
        ]
    )
    result = {"machine": machine, "rows": rows}
    write_result("llm_tokens", result, table)
    return result
