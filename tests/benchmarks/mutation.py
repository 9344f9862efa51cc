"""``make mutation``: change the code of the method in every small way that mutmut knows; the unit tests must notice.

mutmut makes one *mutant* per change (``+`` becomes ``-``, ``<`` becomes ``<=``, an argument becomes ``None``) and runs
the tests that execute the changed function. A mutant is killed if one of them fails. It survives if all pass: then a
mistake of this kind would reach a user's numbers unnoticed.

Excluded from the count: changes of texts for people (a string that contains a space, an argument named ``text``, an
argument of a logger).
``mutation_survivors.yaml`` lists every other survivor with the reason why no test can or should kill it; a survivor
without an entry, and an entry without a survivor, make the run fail.

mutmut does not change type hints, values of modules and classes, or functions with decorators (properties).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from support.paths import ROOT

GOAL_PERCENT: Final = 95.0
CONTEXT: Final = 60
"""So many characters before and after a change identify it."""
SURVIVORS: Final = Path(__file__).with_name("mutation_survivors.yaml")

EXPORTER, HARNESS = "joulewatch_exporter", "joulewatch_harness"
ANALYSIS_TESTS: Final = (
    "tests/harness/analysis/energy",
    "tests/harness/analysis/sources",
    "tests/harness/analysis/results/test_summary.py",
    "tests/harness/analysis/results/test_uncertainty.py",
)
"""Without reports, comparisons and layers: they call the modules below in much more time, and notice no more."""
ENERGY_MODULES: Final = (
    "window_energy", "from_edges", "from_history", "from_power", "budget", "scatter", "unseen", "windows",
    "sensor_energies", "clock_offsets",
)  # fmt: skip
RESULT_MODULES: Final = ("summary", "idle", "averages", "phases", "uncertainty")
TESTS_OF_MODULE: Final = {
    f"{EXPORTER}/sampling/counter.py": ("tests/exporter/sampling/test_counter.py",),
    f"{HARNESS}/gum.py": ("tests/harness/test_gum.py",),
    **{f"{HARNESS}/analysis/energy/{name}.py": ANALYSIS_TESTS for name in ENERGY_MODULES},
    **{f"{HARNESS}/analysis/results/{name}.py": ANALYSIS_TESTS for name in RESULT_MODULES},
    f"{HARNESS}/analysis/sources/history.py": ANALYSIS_TESTS,
    f"{HARNESS}/plan/refresh.py": ("tests/harness/plan/test_refresh.py",),
    f"{HARNESS}/runner/bracket.py": ("tests/harness/runner/test_bracket.py",),
    f"{HARNESS}/runner/clocks.py": ("tests/harness/runner/test_clocks.py", "tests/harness/runner/test_bracket.py"),
    f"{HARNESS}/delivery/remote_write.py": ("tests/harness/delivery/test_remote_write.py",),
}
"""Mutated file -> the tests for it."""

# Without "unraisableexception", which collects garbage after every mutant: half of the time of one that dies at once.
CONFIGURATION: Final = """\
[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
pytest_add_cli_args = [
    "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:unraisableexception",
    "--import-mode=importlib",
    "--hypothesis-profile=ci", "-m", "not (long or integration or browser or qemu)",
]
pytest_add_cli_args_test_selection = {tests}
do_not_mutate_patterns = ["logger\\\\."]
use_git_change_detection = false

[tool.pytest.ini_options]
pythonpath = ["src", "tests"]
filterwarnings = ["error"]
markers = ["long: x", "integration: x", "browser: x", "qemu: x", "xdist_group: x"]
"""
SURVIVED, NO_TESTS = 0, 33
TIMED_OUT: Final = (36, 24, -24)
"""Exit codes in mutmut's results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One changed line and what became of it."""

    module: str
    function: str
    line: str
    """The changed part of the original, as ``ast.unparse`` writes it."""
    becomes: str
    exit_code: int
    is_text: bool
    """Whether the change is in a text for people."""

    @property
    def change(self) -> tuple[str, str, str, str]:
        """What identifies the change: mutmut's numbers move with the code."""
        return self.module, self.function, self.line, self.becomes

    @property
    def survived(self) -> bool:
        return self.exit_code in (SURVIVED, NO_TESTS)


def write_project(folder: Path, modules: list[str]) -> None:
    """Write a copy of the packages and the unit tests in the layout that mutmut needs."""
    for package in (f"exporter/{EXPORTER}", f"harness/{HARNESS}"):
        shutil.copytree(ROOT / package, folder / "src" / Path(package).name)
    skipped = shutil.ignore_patterns(
        "__pycache__", "browser", "qemu", "integration", "benchmarks", "contract",
        "test_coverage.py",  # a simulation of the benchmarks
    )  # fmt: skip
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=skipped)
    # Cached results of the original would hide mutants, and mutmut does not change functions with decorators.
    gum = folder / "src" / HARNESS / "gum.py"
    gum.write_text(gum.read_text().replace("@lru_cache(maxsize=1024)\n", ""))
    tests = sorted({test for module in modules for test in TESTS_OF_MODULE[module]})
    sources = [f"src/{module}" for module in modules]
    (folder / "pyproject.toml").write_text(CONFIGURATION.format(modules=json.dumps(sources), tests=json.dumps(tests)))


def run_mutmut(folder: Path) -> None:
    """Run all mutants; mutmut's spinner goes to a file.

    Raises:
        RuntimeError: mutmut failed; with the end of its output.
    """
    log = folder / "mutmut.log"
    with log.open("wb") as output:
        finished = subprocess.run(
            ["nice", Path(sys.executable).with_name("mutmut"), "run", "--max-children", "2"],
            cwd=folder, env={**os.environ, "PYTHONPATH": ""}, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if finished.returncode != 0:
        raise RuntimeError(f"mutmut failed:\n{log.read_text(errors='replace')[-4000:]}")


def read_mutants(folder: Path, module: str) -> Iterator[Mutant]:
    """Yield the mutants of one module with their results."""
    mutated = folder / "mutants/src" / module
    results: dict[str, int | None] = json.loads(Path(f"{mutated}.meta").read_text())["exit_code_by_key"]
    functions = {
        node.name: node for node in ast.walk(ast.parse(mutated.read_text())) if isinstance(node, ast.FunctionDef)
    }
    for key, exit_code in results.items():
        mangled = key.rpartition(".")[2]
        stem = mangled.rpartition("__mutmut_")[0]
        original, mutant = functions[f"{stem}__mutmut_orig"], functions[mangled]
        name = stem.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        mutant.name = original.name = name.rpartition(".")[2]
        line, becomes = changed_lines(original, mutant)
        if exit_code is None:
            raise RuntimeError(f"mutmut did not run {key}")
        yield Mutant(
            module=module,
            function=name,
            line=line,
            becomes=becomes,
            exit_code=exit_code,
            is_text=is_text(original, mutant),
        )


def changed_lines(original: ast.FunctionDef, mutant: ast.FunctionDef) -> tuple[str, str]:
    """Return what differs, before and after, with what stands next to it; layout and comments do not count."""
    before, after = (ast.unparse(node).splitlines() for node in (original, mutant))
    changes = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]
    removed, added = ("; ".join(line[2:].strip() for line in changes if line[0] == sign) for sign in "-+")
    start = max(common_length(removed, added) - CONTEXT, 0)
    end = max(common_length(removed[::-1], added[::-1]) - CONTEXT, 0)
    return removed[start : len(removed) - end], added[start : len(added) - end]


def is_text(original: ast.FunctionDef, mutant: ast.FunctionDef) -> bool:
    """Whether the change is inside a string that contains a space, or is that argument or one named ``text``."""
    before, after = ast.unparse(original).encode(), ast.unparse(mutant).encode()
    start = common_length(before, after)
    end = len(before) - common_length(before[start:][::-1], after[start:][::-1])
    # A removed argument leaves with its comma and its keyword.
    changed = re.match(rb"[, ]*(\w+=)?(.*?)[, ]*$", before[start:end], re.DOTALL)
    assert changed is not None
    start, end = start + changed.start(2), start + changed.end(2)
    if before[:start].endswith(b"(text=") or before[:start].endswith(b" text="):
        return True
    return any(first <= start and end <= last for first, last in sentence_spans(before))


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items are the same from the start."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def sentence_spans(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of every string with a space in it."""
    line_starts = [0, *(match.end() for match in re.finditer(rb"\n", code))]
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        if any(isinstance(value, str) and " " in value for value in constants):
            assert node.end_lineno is not None and node.end_col_offset is not None
            yield line_starts[node.lineno - 1] + node.col_offset, line_starts[node.end_lineno - 1] + node.end_col_offset


def reasons_of(survivors: list[Mutant], modules: list[str]) -> tuple[dict[Mutant, str], list[str]]:
    """Return the listed reason of each survivor, and what is wrong with the list."""
    entries = yaml.safe_load(SURVIVORS.read_text()) or []
    reasons: dict[Mutant, str] = {}
    problems: list[str] = []
    for entry in entries:
        if entry["module"] not in modules:
            continue
        changes = entry["becomes"] if isinstance(entry["becomes"], list) else [entry["becomes"]]
        for becomes in changes:
            change = (entry["module"], entry["function"], entry["line"], becomes)
            fitting = [mutant for mutant in survivors if mutant.change == change]
            if not fitting:
                problems.append(f"{SURVIVORS.name} lists what did not survive: {change}")
            reasons |= dict.fromkeys(fitting, entry["reason"])
    problems += [f"survived without a reason: {mutant.change}" for mutant in survivors if mutant not in reasons]
    return reasons, problems


def counts_of(mutants: list[Mutant], module: str) -> dict[str, Any]:
    """Count one module; texts do not count as mutants."""
    counted = [mutant for mutant in mutants if not mutant.is_text]
    survived = sum(mutant.survived for mutant in counted)
    return {
        "module": module,
        "mutants": len(counted),
        "killed": len(counted) - survived,
        "of_these_timed_out": sum(mutant.exit_code in TIMED_OUT for mutant in counted),
        "survived": survived,
        # Rounded down: 94.99 % is not the goal.
        "killed_percent": math.floor(1000 * (1 - survived / len(counted))) / 10 if counted else 100.0,
        "texts": len(mutants) - len(counted),
    }


def render(result: dict[str, Any]) -> str:
    """Return the Markdown page."""
    page = "# Mutation tests\n\n" + host_line(result["machine"])
    page += f"\nOf `make mutation`, in {result['minutes']:.0f} minutes. Goal: at least {GOAL_PERCENT:g} % killed.\n\n"
    rows = [[str(value) for value in counts.values()] for counts in result["modules"]]
    page += markdown_table(["module", "mutants", "killed", "of these timed out", "survived", "killed %", "texts"], rows)
    page += (
        "\nTexts: mutants of messages for people, which are not counted. Mutmut does not change constants of modules,\n"
        "values of classes, type hints, and functions with decorators, among them properties.\n\n## Survivors\n"
    )
    by_reason: dict[str, list[str]] = {}
    for survivor in result["survivors"]:
        change = f"`{survivor['line'] or '(nothing)'}` → `{survivor['becomes'] or '(nothing)'}`"
        by_reason.setdefault(survivor["reason"], []).append(
            f"- {survivor['module']}, {survivor['function']}: {change}\n"
        )
    for reason, changes in by_reason.items():
        page += f"\n{reason.strip()}\n\n" + "".join(changes)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="files to mutate, as gum.py; default: all")
    names = parser.parse_args().modules
    modules = [module for module in TESTS_OF_MODULE if not names or any(module.endswith(name) for name in names)]
    machine = describe_machine()
    machine["versions"]["mutmut"] = version("mutmut")
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="joulewatch-mutation-") as name:
        folder = Path(name)
        write_project(folder, modules)
        run_mutmut(folder)
        mutants = [mutant for module in modules for mutant in read_mutants(folder, module)]
    minutes = (time.monotonic() - start_s) / 60
    survivors = [mutant for mutant in mutants if mutant.survived and not mutant.is_text]
    reasons, problems = reasons_of(survivors, modules)
    counts = [counts_of([mutant for mutant in mutants if mutant.module == module], module) for module in modules]
    counts.append(counts_of(mutants, "all"))
    result = {
        "machine": machine,
        "minutes": minutes,
        "modules": counts,
        "survivors": [
            {
                "module": mutant.module,
                "function": mutant.function,
                "line": mutant.line,
                "becomes": mutant.becomes,
                "reason": reasons.get(mutant, "Without a reason:"),
            }
            for mutant in survivors
        ],
    }
    if modules == list(TESTS_OF_MODULE):
        write_result("mutation", result, render(result))
        if counts[-1]["killed_percent"] < GOAL_PERCENT:
            problems.append(
                f"{counts[-1]['killed_percent']} % of the mutants were killed, less than {GOAL_PERCENT:g} %"
            )
    for problem in problems:
        sys.stderr.write(problem + "\n")
    sys.stdout.write(f"{json.dumps(counts[-1])}, {minutes:.1f} minutes\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
