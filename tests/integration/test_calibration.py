"""A sensor that reads 6 % and 4 W too little on an emulated machine: calibrated, its energies contain the truth."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import yaml

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.cli import main
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.records import SCHEMA_VERSION, Configuration, RunEnd, RunHeader, RunRecord, Window, WindowKind
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.storage.journal import Journal, read_run

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter
    from support.servers import ExporterServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

GAIN, OFFSET_WATTS = 1.06, 4.0
"""True power = gain * what the sensor reads + offset."""
PHASE_S: Final = 1.2
MARGIN_S: Final = 0.35
"""Power is constant around each window by more than the unknown offset of the log's clock."""
LEVELS: Final = (60, 160, 110, 210, 185)
SCENARIO: Final = {
    "name": "a-sensor-that-reads-too-little",
    "refresh_s": 0.001,
    "signals": {
        "package": {"kind": "phases", "of": [{"signal": watts, "duration_s": PHASE_S} for watts in LEVELS]},
        "wall": {"kind": "sum", "of": [OFFSET_WATTS, {"kind": "scale", "signal": "package", "factor": GAIN}]},
    },
    "machine": {"sockets": 1, "cpus_per_socket": 4, "cores_per_socket": 4, "cpu_name": "Intel(R) Xeon(R) Gold 6548Y+"},
    "zones": [
        {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": "package"},
        {"zone": "intel-rapl:1", "name": "psys", "key": "psys/total", "signal": "wall"},
    ],
}
WALL: Final = "psys/total"
NETWORK: Final = Configuration(name="net/python/fp32", network="net", runtime="python", precision="fp32")


def wait_for_phase(truth: Truth) -> None:
    """Sleep until the next phase has begun."""
    since_s = time.time() - truth.start_unix_s
    time.sleep(PHASE_S - since_s % PHASE_S + MARGIN_S)


def perform(folder: Path, name: str, exporter: ExporterServer, truth: Truth, kinds: list[WindowKind]) -> RunRecord:
    """Make one window in each of the next phases, as the runner does, and return the run."""
    with EdgeReader([ExporterClient(exporter.url)]) as edges:
        described, sensors = edges.clients[0].describe()
        header = RunHeader(
            run=name,
            started_at_s=time.time(),
            schema=SCHEMA_VERSION,
            command=(),
            plan={},
            plan_sha256="",
            configurations=(NETWORK,),
            exporters=(described,),
            sensors=sensors,
            provenance={"host": described.nodename},
        )
        with Journal.create(folder, header) as journal:
            journal.append(NETWORK)
            for index, kind in enumerate(kinds):
                wait_for_phase(truth)
                start = edges.fetch()
                start_s, start_ns = time.time(), time.monotonic_ns()
                time.sleep(PHASE_S - 2 * MARGIN_S)
                duration_s = (time.monotonic_ns() - start_ns) / 1e9
                end = edges.fetch()
                measured = kind == "measure"
                journal.append(
                    Window(
                        run=name,
                        index=index,
                        kind=kind,
                        start_s=start_s,
                        end_s=start_s + duration_s,
                        duration_s=duration_s,
                        clock_error_s=1e-5,
                        configuration=NETWORK.name if measured else "",
                        batch_size=1 if measured else 0,
                        repeat=index,
                        batches=100 if measured else 0,
                        inferences=100 if measured else 0,
                        start_edge=start.parse(),
                        end_edge=end.parse(),
                    )
                )
            journal.append(RunEnd(ended_at_s=time.time(), status="complete"))
    return read_run(folder / name)


def write_wall_log(path: Path, record: RunRecord, truth: Truth) -> None:
    """Write the power at the wall in milliwatts, 20 times per second."""
    times_s = np.arange(record.windows[0].start_s - 0.5, record.windows[-1].end_s + 0.5, 0.05)
    rows = [f"{t:.3f},{truth.energy_joules(WALL, t - 0.025, t + 0.025) / 0.05 * 1000:.0f}" for t in times_s]
    path.write_text("\n".join(["t,P", *rows]) + "\n")


def metrics(exporter: ExporterServer) -> str:
    with urllib.request.urlopen(f"{exporter.url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_the_truth_is_inside_after_the_calibration(
    emulator: StartEmulator, exporter_server: StartExporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrate with one run, measure another: the error falls from 9 % to below 1 %, and is inside ±."""
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    machine = emulator(scenario)
    truth = Truth.load(machine.folder)
    plain = exporter_server(*machine.flags, "--no-collector.estimate")
    first = perform(tmp_path, "20260101T000000Z-000001", plain, truth, ["idle", *["measure"] * 4])
    write_wall_log(tmp_path / "wall.csv", first, truth)
    out = tmp_path / "calibration.yaml"
    words = [
        "calibrate",
        first.header.run,
        f"--output={tmp_path}",
        f"--reference={tmp_path / 'wall.csv'}",
        "--time=t",
        "--power=P",
        "--unit=mW",
        "--accuracy=0.1%",
        "--sensor=*/rapl/socket0/package",
        f"--out={out}",
    ]
    assert main(words) == 0, capsys.readouterr().err
    (entry,) = yaml.safe_load(out.read_text())["calibrations"]
    # One run in 20 is further away than two standard uncertainties.
    assert entry["gain"] == pytest.approx(GAIN, abs=3 * entry["gain_standard_uncertainty"])
    assert entry["offset_watts"] == pytest.approx(OFFSET_WATTS, abs=3 * entry["offset_standard_uncertainty_watts"])

    config = tmp_path / "exporter.yaml"
    config.write_text(yaml.safe_dump({"exporter": {"calibration_files": str(out)}}))
    calibrated = exporter_server(*machine.flags, "--no-collector.estimate", f"--config.file={config}")
    second = perform(tmp_path, "20260101T000000Z-000002", calibrated, truth, ["idle", *["measure"] * 3])
    assert second.header.sensors[0].calibration is not None

    # The exporter publishes raw values.
    shown = metrics(calibrated)
    (watts,) = re.findall(r'^joulewatch_device_power_watts{.*domain="package"} (\S+)$', shown, re.MULTILINE)
    assert float(watts) <= 1.02 * max(LEVELS)
    assert 'parameter="gain"' in shown

    errors = {}
    for name, record in (("before", first), ("after", second)):
        (group,) = analyze_run(record, None).groups
        windows = [window for window in record.windows if window.kind == "measure"]
        true_joules = [truth.energy_joules(WALL, one.start_s, one.start_s + one.duration_s) / 100 for one in windows]
        assert group.total.gross is not None and group.total.gross.expanded is not None
        assert sorted(group.total.gross.rounds) == [one.repeat for one in windows]
        by_round = group.total.gross.rounds
        shares = [by_round[one.repeat] / joules - 1 for one, joules in zip(windows, true_joules, strict=True)]
        errors[name] = math.sqrt(float(np.mean(np.square(shares))))
        if name == "after":
            systematic = [line.standard for line in group.total.gross.budget if line.systematic]
            mean_error = abs(group.total.gross.value - float(np.mean(true_joules)))
            # Without the scatter, because the rounds have different powers here.
            assert mean_error <= 3 * math.hypot(*systematic)
    assert errors["before"] > 0.07
    assert errors["after"] < 0.01
