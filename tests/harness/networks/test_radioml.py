"""The frames are modulated signals, not noise; the built-in network is the network of the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.networks import radioml, radioml_vgg10
from joulewatch_harness.networks.radioml import CLASSES, SAMPLES_PER_SYMBOL, make_frames, modulate

LINEAR = [name for name in CLASSES if name not in radioml._ANALOGUE and name not in ("GMSK", "OQPSK")]


def complex_frames(iq: np.ndarray) -> np.ndarray:
    return iq[:, 0].astype(np.float64) + 1j * iq[:, 1]


def occupied(signal: np.ndarray) -> float:
    """Return the share of power inside the signal band at 8 samples per symbol, averaged over the frames."""
    spectrum = np.abs(np.fft.fft(signal * np.hanning(signal.shape[1]), axis=1)) ** 2
    band = np.abs(np.fft.fftfreq(signal.shape[1])) <= 0.5 * (1 + radioml.ROLL_OFF) / SAMPLES_PER_SYMBOL + 0.01
    return float(np.mean(spectrum[:, band].sum(axis=1) / spectrum.sum(axis=1)))


def test_frames_have_the_shape_the_power_and_the_classes() -> None:
    frames = make_frames(240, seed=3)
    assert frames.iq.shape == (240, 2, 1024)
    assert frames.iq.dtype == np.float32
    assert np.mean(frames.iq.astype(np.float64) ** 2, axis=(1, 2)) * 2 == pytest.approx(np.ones(240), rel=1e-5)
    assert np.bincount(frames.labels).tolist() == [10] * 24
    assert frames.snr_db.min() >= -20
    assert frames.snr_db.max() <= 30
    assert len(CLASSES) == len(set(CLASSES)) == 24


def test_the_seed_alone_decides() -> None:
    assert np.array_equal(make_frames(24, seed=1).iq, make_frames(24, seed=1).iq)
    assert not np.array_equal(make_frames(24, seed=1).iq, make_frames(24, seed=2).iq)


@pytest.mark.parametrize("name", CLASSES)
def test_a_signal_keeps_to_its_band_and_noise_does_not(name: str) -> None:
    clean = make_frames(8, classes=[name], snr_db=(30, 30))
    assert occupied(complex_frames(clean.iq)) > (0.9 if name == "FM" else 0.97)
    noisy = make_frames(8, classes=[name], snr_db=(-20, -20))
    assert occupied(complex_frames(noisy.iq)) < 0.35


@pytest.mark.parametrize("name", LINEAR)
def test_symbols_come_back_from_a_matched_filter(name: str) -> None:
    """Every sample at a symbol time is a constellation point, and every point occurs."""
    points = radioml.constellation(name)
    assert np.mean(np.abs(points) ** 2) == pytest.approx(1.0)
    signal = modulate(name, 64, np.random.default_rng(0))
    matched = radioml._filter(signal, radioml.root_raised_cosine())
    inner = matched[:, 32 * SAMPLES_PER_SYMBOL : 96 * SAMPLES_PER_SYMBOL : SAMPLES_PER_SYMBOL].ravel()
    distance = np.abs(inner[:, None] - points[None, :])
    closest = np.min(np.abs(points[:, None] - points[None, :]) + 10 * np.eye(len(points)))
    assert np.max(np.min(distance, axis=1)) < 0.25 * closest
    assert len(np.unique(np.argmin(distance, axis=1))) == len(points)


@pytest.mark.parametrize(
    ("name", "size"), [("16QAM", 16), ("32QAM", 32), ("128QAM", 128), ("128APSK", 128), ("8ASK", 8)]
)
def test_constellations_have_their_size(name: str, size: int) -> None:
    assert len(np.unique(np.round(radioml.constellation(name), 9))) == size


def test_constant_envelopes_are_constant_and_the_others_are_not() -> None:
    rng = np.random.default_rng(0)
    for name, constant in (("FM", True), ("GMSK", True), ("QPSK", False), ("AM-DSB-SC", False)):
        assert bool(np.std(np.abs(modulate(name, 4, rng))) < 1e-6) is constant, name


def test_a_carrier_tells_the_am_signals_apart() -> None:
    rng = np.random.default_rng(0)
    for kind in ("SSB", "DSB"):
        with_carrier = np.abs(np.mean(modulate(f"AM-{kind}-WC", 8, rng), axis=1))
        without = np.abs(np.mean(modulate(f"AM-{kind}-SC", 8, rng), axis=1))
        assert np.min(with_carrier) > 5 * np.max(without)


def test_a_single_sideband_is_single() -> None:
    spectrum = np.abs(np.fft.fft(modulate("AM-SSB-SC", 8, np.random.default_rng(0)), axis=1)) ** 2
    assert np.sum(spectrum[:, 1:512]) > 20 * np.sum(spectrum[:, 513:])


@pytest.mark.parametrize(("filters", "parameters", "macs"), [(64, 160_536, 12_864_512), (32, 71_832, 3_345_408)])
def test_the_network_has_the_published_size(filters: int, parameters: int, macs: int) -> None:
    layers = radioml_vgg10.layers(filters)
    assert radioml_vgg10.parameters(layers) == parameters
    assert radioml_vgg10.macs(layers) == macs


def test_folding_changes_no_result() -> None:
    layers = radioml_vgg10.layers(32)
    x = make_frames(2).iq
    folded = tuple(layer.folded() for layer in layers)
    assert all(layer.norm is None for layer in folded)
    assert radioml_vgg10.forward(folded, x) == pytest.approx(radioml_vgg10.forward(layers, x), rel=1e-4, abs=1e-4)


def test_a_model_is_built_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = networks.build("radioml-vgg10", "fp32", {"filters": "32"})
    stamp = first.path.stat().st_mtime_ns
    assert first.path.parent == tmp_path / "joulewatch" / "models"
    assert networks.build("radioml-vgg10", "native", {"filters": "32"}).path.stat().st_mtime_ns == stamp
    assert [item.name for item in first.path.parent.iterdir()] == [first.path.name]
    assert first.details["filters"] == "32"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        networks.build("radioml-vgg10", "fp32", {"filters": "32"})


@pytest.mark.parametrize(
    ("network", "precision", "options", "text"),
    [
        ("radioml-vgg", "fp32", {}, "did you mean radioml-vgg10"),
        ("radioml-vgg10", "int5", {}, "unknown precision 'int5'"),
        ("radioml-vgg10", "fp32", {"filters": "48"}, "64 or 32"),
        ("radioml-vgg10", "fp32", {"filter": "64"}, "did you mean filters"),
    ],
)
def test_what_cannot_be_built_is_said(network: str, precision: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        networks.build(network, precision, options)


def test_a_batch_above_the_pool_repeats_its_frames() -> None:
    inputs = radioml_vgg10._make_inputs(1025)["input"]
    assert inputs.shape == (1025, 2, 1024)
    assert np.array_equal(inputs[1024], inputs[0])
