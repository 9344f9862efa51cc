"""Binary recordings of Joulescope, written with pyjls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from joulewatch_harness.analysis.sources.log_formats import read_log
from joulewatch_harness.cli import main
from joulewatch_harness.errors import ConfigError

pyjls = pytest.importorskip("pyjls", reason="needs the extra joulescope")
T0 = 1_795_860_000.25
RATE_HZ = 20_000
SAMPLES = (2 + np.sin(np.arange(3 * RATE_HZ) / 700)).astype(np.float32)


def write(
    path: Path,
    samples: np.ndarray = SAMPLES,
    *,
    name: str = "power",
    units: str = "W",
    clock: bool = True,
    ppm: float = 0.0,
) -> Path:
    """Write a recording of one instrument; its sample clock is fast by ``ppm``."""
    writer = pyjls.Writer(str(path))
    writer.source_def(1, name="JS220-000001", vendor="Jetperch", model="JS220", version="1", serial_number="000001")
    writer.signal_def(1, source_id=1, sample_rate=RATE_HZ, name=name, units=units)
    writer.fsr_f32(1, 0, samples)
    if clock:
        for index in range(0, samples.size, RATE_HZ // 2):
            writer.utc(1, index, pyjls.utc_to_jls(T0 + index / RATE_HZ * (1 + ppm * 1e-6)))
    writer.close()
    return path


@pytest.mark.parametrize(("clock", "first_s"), [(True, T0), (False, 0.0)])
def test_power_is_averaged_over_a_millisecond(clock: bool, first_s: float, tmp_path: Path) -> None:
    result = read_log(write(tmp_path / "a.jls", clock=clock), None)
    (log,) = result.logs
    assert (result.format, result.component, log.is_energy) == ("jls", "node", False)
    assert len(log.series) == 3000
    assert log.series.times_s[0] == pytest.approx(first_s + 9.5 / RATE_HZ, abs=1e-6)
    assert log.series.spacing_s == pytest.approx(0.001, abs=1e-6)
    assert log.series.values.sum() / 1000 == pytest.approx(SAMPLES.astype(np.float64).sum() / RATE_HZ, rel=1e-9)


def test_times_follow_the_clock_of_the_recording(tmp_path: Path) -> None:
    (log,) = read_log(write(tmp_path / "a.jls", ppm=400.0), None).logs
    first_s, last_s = log.span
    assert last_s - first_s == pytest.approx(2.999 * (1 + 400e-6), abs=1e-5)


def test_lost_samples_are_a_gap(tmp_path: Path) -> None:
    samples = SAMPLES.copy()
    samples[RATE_HZ : RATE_HZ + 100] = np.nan
    (log,) = read_log(write(tmp_path / "a.jls", samples), None).logs
    assert len(log.series) == 3000 - 5
    assert float(np.diff(log.series.times_s).max()) == pytest.approx(0.006, abs=1e-6)


def test_milliwatts_are_those_of_the_file(tmp_path: Path) -> None:
    (log,) = read_log(write(tmp_path / "a.jls", 1000 * SAMPLES, units="mW"), None).logs
    assert log.series.values[0] == pytest.approx(float(SAMPLES[:20].mean()), rel=1e-6)


def test_a_recording_without_power(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no signal 'power' \(signals: current\)"):
        read_log(write(tmp_path / "a.jls", name="current", units="A"), None)


def test_an_incomplete_file_is_refused_and_not_changed(tmp_path: Path) -> None:
    """pyjls would repair the file, which removes what it cannot read."""
    path = write(tmp_path / "a.jls")
    content = path.read_bytes()[:5000]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not complete: it has 5000 bytes, and its header names \d+"):
        read_log(path, None)
    assert path.read_bytes() == content


def test_several_instruments_need_scope_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.jls", tmp_path / "a.sqlite"
    writer = pyjls.Writer(str(path))
    for number, name in enumerate(("JS220-1", "JS220-2"), start=1):
        writer.source_def(number, name=name, vendor="Jetperch", model="JS220", version="1", serial_number=name)
        writer.signal_def(number, source_id=number, sample_rate=RATE_HZ, name="power", units="W")
        writer.fsr_f32(number, 0, SAMPLES)
    writer.close()
    assert main(["import", str(path), f"--out={out}"]) == 2
    assert "--scope node (the default of jls): " in capsys.readouterr().err
    assert main(["import", str(path), f"--out={out}", "--scope=device"]) == 0
