"""The networks before a run: their batch sizes, and the check of their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.errors import ConfigError, NetworkError, WrongOutputsError
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.plan import PRESETS, Plan
from joulewatch_harness.runner.network_checks import check_networks

MINE = """
import os
from joulewatch_harness.errors import UnsupportedBatchError, WrongOutputsError

class Net:
    def __init__(self, fixed="", fails="", wrong="", dies="", never=""):
        self.fixed, self.dies, self.never = fixed, dies, never
        self.fails, self.wrong = (set(map(int, text.split())) for text in (fails, wrong))
    def describe(self):
        sizes = {"fixed_batch": self.fixed} if self.fixed else {}
        return {"runtime": "mine", "precision": "fp32", **sizes}
    def load(self): pass
    def prepare(self, batch):
        if self.fixed and batch != int(self.fixed):
            raise UnsupportedBatchError(f"only {self.fixed}, not {batch}")
    def run(self, batches, phases): pass
    def close(self): pass
    def check(self, batch):
        self.prepare(batch)
        with open(os.environ["CHECKED"], "a") as file:
            file.write(f"{batch} ")
        if self.never:
            raise RuntimeError(self.never)
        if str(batch) == self.dies:
            os._exit(3)
        if batch in self.fails:
            raise RuntimeError(f"no kernel for {batch}")
        if batch in self.wrong:
            raise WrongOutputsError(f"wrong at {batch}")
        return True
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with the batch sizes that were checked."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKED", str(tmp_path / "checked"))
    return tmp_path / "checked"


def plan_of(*options: dict[str, str], **keys: Any) -> Plan:
    entries = [{"network": "mine.py:Net", "name": f"n{number}", "options": one} for number, one in enumerate(options)]
    return make_plan({"configurations": entries, "isolate": False, **keys}, "test")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_outputs_are_checked_at_the_smallest_batch_size(checked: Path, stack: contextlib.ExitStack) -> None:
    check_networks(plan_of({}, batch_sizes=[4, 2, 8]), stack)
    assert checked.read_text() == "2 "


@pytest.mark.parametrize("isolate", [False, True])
def test_a_batch_size_that_fails_is_left_to_the_run(checked: Path, stack: contextlib.ExitStack, isolate: bool) -> None:
    failure = {"dies": "1"} if isolate else {"fails": "1"}
    plan, networks, _ = check_networks(plan_of(failure, batch_sizes=[1, 2, 4], isolate=isolate), stack)
    assert checked.read_text() == "1 2 "
    assert plan.batch_sizes == (1, 2, 4)
    assert len(networks) == 1


def test_a_network_that_fails_at_every_batch_size_is_an_error(checked: Path, stack: contextlib.ExitStack) -> None:
    with pytest.raises(NetworkError, match=r"^n0 cannot run batch size 1: RuntimeError: no kernel for 1 \(mine\.py:\d"):
        check_networks(plan_of({"fails": "1 2"}, batch_sizes=[1, 2]), stack)
    assert checked.read_text() == "1 2 "


def test_an_error_that_does_not_depend_on_the_batch_size_ends_the_check(
    checked: Path, stack: contextlib.ExitStack
) -> None:
    with pytest.raises(NetworkError, match="the same"):
        check_networks(plan_of({"never": "the same"}, batch_sizes=[1, 2, 4, 8]), stack)
    assert checked.read_text() == "1 2 "


def test_wrong_outputs_are_an_error_at_once(checked: Path, stack: contextlib.ExitStack) -> None:
    with pytest.raises(WrongOutputsError, match="wrong at 1"):
        check_networks(plan_of({"wrong": "1"}, batch_sizes=[1, 2]), stack)
    assert checked.read_text() == "1 "


def test_a_fixed_batch_axis_replaces_the_default_batch_sizes(checked: Path, stack: contextlib.ExitStack) -> None:
    plan, _, remarks = check_networks(plan_of({"fixed": "5"}), stack)
    assert plan.batch_sizes == (5,)
    assert remarks == ("n0 is measured at batch size 5: it has a fixed batch axis",)
    assert checked.read_text() == "5 "
    assert "default_batch_sizes" not in plan.to_mapping()


def test_a_network_with_an_open_batch_axis_keeps_the_default_batch_sizes(
    checked: Path, stack: contextlib.ExitStack
) -> None:
    plan, _, remarks = check_networks(plan_of({"fixed": "5"}, {}), stack)
    assert set(plan.batch_sizes) == {5, *PRESETS["normal"].batch_sizes}
    assert len(remarks) == 1


def test_a_fixed_batch_axis_of_another_size_than_requested_is_an_error(
    checked: Path, stack: contextlib.ExitStack
) -> None:
    text = r"^n0 has a fixed batch axis of 5, but the batch sizes are 1, 8: use --batch-sizes 5, or omit it$"
    with pytest.raises(ConfigError, match=text):
        check_networks(plan_of({"fixed": "5"}, batch_sizes=[1, 8]), stack)
    plan, _, remarks = check_networks(plan_of({"fixed": "5"}, batch_sizes=[1, 5]), stack)
    assert (plan.batch_sizes, remarks) == ((1, 5), ())


def test_a_graph_for_one_batch_size_replaces_the_default_batch_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack
) -> None:
    """Its batch axis is open, but it reshapes to batch size 1."""
    pytest.importorskip("onnxruntime")
    from support.onnx_models import baked

    monkeypatch.chdir(tmp_path)
    baked(tmp_path / "baked.onnx")

    def checked(**keys: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
        plan, _, remarks = check_networks(
            make_plan({"configurations": ["baked.onnx"], "isolate": True, **keys}, "test"), stack
        )
        return plan.batch_sizes, remarks

    sizes, (remark,) = checked()
    assert sizes == (1,)
    assert remark.startswith("baked/onnxruntime/native is measured at batch size 1: it cannot run batch size 2 (")
    assert checked(batch_sizes=[1, 2]) == ((1, 2), ())
