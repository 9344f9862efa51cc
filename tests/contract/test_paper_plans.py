"""The plans of the paper's study: they are valid, and are the study that the paper describes."""

from __future__ import annotations

from typing import Final

import pytest

from joulewatch_harness.plan.parsing import make_plan, read_plan
from joulewatch_harness.plan.plan import PHASES_INLINE
from joulewatch_harness.plan.runtimes import RUNTIMES
from support.paths import ROOT

FOLDER: Final = ROOT / "harness" / "examples" / "paper"
STUDY: Final = {
    "epyc-tvm": ("tvm", ["fp32", "int8"]),
    "a100-tensorrt": ("tensorrt", ["fp32", "fp16", "int8"]),
    "u280-finn": ("finn", ["int5"]),
}
"""Plan -> its runtime and its precisions, from the results of the paper."""


def test_there_is_one_plan_per_node_of_the_paper() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STUDY)


@pytest.mark.parametrize("name", STUDY)
def test_the_plan_is_valid_and_measures_what_the_paper_did(name: str) -> None:
    plan = make_plan(read_plan(FOLDER / f"{name}.yaml"), name)
    runtime, precisions = STUDY[name]
    assert [(one.network, one.runtime) for one in plan.configurations] == [("radioml-vgg10", runtime)] * len(precisions)
    assert [one.precision for one in plan.configurations] == precisions
    assert plan.batch_sizes == (1, 4, 16, 64, 256, 1024)
    assert plan.phases == PHASES_INLINE


@pytest.mark.parametrize("name", STUDY)
def test_an_experimental_runtime_is_labelled(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    experimental = RUNTIMES[STUDY[name][0]].experimental
    assert ("EXPERIMENTAL" in text) == bool(experimental)
    assert experimental in text


def test_the_readme_names_every_plan() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"[{name}.yaml]({name}.yaml)" in text for name in STUDY)
