"""FINN's drivers against a fake pynq: every phase, every trap; and the paper's finding with the real packing code."""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.network import Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.finn import driver as finn_driver
from joulewatch_harness.runtimes.finn import network as finn
from joulewatch_harness.runtimes.finn import text
from joulewatch_harness.runtimes.finn.driver import DmaNetwork, driver_share
from joulewatch_harness.runtimes.finn.instrumentation import InstrumentationNetwork
from support.finn.builds import fake_pynq, generated_build, plus_build, real_packages

PHASES = {"pack", "copy_in", "execute", "copy_out", "unpack"}


@pytest.fixture
def board() -> Iterator[Any]:
    with fake_pynq() as found:
        yield found


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return generated_build(tmp_path / "deploy")


def opened(folder: Path, **options: str) -> Any:
    """An unloaded network; Any, for tests look inside."""
    return finn.open_network(str(folder), "native", options)


def loaded(folder: Path, **options: str) -> Any:
    network = opened(folder, **options)
    network.load()
    return network


@pytest.mark.parametrize("bitfile", ["finn-accel.xclbin", "finn-accel.bit"])
def test_an_inference_is_driven_phase_by_phase(board: Any, tmp_path: Path, bitfile: str) -> None:
    """Each step once a batch, as many launches as batches, and the outputs are those of the inputs."""
    folder = generated_build(tmp_path / "deploy", bitfile=bitfile)
    network = loaded(folder, fclk_mhz="250")
    try:
        assert network.check() is True
        network.prepare(16)
        board.launches.clear()
        phases = Phases()
        network.run(3, phases)
        assert board.launches == [16, 16, 16]
        assert set(phases.spans) == PHASES
        assert {count for count, _ in phases.spans.values()} == {3}
        assert len(phases.batch_ends_ns) == 3
        packed = network._arrays[0].view(np.uint8).reshape(16, -1)
        assert np.array_equal(network._outputs[0], board.compute(packed))
        description = network.describe()
        assert description["provider"] == ("alveo" if bitfile.endswith("xclbin") else "zynq-iodma")
        assert description["device"] == "fake_u280_0"
        assert description["runtime_version"] == "pynq 3.0.1-fake"
        assert description["clock_mhz"] == "250"
        assert description["inputs"] == "INT8[N,1024,1,2]:int8"
        assert description["fast_packing"] == "true"
        assert "warning" not in description
        assert len(description["model_sha256"]) == 64
    finally:
        network.close()
        network.close()


def test_weights_that_the_driver_loads_are_part_of_the_hash(board: Any, build: Path) -> None:
    weights = build / "driver" / "runtime_weights"
    weights.mkdir()
    hashes = set()
    for content in (b"1", b"2"):
        (weights / "0_0_MatrixVectorActivation_0.dat").write_bytes(content)
        network = loaded(build)
        hashes.add(network.describe()["model_sha256"])
        network.close()
    assert len(hashes) == 2


@pytest.mark.parametrize("place", ["", "driver", "driver/driver.py"])
def test_any_folder_of_the_build_will_do(board: Any, build: Path, place: str) -> None:
    network = loaded(build / place)
    assert network.check()
    network.close()


def test_it_opens_as_a_runtime_of_a_plan(board: Any, build: Path) -> None:
    """Through the harness's own door; the label of the precision is the user's, for a driver knows none."""
    configuration = Configuration(name="x", network=str(build), runtime="finn", precision="int5", options={})
    network = open_network(configuration)
    network.load()
    settled = as_loaded(configuration, network.describe())
    assert (settled.precision, settled.actual_precision, settled.device) == ("int5", "", "fake_u280_0")
    assert settled.details["fast_packing"] == "true"
    network.close()


# Packing


@pytest.mark.parametrize(
    ("kind", "array_type", "fix"),
    [("INT8", "float32", "array_type=int8"), ("UINT8", "float32", "array_type=uint8"), ("INT5", "int8", "1-bit")],
)
def test_slow_packing_is_reported(
    board: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, array_type: str, fix: str
) -> None:
    """In the log and in the result, with what a frame costs and what to do."""
    folder = generated_build(tmp_path / "deploy", idt=(kind,))
    with caplog.at_level(logging.WARNING):
        network = loaded(folder, array_type=array_type)
    description = network.describe()
    assert description["fast_packing"] == "false"
    assert float(description["pack_ms_per_frame"]) > 0.1
    assert fix in description["warning"]
    assert f"{kind} given as {array_type}" in caplog.text
    network.close()


@pytest.mark.parametrize(
    ("kind", "array_type"), [("INT8", "int8"), ("UINT8", "uint8"), ("INT5", "float32"), ("INT16", "int16")]
)
def test_inputs_are_made_in_the_type_that_packs_fastest(board: Any, tmp_path: Path, kind: str, array_type: str) -> None:
    packed = [(1, 1024, 1, 1, 2 * (2 if kind == "INT16" else 1))]
    folder = generated_build(tmp_path / "deploy", idt=(kind,), ishape_packed=packed)
    network = loaded(folder)
    network.prepare(2)
    (array,) = network._arrays
    assert array.dtype == array_type
    low, high = {"INT8": (-128, 127), "UINT8": (0, 255), "INT5": (-16, 15), "INT16": (-32768, 32767)}[kind]
    assert low <= array.min() < array.max() <= high
    network.close()


def test_a_missing_bitstring_names_the_extra(board: Any, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FINN's packing code imports it."""
    monkeypatch.setitem(sys.modules, "bitstring", None)
    driver = build / "driver" / "driver_base.py"
    driver.write_text(f"import bitstring\n{driver.read_text()}")
    with pytest.raises(ConfigError, match=r"pip install 'joulewatch\[finn\]'"):
        loaded(build)


def test_bitstring_5_is_refused(board: Any, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It breaks FINN's packing with an error that says nothing of the cause."""
    monkeypatch.setitem(sys.modules, "bitstring", types.SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(ConfigError, match=r"bitstring 5.0.0 breaks FINN's packing: pip install 'bitstring<5'"):
        loaded(build)


# What comes out


def test_buffers_that_are_not_written_fail_the_check(board: Any, build: Path) -> None:
    network = loaded(build)
    board.writes_nothing = True
    with pytest.raises(NetworkError, match="has not written 8 of 8 outputs"):
        network.check()
    network.close()


def test_a_batch_that_is_computed_in_part_is_found(board: Any, build: Path) -> None:
    """A launch for one frame on buffers of eight."""
    network = loaded(build)
    board.frames_written = 1
    with pytest.raises(NetworkError, match="has not written 7 of 8 outputs"):
        network.check()
    network.close()


def test_nothing_but_zeros_is_not_believed(board: Any, build: Path) -> None:
    board.writes_zeros = True
    network = loaded(build)
    with pytest.raises(NetworkError, match=r"all outputs are zero.*zeros_ok=true"):
        network.check()
    network.close()
    network = loaded(build, zeros_ok="true")
    assert network.check()
    network.close()


def test_outputs_are_held_against_a_reference(board: Any, build: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.integers(-128, 128, (5, 1024, 1, 2)).astype(np.int8)
    wanted = board.compute(inputs.view(np.uint8).reshape(5, -1))
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "right.npy", wanted)
    wanted[3] += 1
    np.save(tmp_path / "wrong.npy", wanted)
    network = loaded(build, inputs=str(tmp_path / "inputs.npy"), reference=str(tmp_path / "right.npy"))
    assert network.check()
    network.prepare(7)
    assert np.array_equal(network._arrays[0][5:], inputs[:2])  # rows are repeated
    network.close()
    network = loaded(build, inputs=str(tmp_path / "inputs.npy"), reference=str(tmp_path / "wrong.npy"))
    with pytest.raises(NetworkError, match=r"output 0 differs from .*wrong.npy in 1 of 5 rows, first in row 3"):
        network.check()
    board.writes_zeros = True
    with pytest.raises(NetworkError, match=r"in 5 of 5 rows, first in row 0; they are all zero"):
        network.check()
    network.close()


def test_an_accelerator_that_never_ends_is_given_up(board: Any, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own wait has no limit."""
    monkeypatch.setattr(finn_driver, "FIRST_LAUNCH_LIMIT_S", 0.2)
    network = loaded(build)
    board.hangs = True
    with pytest.raises(NetworkError, match=r"did not finish a batch in 0.2 s"):
        network.check()
    board.hangs = False  # so that the thread ends
    network.close()


@pytest.mark.parametrize("bitfile", ["finn-accel.xclbin", "finn-accel.bit"])
def test_a_driver_that_does_not_wait_is_found(board: Any, tmp_path: Path, bitfile: str) -> None:
    """The docstring of ``asynch`` says the opposite of the code; one day somebody may fix the code."""
    folder = generated_build(tmp_path / "deploy", bitfile=bitfile)
    file = folder / "driver" / "driver_base.py"
    file.write_text(file.read_text().replace("if asynch is False:", "if asynch is True:"))
    board.frame_s = 0.05
    network = loaded(folder, fclk_mhz="250")
    with pytest.raises(NetworkError, match="returned before the accelerator had finished"):
        network.check()
    network.close()


# Card, clock, device


def test_two_designs_take_turns_on_one_card(board: Any, tmp_path: Path) -> None:
    """Both are loaded before either is measured, and one FPGA holds one design."""
    first = loaded(generated_build(tmp_path / "a", bitfile="a.xclbin"))
    second = loaded(generated_build(tmp_path / "b", bitfile="b.xclbin", idt=("UINT8",)))
    for network in (first, second, first, first):
        network.prepare(4)
        network.run(1, Phases())
    names = [Path(name).name for name in board.downloads]
    assert names == ["a.xclbin", "b.xclbin", "a.xclbin", "b.xclbin", "a.xclbin"]
    assert first.describe()["inputs"].startswith("INT8")
    first.close()
    second.close()


def test_a_design_that_another_process_replaced_is_loaded_again(board: Any, build: Path) -> None:
    network = loaded(build)
    network._card.overlay.device.timestamp = "somebody else's"
    network.prepare(1)
    assert len(board.downloads) == 2
    network.close()


def test_the_clock_is_read_back(board: Any, tmp_path: Path) -> None:
    """A Zynq's divider does not reach 230 MHz; an Alveo card keeps the clock of the build."""
    zynq = generated_build(tmp_path / "zynq", bitfile="x.bit")
    with pytest.raises(NetworkError, match="230 MHz was requested, but the accelerator runs at 214"):
        loaded(zynq, fclk_mhz="230")
    network = loaded(zynq, fclk_mhz="230", any_precision="true")
    assert network.describe()["clock_mhz"] == "214.286"
    network.close()
    alveo = generated_build(tmp_path / "alveo")
    with pytest.raises(NetworkError, match="300 MHz was requested, but the accelerator runs at 250 MHz"):
        loaded(alveo, fclk_mhz="300")


def test_the_default_clock_of_the_driver_is_reported(
    board: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """100 MHz for a design of 250: 2.5 times slower, without a word."""
    network = loaded(generated_build(tmp_path / "deploy", bitfile="x.bit"))
    assert "sets 100 MHz, not the clock of the build" in caplog.text
    assert network.describe()["clock_mhz"] == "100"
    network.close()


def test_the_device_is_chosen_by_number(board: Any, build: Path) -> None:
    network = loaded(build, device="1")
    assert network.describe()["device"] == "fake_u280_1"
    network.close()
    with pytest.raises(ConfigError, match=r"no device 2 .*1: fake_u280_1"):
        loaded(build, device="2")


def test_a_missing_card_is_an_error_with_a_fix(board: Any, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = sys.modules["pynq.pl_server.device"].Device
    monkeypatch.setattr(device, "_all", [])
    with pytest.raises(ConfigError, match=r"pynq finds no device: source XRT's setup.sh"):
        loaded(build)


# Bad input


def test_a_missing_pynq_names_its_source(build: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs the module 'pynq', which is missing; .*PYNQ board"):
        loaded(build)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"platform": "alveos"}, "did you mean alveo"),
        ({"mode": "fast"}, "option mode: unknown value 'fast'"),
        ({"array_type": "int5"}, "option array_type: unknown value 'int5'"),
        ({"device": "-1"}, "option device: must be an integer >= 0, got '-1'"),
        ({"fclk_mhz": "fast"}, "option fclk_mhz: must be a number > 0 .MHz., got 'fast'"),
        ({"inputs": "a.npy,"}, r"option inputs\[1\]: must be a path, got ''"),
        ({"reference": "a.npy"}, "option reference: requires the option inputs"),
        ({"bitfile": "no.bit"}, "no bit file no.bit"),
        ({"mode": "instrumentation"}, "FINNExampleOverlay has no mode instrumentation"),
    ],
)
def test_bad_options_are_named(build: Path, options: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened(build, **options)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*missing"):
        opened(tmp_path / "missing")
    with pytest.raises(ConfigError, match="has no FINN driver"):
        opened(tmp_path)
    config = tmp_path / "acceleratorconfig.json"
    config.write_text("[]")
    with pytest.raises(
        ConfigError, match=r"configuration of the C\+\+ driver, which runs as a child process .*runtime process"
    ):
        opened(config)
    build = generated_build(tmp_path / "deploy")
    (build / "bitfile" / "other.xclbin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"has finn-accel.xclbin, other.xclbin: name one"):
        opened(build)
    for path in (build / "bitfile").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"no .bit or .xclbin in"):
        opened(build)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "has no driver_information"),
        ('{"driver_information": {"driver_type": "FINNLiveFIFOOverlay"}}', "is not supported"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, content: str, text: str) -> None:
    build = plus_build(tmp_path / "deploy", "FINNDMAOverlay", own_driver=True)
    (build / "driver" / "settings.json").write_text(content)
    with pytest.raises(ConfigError, match=text):
        opened(build)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("driver.py", "import finnish_things", "needs the module 'finnish_things'"),
        ("driver.py", "1 +", "cannot be imported: SyntaxError"),
        ("driver.py", "io_shape_dict = 3", "FINN has not generated this driver"),
        ("driver_base.py", "", "FINN has not generated this driver"),
    ],
)
def test_broken_drivers_are_named(board: Any, build: Path, file: str, content: str, text: str) -> None:
    (build / "driver" / file).write_text(content)
    with pytest.raises(ConfigError, match=text):
        loaded(build)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((4, 1024, 2), np.int8), r"shape \[4,1024,2\], but the accelerator has \[N,1024,1,2\]"),
        (np.full((4, 1024, 1, 2), 200, np.int16), "values from 200 to 200, but the input is INT8"),
        (np.full((4, 1024, 1, 2), 0.5, np.float32), "values are not integers"),
        (np.zeros((4, 1024, 1, 2), np.uint8), "an array of uint8 for a signed input"),
        (np.zeros((0, 1024, 1, 2), np.int8), "shape"),
        (np.array(["a"]), "must be an .npy file of numbers"),
        (None, "no file"),
    ],
)
def test_input_files_are_checked(board: Any, build: Path, tmp_path: Path, array: Any, text: str) -> None:
    """The fast path looks at no value: what does not fit would run, and mean something else."""
    if array is not None:
        np.save(tmp_path / "inputs.npy", array)
    with pytest.raises(ConfigError, match=text):
        loaded(build, inputs=str(tmp_path / "inputs.npy"))


def test_the_number_of_files_must_be_that_of_the_inputs(board: Any, build: Path) -> None:
    with pytest.raises(ConfigError, match="option inputs names 2 files, but the accelerator has 1"):
        loaded(build, inputs="a.npy,b.npy")


# FINN+


def test_a_finn_plus_folder_with_its_own_driver(board: Any, tmp_path: Path) -> None:
    network = loaded(plus_build(tmp_path / "deploy", "FINNDMAOverlay", own_driver=True))
    assert network.check()
    description = network.describe()
    assert (description["driver"], description["provider"], description["clock_mhz"]) == (
        "FINNDMAOverlay",
        "zynq-iodma",
        "250",
    )
    network.close()


def test_settings_may_name_a_class_that_the_driver_lacks(board: Any, tmp_path: Path) -> None:
    build = plus_build(tmp_path / "deploy", "FINNDMAInstrumentationOverlay", own_driver=True)
    with pytest.raises(ConfigError, match=r"driver.py has no FINNDMAInstrumentationOverlay"):
        loaded(build)


def instrumented(tmp_path: Path) -> Any:
    return opened(plus_build(tmp_path / "deploy", "FINNInstrumentationOverlay", own_driver=True))


def test_the_accelerator_alone(board: Any, tmp_path: Path) -> None:
    """Latency, interval and throughput from the chip's counters; a batch takes as long as its frames."""
    network = instrumented(tmp_path)
    assert isinstance(network, InstrumentationNetwork)
    network.load()
    description = network.describe()
    assert (description["mode"], description["latency_cycles"], description["interval_cycles"]) == (
        "instrumentation",
        "5000",
        "1000",
    )
    assert description["accelerator_fps"] == "250000"
    network.prepare(250)
    phases = Phases()
    start = time.monotonic()
    for _ in range(3):
        network.run(20, phases)  # 5000 frames, 20 ms
    assert time.monotonic() - start >= 0.059
    assert set(phases.spans) == {"execute"}
    network.close()
    network.close()


@pytest.mark.parametrize(
    ("what", "text"), [("overflows", "reports an overflow"), ("hangs", "the accelerator has not completed a frame")]
)
def test_an_accelerator_that_does_not_run_is_an_error(board: Any, tmp_path: Path, what: str, text: str) -> None:
    setattr(board, what, True)
    with pytest.raises(NetworkError, match=text):
        instrumented(tmp_path).load()


def test_no_dma_mode_without_dma(tmp_path: Path) -> None:
    build = plus_build(tmp_path / "deploy", "FINNInstrumentationOverlay", own_driver=True)
    with pytest.raises(ConfigError, match="has no mode dma: remove the option mode"):
        opened(build, mode="dma")


# The text of the C++ driver

CPP_TEXT = """\
[2026-01-01] [info] C++ Driver started
Avg. end2end latency: 20.5us
Avg. end2end throughput: 390244 inferences/s
Avg. packing latency: 4000ns
Avg. folding latency: 500ns
Avg. unpacking latency: 1.5e+03ns
Avg. raw inference latency:14500ns
"""


def test_the_text_of_the_cpp_driver_is_read() -> None:
    times = text.parse(CPP_TEXT, 8)
    assert (times.total_s, times.pack_s, times.unpack_s) == pytest.approx((20.5e-6, 4.5e-6, 1.5e-6))
    assert times.raw_s == pytest.approx(14.5e-6)
    assert times.driver_share == pytest.approx(6 / 20.5)
    assert times.warnings == ()


def test_a_negative_raw_time_is_reported() -> None:
    """The phases come from other loops than the total."""
    times = text.parse(CPP_TEXT.replace("4000ns", "24000ns").replace("14500ns", "-5500ns"), 8)
    assert times.raw_s == pytest.approx(-5.5e-6)
    assert times.driver_share == 1.0
    assert "took 5.5 µs longer than the complete" in times.warnings[0]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("Avg. unpacking latency: 1.5e+03ns\n", "", "did not print its unpacking latency"),
        ("20.5us", "nanus", "are not valid times"),
        ("20.5us", "0us", "are not valid times"),
        ("20.5us", "20.5ns", "another unit"),
        ("20.5us", "1.2.3us", "not a valid number"),
        ("390244", "48780", "contradicts the requested batch size of 8"),
        ("C++ Driver started", "C++ Driver started\nAvg. packing latency: 1ns", "or twice"),
    ],
)
def test_contradictory_output_is_refused(old: str, new: str, error: str) -> None:
    assert old in CPP_TEXT
    with pytest.raises(NetworkError, match=error):
        text.parse(CPP_TEXT.replace(old, new), 8)


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_is_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int) -> None:
    """1 after success, 0 after an exception: only the figures count."""
    program, config = tmp_path / "finnhpc", tmp_path / "acceleratorconfig.json"
    config.write_text("[]")
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{CPP_TEXT}END\nexit {status}\n")
    program.chmod(0o755)
    assert text.main([str(program), str(config), "8"]) == 0
    assert json.loads(capsys.readouterr().out)["energy"] is None
    program.write_text(f"#!/bin/sh\necho 'Error: no xclbin' >&2\nexit {status}\n")
    assert text.main([str(program), str(config), "8"]) == 1
    assert "its last lines: Error: no xclbin" in capsys.readouterr().err
    assert text.main([str(tmp_path / "none"), str(config), "8"]) == 2
    assert text.main([str(program), str(tmp_path / "none.json"), "8"]) == 2


# With the real packing code, and the real overlays of FINN+


@pytest.fixture
def real(board: Any) -> Iterator[Any]:
    with real_packages():
        board.frame_s = 1 / 230_000  # VGG10 with 32 filters on a ZCU104, as its builders report it
        yield board


def share(network: DmaNetwork, batch: int, batches: int) -> float:
    """Median over single batches, so that one interruption does not count."""
    network.prepare(batch)
    network.run(2, Phases())
    shares = []
    for _ in range(batches):
        phases = Phases()
        network.run(1, phases)
        shares.append(driver_share(phases))
    return median(shares)


def test_the_driver_takes_40_to_99_percent_with_the_real_packing_code(real: Any, tmp_path: Path) -> None:
    """The finding of the paper: what the share is depends on batch size and array type, not on the FPGA."""
    folder = generated_build(tmp_path / "fast", own_packing=False)
    fast = loaded(folder)
    assert fast.check()
    assert fast.describe()["fast_packing"] == "true"
    shares = {batch: share(fast, batch, 9) for batch in (1, 1024)}
    fast.close()
    assert shares[1] > 0.4
    assert shares[1024] < 0.3
    slow = loaded(folder, array_type="float32")
    assert slow.check()
    assert "array_type=int8" in slow.describe()["warning"]
    assert float(slow.describe()["pack_ms_per_frame"]) > 1.0
    for batch in (1, 4):
        assert share(slow, batch, 3) > 0.95
    slow.close()


def test_five_bits_are_slow_whatever_the_array(real: Any, tmp_path: Path) -> None:
    """The paper's input: no array type has a fast way, and batching never pays it back."""
    folder = generated_build(tmp_path / "deploy", own_packing=False, idt=("INT5",))
    for array_type in ("int8", "float32"):
        network = loaded(folder, array_type=array_type)
        assert network.check()
        assert network.describe()["fast_packing"] == "false"
        assert share(network, 2, 3) > 0.95
        network.close()


def test_the_real_overlays_of_finn_plus_run_in_both_modes(real: Any, tmp_path: Path) -> None:
    """The same design as two configurations: with the driver, and without it."""
    folder = plus_build(tmp_path / "deploy", "FINNDMAInstrumentationOverlay", own_driver=False)
    dma, alone = loaded(folder), loaded(folder, mode="instrumentation")
    description = alone.describe()
    assert description["frames_counted_on_chip"] == "true"
    assert float(description["interval_cycles"]) == pytest.approx(
        1000, rel=0.02
    )  # two registers, read one after the other
    assert dma.check()
    dma.run(2, Phases())
    alone.prepare(64)
    alone.run(10, Phases())
    dma.prepare(32)
    dma.run(1, Phases())
    assert np.all(dma._outputs[0] >= 1)
    real.stalls = True
    alone.prepare(64)
    with pytest.raises(NetworkError, match="the accelerator has stalled"):
        alone.run(5000, Phases())
    dma.close()
    alone.close()


def test_the_real_dma_overlay_packs_with_numpy(real: Any, tmp_path: Path) -> None:
    """FINN+ 1.6 made the slow way hundreds of times faster; it is still a conversion, and reported."""
    network = loaded(plus_build(tmp_path / "deploy", "FINNDMAOverlay", own_driver=False), array_type="float32")
    assert network.check()
    description = network.describe()
    assert description["fast_packing"] == "false"
    assert float(description["pack_ms_per_frame"]) < 5.0
    network.close()
