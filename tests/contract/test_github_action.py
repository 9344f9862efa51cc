"""deploy/github: the action is valid, passes its inputs to ``joulewatch ci``, and keeps its exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from joulewatch_harness import cli
from support.paths import ROOT

FOLDER: Final = ROOT / "deploy" / "github"
ACTION: Final = FOLDER / "action.yml"
STUB: Final = """#!/bin/sh
printf '%s\\n' "$@" > words
echo '### Energy'
exit "$CODE"
"""


@pytest.fixture(scope="module")
def action() -> Any:
    return yaml.safe_load(ACTION.read_text("utf-8"))


def test_the_action_is_valid() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    assert tool.exists(), "pip install --group release"
    command = [str(tool), "--builtin-schema", "vendor.github-actions", str(ACTION)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout


def test_inputs_reach_the_script_only_as_variables_and_are_documented(action: Any) -> None:
    (step,) = action["runs"]["steps"]
    assert "${{" not in step["run"]
    given = re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", " ".join(step["env"].values()))
    assert given == ["base", "command", "build", "fail-above", "rounds", "inferences", "exporter"]
    assert sorted(given) == sorted(action["inputs"])
    assert all(f'"${name}"' in step["run"] for name in step["env"])
    readme = (FOLDER / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \|\s*`?([^|`]*?)`?\s*\|", readme, re.MULTILINE))
    assert list(rows) == list(action["inputs"])
    for name, given_input in action["inputs"].items():
        assert given_input.get("default", "") in (rows[name], "")


@pytest.mark.parametrize("code", [0, 3, 4])
@pytest.mark.parametrize("optional", [True, False], ids=["all inputs", "required inputs"])
def test_the_step(action: Any, tmp_path: Path, code: int, optional: bool) -> None:
    """As GitHub executes it: with ``bash -eo pipefail``."""
    (step,) = action["runs"]["steps"]
    (tmp_path / "joulewatch").write_text(STUB)
    (tmp_path / "joulewatch").chmod(0o755)
    values = {name: given.get("default", "") for name, given in action["inputs"].items()}
    values |= {"base": "origin/main", "command": "echo '$HOME' | cat"}
    if optional:
        values |= {"build": "make all; make", "exporter": "http://node1:10717"}
    names = {key: re.findall(r"inputs\.([\w-]+)", text)[0] for key, text in step["env"].items()}
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CODE": str(code),
        "RUNNER_TEMP": "temp",
        "GITHUB_STEP_SUMMARY": "summary",
        **{key: values[name] for key, name in names.items()},
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == code, outcome.stderr
    assert (tmp_path / "summary").read_text() == outcome.stdout == "### Energy\n"
    words = (tmp_path / "words").read_text().splitlines()
    args = cli.make_parser(("ci",)).parse_args(words)
    assert (args.base, args.fail_above, args.rounds, args.inferences) == ("origin/main", 3.0, 10, 1)
    assert args.words == ["--", "bash", "-c", "echo '$HOME' | cat"]
    assert args.build == ("make all; make" if optional else None)
    assert args.exporter == (["http://node1:10717"] if optional else None)
