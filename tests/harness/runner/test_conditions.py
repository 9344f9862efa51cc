"""Run conditions from trees on disk: the rise of counters, changed settings, missing files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness.runner.conditions import MOST_FILES, RunConditions

CPU = "sys/devices/system/cpu"
QUIET = {
    "proc/stat": "cpu  10 0 10 500 0 0 0 7 0 0\ncpu0 5 0 5 250 0 0 0 3 0 0\ncpu1 5 0 5 250 0 0 0 4 0 0\nintr 5 1\n",
    "proc/vmstat": "nr_free_pages 100\npswpin 40\npswpout 50\n",
    "proc/pressure/cpu": "some avg10=4.14 avg60=7.55 avg300=6.39 total=3000000\nfull avg10=0.00 total=9\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=50000\nfull avg10=0.00 total=0\n",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_total_time_ms": "100\n",
    f"{CPU}/cpu1/thermal_throttle/package_throttle_count": "8\n",
    f"{CPU}/cpu1/thermal_throttle/package_throttle_total_time_ms": "900\n",
    f"{CPU}/cpufreq/policy0/scaling_governor": "performance\n",
    f"{CPU}/cpufreq/policy1/scaling_governor": "performance\n",
    f"{CPU}/intel_pstate/no_turbo": "0\n",
    "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "225000000\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


@contextlib.contextmanager
def machine(root: Path, files: dict[str, str] = QUIET) -> Iterator[RunConditions]:
    write(root, files)
    with contextlib.closing(RunConditions(sysfs=root / "sys", procfs=root / "proc")) as conditions:
        yield conditions


def test_a_quiet_machine_has_zeros_and_no_change(tmp_path: Path) -> None:
    with machine(tmp_path) as conditions:
        quiet = dict(conditions.between(conditions.read(), conditions.read()))
    assert quiet.pop("seconds") > 0
    assert quiet.pop("processors") == 2
    assert quiet == dict.fromkeys(
        ("cpu_pressure_s", "memory_pressure_s", "steal_s", "swapped_in_pages", "throttled_s", "throttle_count"), 0.0
    )


def test_counters_are_differences_and_the_most_throttled_counts(tmp_path: Path) -> None:
    with machine(tmp_path) as conditions:
        start = conditions.read()
        write(
            tmp_path,
            {
                "proc/stat": "cpu  10 0 10 500 0 0 0 27 0 0\ncpu0 5 0 5 250 0 0 0 3 0 0\ncpu1 5 0 5 250 0 0 0 24 0 0\n",
                "proc/vmstat": "pswpin 45\n",
                "proc/pressure/cpu": "some avg10=0 total=3500000\n",
                "proc/pressure/memory": "some avg10=0 total=60000\n",
                f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "4\n",
                f"{CPU}/cpu0/thermal_throttle/core_throttle_total_time_ms": "350\n",
                f"{CPU}/cpu1/thermal_throttle/package_throttle_total_time_ms": "910\n",
            },
        )
        found = conditions.between(start, conditions.read())
    assert found["cpu_pressure_s"] == pytest.approx(0.5)
    assert found["memory_pressure_s"] == pytest.approx(0.01)
    assert found["steal_s"] == pytest.approx(0.2)
    assert (found["swapped_in_pages"], found["throttle_count"]) == (5, 1)
    assert found["throttled_s"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("key", "file", "value"),
    [
        ("governor_changed", f"{CPU}/cpufreq/policy1/scaling_governor", "powersave\n"),
        ("turbo_changed", f"{CPU}/intel_pstate/no_turbo", "1\n"),
        ("power_limit_changed", "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "100000000\n"),
    ],
)
def test_a_change_in_a_window_or_before_it_is_seen_once(tmp_path: Path, key: str, file: str, value: str) -> None:
    with machine(tmp_path) as conditions:
        start = conditions.read()
        write(tmp_path, {file: value})
        assert conditions.between(start, conditions.read())[key] == 1
        assert key not in conditions.between(conditions.read(), conditions.read())
        write(tmp_path, {file: QUIET[file]})
        assert conditions.between(conditions.read(), conditions.read())[key] == 1


def test_the_mean_frequency_is_that_of_the_busy_processors(tmp_path: Path) -> None:
    """Policy 0 has two processors, of which one works; policy 2 has one, which works half as much; all else is idle."""
    quiet = {
        "proc/stat": "cpu  0 0 0 0 0 0 0 0\n" + "".join(f"cpu{number} 0 0 0 0 0 0 0 0\n" for number in range(4)),
        **{f"{CPU}/cpufreq/policy{number}/stats/time_in_state": "3000000 500\n1000000 900\n" for number in (0, 2, 3)},
        f"{CPU}/cpufreq/policy0/related_cpus": "0 1\n",
        f"{CPU}/cpufreq/policy2/related_cpus": "2\n",
        f"{CPU}/cpufreq/policy3/related_cpus": "3\n",
    }
    with machine(tmp_path, quiet) as conditions:
        start = conditions.read()
        assert "cpu_mhz" not in conditions.between(start, conditions.read())
        write(
            tmp_path,
            {
                "proc/stat": "cpu  0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 60 0 30 9 0 5 5 0\n"
                "cpu2 50 0 0 50 0 0 0 0\ncpu3 0 0 0 100 0 0 0 0\n",
                f"{CPU}/cpufreq/policy0/stats/time_in_state": "3000000 600\n1000000 900\n",
                f"{CPU}/cpufreq/policy2/stats/time_in_state": "3000000 550\n1000000 950\n",
                f"{CPU}/cpufreq/policy3/stats/time_in_state": "3000000 500\n1000000 1000\n",
            },
        )
        found = conditions.between(start, conditions.read())
    assert found["cpu_mhz"] == pytest.approx((100 * 3000 + 50 * 2000) / 150)


def test_a_machine_without_the_files_has_no_conditions(tmp_path: Path) -> None:
    with machine(tmp_path, {}) as conditions:
        assert conditions.between(conditions.read(), conditions.read()).keys() == {"seconds", "processors"}


def test_a_large_machine_keeps_few_files_open(tmp_path: Path) -> None:
    governors = {f"{CPU}/cpufreq/policy{number}/scaling_governor": "performance" for number in range(3 * MOST_FILES)}
    with machine(tmp_path, governors) as conditions:
        assert len(conditions.read().settings["governor_changed"]) == MOST_FILES
