"""``--fail-above``: error rates in simulated runs, the number of rounds that settles, and the exit codes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness import cli
from joulewatch_harness.analysis.reports.to_json import result_document
from joulewatch_harness.analysis.results.gate import (
    MOST_ROUNDS,
    Check,
    Outcome,
    check_estimate,
    exit_code,
    rounds_to_settle,
    sentence,
)
from joulewatch_harness.analysis.results.model import BudgetLine, Estimate
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.uncertainty import combine_mean, estimate_of
from joulewatch_harness.gum import expand, student_factor
from joulewatch_harness.records import SensorRecord
from support.synthetic import ListSource, make_world, sensor


def rounds(values: list[float], systematic: float = 0.0) -> Estimate:
    """Return the mean of some rounds."""
    means = {number: [(value, dict[str, float]())] for number, value in enumerate(values)}
    return combine_mean(means, {"accuracy (rapl)": systematic} if systematic else {}, {}, covers=("sampling",))


def check(estimate: Estimate, limit: float = 3.0, **more: Any) -> Check:
    return check_estimate("n", estimate, limit, "%", **more)


@pytest.mark.parametrize("comparisons", [1, 10])
def test_at_most_one_run_in_twenty_fails_where_nothing_exceeds_the_limit(comparisons: int) -> None:
    """The truth is at the limit, the worst case, in all comparisons of a run."""
    random = np.random.default_rng(7)
    failed = passed = 0
    for _ in range(400):
        checks = [check(rounds(list(random.normal(3.0, 2.0, 6))), comparisons=comparisons) for _ in range(comparisons)]
        failed += exit_code(checks) == 3
        passed += any(one.outcome == "passed" for one in checks)
    assert 0 < failed / 400 <= 0.05
    assert 0 < passed / 400 <= 0.05


def test_without_a_change_almost_no_run_fails_and_a_large_increase_does() -> None:
    random = np.random.default_rng(8)

    def outcomes(increase: float) -> list[Outcome]:
        return [check(rounds(list(random.normal(increase, 1.0, 8)))).outcome for _ in range(300)]

    equal, larger = outcomes(0.0), outcomes(6.0)
    assert equal.count("exceeded") == 0
    assert equal.count("passed") > 285
    assert larger.count("exceeded") > 285
    assert larger.count("passed") == 0


def test_the_number_of_rounds_settles() -> None:
    """The half-width with the scatter that was seen; one round fewer would not settle it."""
    estimate = rounds([1.0, 3.0, 2.0, 4.0, 2.5])
    (repeats,) = [line for line in estimate.budget if line.name == "repeats"]
    scatter = repeats.standard * math.sqrt(5)
    distance = 3.0 - estimate.value
    needed = rounds_to_settle(estimate, distance)
    assert needed is not None and needed > 5
    assert student_factor(needed - 1) * scatter / math.sqrt(needed) < distance
    assert student_factor(needed - 2) * scatter / math.sqrt(needed - 1) >= distance
    assert f"about {needed} rounds would settle it (5 measured)" in sentence(check(estimate))
    corrected = rounds_to_settle(estimate, distance, comparisons=10)
    assert corrected is not None and corrected > needed


def test_more_rounds_do_not_settle_what_they_do_not_reduce() -> None:
    assert rounds_to_settle(rounds([2.0, 2.1, 1.9], systematic=2.0), 1.0) is None
    assert "more rounds would not settle it: unc" in check(rounds([2.0, 2.1, 1.9], systematic=2.0)).text
    assert f"more than {MOST_ROUNDS} rounds" in check(rounds([2.9, 3.099, 2.999])).text
    line = BudgetLine(name="between runs, A", kind="B", standard=1.4, dof=math.inf, systematic=True, text="")
    two_runs = estimate_of(2.0, [*rounds([2.0, 2.1, 1.9]).budget, line])
    assert "three runs on each side may" in check(two_runs).text


def test_one_round_is_undecided() -> None:
    one = check(rounds([9.0]))
    assert (one.outcome, exit_code([one])) == ("undecided", 4)
    assert "fewer than two rounds" in sentence(one)


def test_intervals_that_hold_together_are_wider_by_the_factor_of_their_level() -> None:
    for comparisons in (2, 20):
        risk = 0.05 / comparisons
        together = expand([(1.0, 4.0)], comparisons=comparisons)
        assert together.expanded == pytest.approx(student_factor(4.0, 1 - risk))
        normal = expand([], 1.0, comparisons=comparisons)
        assert normal.expanded == pytest.approx(student_factor(math.inf, 1 - risk))
        uniform = expand([], 0.0, [(1.0, math.inf)], 1.0, comparisons=comparisons)
        assert uniform.expanded == pytest.approx(math.sqrt(3) * (1 - risk))
    assert expand([(1.0, 4.0)], 0.3, [(0.2, math.inf)]) == expand([(1.0, 4.0)], 0.3, [(0.2, math.inf)], comparisons=1)


# The command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose first configuration needs more energy than its second, and a run without energies."""

    monkeypatch.chdir(tmp_path)

    def power(_: SensorRecord, name: str, __: int) -> float:
        return {"idle": 40.0}.get(name, 110.0 if name.endswith("int8") else 100.0)

    world = make_world([sensor("socket0", "package")], power=power, noise=0.002, batch_sizes=(1, 8))
    assert world.record is not None
    document = json.loads(json.dumps(result_document(analyze_run(world.record, ListSource(world.scrapes())))))
    Path("run.json").write_text(json.dumps(document))
    without = copy.deepcopy(document)
    for group in without["results"]:
        group["energy"]["total"] |= {"gross": None, "net": None, "missing": "no sensor"}
        group["energy"]["components"] = group["energy"]["nodes"] = []
    without["run"]["id"] = "20260922T141320Z-0a1b2c"
    Path("without.json").write_text(json.dumps(without))
    less = copy.deepcopy(document)
    less["results"] = [group for group in document["results"] if "int8" in group["configuration"]["name"]]
    less["results"].pop()
    less["run"]["id"] = "20260923T141320Z-0a1b2c"
    Path("less.json").write_text(json.dumps(less))
    return tmp_path


def test_what_only_the_baseline_has_does_not_pass(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "run.json", "less.json", "--fail-above", "9%"]) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if "only the baseline has it" in line]
    assert [line.partition(" in run")[0] for line in lines] == [
        "UNDECIDED: net/onnxruntime/int8",
        "UNDECIDED: net/onnxruntime/fp32",
    ]
    assert cli.main(["compare", "run.json", "int8", "less.json", "int8", "--fail-above", "9%"]) == 4


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["int8", "fp32", "--fail-above", "3%"], 3, "FAILED: net/onnxruntime/fp32, batch "),
        (["int8", "fp32", "--fail-above", "200"], 0, "passed: net/onnxruntime/fp32, batch "),
        (["fp32", "int8", "--fail-above", "0%"], 0, "passed: net/onnxruntime/int8, batch "),
        (["fp32", "without.json", "fp32", "--fail-above", "3%"], 4, "no number, limit 3 %: B: no sensor"),
        (["fp32", "int8"], 0, ""),
    ],
)
def test_exit_codes(files: Path, words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "run.json", *words, "--format", "csv"]) == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["-3%", "three", "%", "nan", "3%%"])
def test_a_limit_that_is_not_a_percentage(files: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "run.json", f"--fail-above={limit}"])
    assert ended.value.code == 2
    assert "must be a percentage >= 0, such as 3%" in capsys.readouterr().err
