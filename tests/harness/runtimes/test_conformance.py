"""What all runtimes have in common; the subjects are in ``support/runtimes.py``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import MarksOnly, Network, Phases
from joulewatch_harness.plan.runtimes import RUNTIMES
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.shared import outputs
from support import model_cases
from support.onnx_models import baked, dequantised, dynamic, save
from support.runtimes import SUBJECTS, FileSubject, Subject, skip_unless_installed

Open = Callable[[Configuration], Any]
"""Opens a network, which is closed at the end of the test; Any, because tests look inside."""


def subjects(fits: Callable[[Any], bool]) -> pytest.MarkDecorator:
    """Run a test with these subjects only."""
    fitting = [item for item in SUBJECTS if fits(item)]
    return pytest.mark.parametrize("subject", fitting, ids=[item.name for item in fitting], indirect=True)


def ready(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    skip_unless_installed(request.param)
    subject = request.param(folder)
    with subject.doubles():
        yield subject


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    yield from ready(request, tmp_path)


@pytest.fixture(params=[item for item in SUBJECTS if issubclass(item, FileSubject)], ids=lambda subject: subject.name)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileSubject]:
    """A runtime that takes model files."""
    yield from ready(request, tmp_path)


@pytest.fixture
def opened() -> Iterator[Open]:
    networks = []

    def make(configuration: Configuration) -> Any:
        networks.append(open_network(configuration))
        return networks[-1]

    yield make
    for network in networks:
        network.close()


def loaded(opened: Open, configuration: Configuration) -> Any:
    network = opened(configuration)
    network.load()
    return network


def test_every_runtime_has_a_subject() -> None:
    assert {subject.name for subject in SUBJECTS} == set(RUNTIMES)
    takes_files = {subject.name for subject in SUBJECTS if issubclass(subject, FileSubject)}
    assert takes_files == {name for name, runtime in RUNTIMES.items() if runtime.takes_model_files}


# All runtimes


def test_a_description_is_complete_once_the_network_is_loaded(subject: Subject, opened: Open) -> None:
    asked = subject.small()
    network = opened(asked)
    assert isinstance(network, Network)
    before = network.describe()
    assert before["runtime"] == subject.name
    assert "precision" not in before and "device" not in before
    network.load()
    configuration = as_loaded(asked, network.describe())
    assert configuration.runtime == subject.name
    assert configuration.runtime_version
    assert configuration.actual_precision == subject.actual_precision
    if subject.loads_a_file:
        assert len(configuration.model_sha256) == 64
        assert configuration.device


def test_a_call_runs_so_many_batches(subject: Subject, opened: Open) -> None:
    """Each batch has an end, and each phase once; phases do not overlap."""
    network = loaded(opened, subject.small())
    for batch in (1, 4):
        network.prepare(batch)
        for batches in (3, 2):
            phases, marks = Phases(), MarksOnly()
            start_ns = time.monotonic_ns()
            network.run(batches, phases)
            end_ns = time.monotonic_ns()
            assert {name: count for name, (count, _) in phases.spans.items()} == dict.fromkeys(subject.phases, batches)
            ends = list(phases.batch_ends_ns)
            assert len(ends) == batches and ends == sorted(ends)
            if subject.host_times:
                assert start_ns <= ends[0] and ends[-1] <= end_ns
                assert 0 < sum(span_ns for _, span_ns in phases.spans.values()) <= end_ns - start_ns
            network.run(batches, marks)
            assert len(marks.batch_ends_ns) == batches


def test_it_is_loaded_again_after_it_was_closed(subject: Subject, opened: Open) -> None:
    """The harness loads a network to read what it is, closes it for the idle window, and loads it again."""
    network = opened(subject.small())
    network.close()
    descriptions = []
    for _ in range(2):
        network.load()
        descriptions.append(as_loaded(subject.small(), network.describe()).actual_precision)
        network.prepare(2)
        network.run(1, Phases())
        network.close()
        network.close()
    assert descriptions[0] == descriptions[1]


def test_a_check_passes_and_leaves_the_network_ready(subject: Subject, opened: Open) -> None:
    network = loaded(opened, subject.small())
    assert network.check() is True
    network.prepare(3)
    phases = Phases()
    network.run(2, phases)
    assert len(phases.batch_ends_ns) == 2


def test_files_are_checked_at_the_given_batch_size(files: FileSubject, opened: Open) -> None:
    network = loaded(opened, files.small())
    assert network.check(3) is True
    assert files.outputs(network).shape == (3, 3)
    fixed = loaded(opened, files.limited().configuration)
    assert fixed.describe()["fixed_batch"] == "4" and "fixed_batch" not in network.describe()
    assert fixed.check() and fixed.check(4)
    with pytest.raises(UnsupportedBatchError):
        fixed.check(8)


def test_a_batch_size_that_cannot_be_run_leaves_the_others(subject: Subject, opened: Open) -> None:
    limited = subject.limited()
    network = loaded(opened, limited.configuration)
    network.prepare(limited.good)
    with pytest.raises(UnsupportedBatchError, match=limited.error):
        network.prepare(limited.bad)
    network.prepare(limited.good)
    phases = Phases()
    network.run(1, phases)
    assert len(phases.batch_ends_ns) == 1
    assert network.check()


def test_an_unknown_option_suggests_the_nearest(subject: Subject) -> None:
    with pytest.raises(ConfigError, match=f"{subject.name}: unknown option 'any_precison'; did you mean any_precision"):
        open_network(subject.small(any_precison="true"))


def test_a_bad_value_of_an_option_is_named(subject: Subject) -> None:
    text = f"{subject.name}: option any_precision: must be true or false, got 'perhaps'"
    with pytest.raises(ConfigError, match=text):
        open_network(subject.small(any_precision="perhaps"))


@subjects(lambda subject: bool(subject.other_precision))
def test_another_precision_than_requested_is_an_error_unless_any_is_accepted(subject: Subject, opened: Open) -> None:
    asked = subject.small(subject.other_precision)
    network = loaded(opened, asked)
    actual = subject.actual_precision
    with pytest.raises(
        ConfigError, match=f"n: the precision {asked.precision} was requested, but the network computes in {actual}"
    ):
        as_loaded(asked, network.describe())
    assert (
        as_loaded(subject.small(asked.precision, any_precision="true"), network.describe()).actual_precision == actual
    )


@subjects(lambda subject: subject.has_random_inputs)
def test_random_inputs_depend_on_the_seed_only(subject: Subject, opened: Open) -> None:
    drawn = []
    for seed in ("0", "0", "1"):
        network = loaded(opened, subject.small(seed=seed))
        network.prepare(2)
        drawn.append(subject.given(network))
        network.close()
    assert drawn[0] == drawn[1] != drawn[2]


# Runtimes of built-in networks and model files


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.takes_model_files])
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RUNTIMES[name]
    for module in list(sys.modules):
        if module == runtime.module or f"{module}.".startswith(f"{runtime.package}."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, runtime.package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'joulewatch\[{name}\]'"):
        open_network(Configuration(name="n", network="mlp", runtime=name, precision="fp32"))


def test_a_built_in_network_computes_what_its_reference_computes(files: FileSubject, opened: Open) -> None:
    network = loaded(opened, files.configuration("radioml-vgg10", "fp32", filters="32", **files.one_thread))
    described = network.describe()
    assert (described["precision"], described["filters"]) == ("fp32", "32")
    assert all(str(described[option]) == value for option, value in files.one_thread.items())
    assert described["inputs"] == "input:float32[batch,2,1024]"
    assert described.get("integer_ops", "0 of 10") == "0 of 10"
    assert network.check()
    network.prepare(4)
    network.run(1, Phases())
    wanted = network._source.reference(network._batches.arrays(4))
    assert files.outputs(network).shape == wanted.shape
    assert np.abs(files.outputs(network) - wanted).max() < 1e-4 * np.std(wanted)


@subjects(lambda subject: issubclass(subject, FileSubject) and subject.computes_int8)
def test_int8_computes_in_integers(subject: Subject, opened: Open) -> None:
    """All ten products of the network."""
    network = loaded(opened, subject.configuration("radioml-vgg10", "int8", filters="32"))
    described = network.describe()
    assert (described["precision"], described["integer_ops"]) == ("int8", "10 of 10")
    assert network.check()


def test_wrong_outputs_of_a_built_in_network_fail_the_check(files: FileSubject, opened: Open) -> None:
    network = loaded(opened, files.configuration("mlp", "fp32", width="32", depth="1"))
    assert network.check()
    reference = network._source.reference
    object.__setattr__(network._source, "reference", lambda arrays: reference(arrays) + 1)
    with pytest.raises(NetworkError, match="outputs differ from the reference by"):
        network.check()


def test_wrong_outputs_of_a_file_fail_the_check(
    files: FileSubject, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compared with ONNX Runtime's, except those of ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    network = loaded(opened, files.small())
    assert network.check()
    wrong = [np.arange(24, dtype=np.float32).reshape(8, 3)]
    monkeypatch.setattr(outputs, "onnxruntime_outputs", lambda _path, _arrays: wrong)
    if files.name == "onnxruntime":
        assert network.check()
    else:
        with pytest.raises(NetworkError, match="outputs differ from ONNX Runtime by"):
            network.check()
    monkeypatch.setattr(outputs, "onnxruntime_outputs", lambda _path, _arrays: None)
    assert network.check()


@subjects(lambda subject: issubclass(subject, FileSubject) and subject.computes_int8)
def test_weights_in_int8_that_are_used_as_floats_are_not_int8(subject: Subject, opened: Open) -> None:
    """They are dequantised before a float convolution: that is storage, not arithmetic."""
    path = dequantised(subject.folder / "c.onnx", "Conv", (3, 2, 3), ["batch", 2, 8], ["batch", 3, 6])
    network = loaded(opened, subject.configuration(path))
    described = network.describe()
    assert (described["precision"], described["integer_ops"]) == ("fp32", "0 of 1")
    assert network.check()


@pytest.mark.parametrize(
    ("network", "precision", "options", "text"),
    [
        ("radioml-vgg11", "fp32", {}, "unknown network 'radioml-vgg11'; did you mean radioml-vgg10"),
        ("radioml-vgg10", "fp23", {}, "unknown precision 'fp23'; did you mean fp32"),
        ("radioml-vgg10", "fp32", {"filtres": "32"}, "unknown option 'filtres'; did you mean filters"),
        ("none.onnx", "native", {}, r"no model file none\.onnx"),
        ("m.onnx", "native", {"filters": "64"}, "unknown option 'filters'"),
        ("m.onnx", "native", {"dims": "seq"}, "option dims: must be NAME=VALUE,..., got 'seq'"),
        ("m.onnx", "native", {"dims": "seq=-1"}, r"option dims\.seq: must be an integer >= 0, got '-1'"),
        ("m.onnx", "native", {"seed": "-1"}, "option seed: must be an integer >= 0, got '-1'"),
    ],
)
def test_names_and_options_that_are_not_valid(
    files: FileSubject,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    precision: str,
    options: dict[str, str],
    text: str,
) -> None:
    monkeypatch.chdir(files.folder)
    files.small()
    with pytest.raises(ConfigError, match=text):
        open_network(files.configuration(network, precision, **options))


@subjects(lambda subject: issubclass(subject, FileSubject) and bool(subject.one_thread))
@pytest.mark.parametrize("number", ["0", "two"])
def test_a_bad_number_of_threads_is_named(subject: Subject, number: str) -> None:
    with pytest.raises(ConfigError, match=f"option threads: must be an integer >= 1, got '{number}'"):
        open_network(subject.small(threads=number))


def test_a_broken_file_is_named(files: FileSubject, opened: Open) -> None:
    whole = Path(files.small().network).read_bytes()
    path = files.folder / "broken.onnx"
    for content in (b"", b"this is not protobuf", whole[:-20]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"model file .*broken\.onnx"):
            loaded(opened, files.configuration(path))


@subjects(lambda subject: issubclass(subject, FileSubject) and subject.name != "tensorrt")
def test_a_graph_for_batch_size_1_with_an_open_batch_axis_runs_at_1(subject: FileSubject, opened: Open) -> None:
    path = baked(subject.folder / "baked.onnx")
    network = loaded(opened, subject.configuration(path))
    assert network.check(1) is True
    network.prepare(1)
    network.run(2, Phases())


def test_external_data_are_part_of_the_hash(files: FileSubject, opened: Open) -> None:
    path, data = files.folder / "e.onnx", files.folder / "e.bin"
    whole = onnx.load(files.small().network)
    onnx.save(whole, path, save_as_external_data=True, location=data.name, size_threshold=0)
    hashes = []
    for content in (data.read_bytes(), data.read_bytes(), bytes(data.stat().st_size)):
        # A new file, because a runtime may have mapped the old one into memory.
        data.unlink()
        data.write_bytes(content)
        network = loaded(opened, files.configuration(path))
        hashes.append(network.describe()["model_sha256"])
        network.close()
    assert hashes[0] == hashes[1] != hashes[2]
    data.unlink()
    with pytest.raises(ConfigError, match=r"model file .*e\.bin: No such file or directory"):
        loaded(opened, files.configuration(path))


def test_an_input_of_a_type_that_cannot_be_made_is_named(files: FileSubject, opened: Open) -> None:
    path = save(
        files.folder / "s.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.STRING, ["batch"])},
        {"y": (TensorProto.STRING, ["batch"])},
        {},
    )
    with pytest.raises(ConfigError, match=r"s\.onnx: .*x.*string"):
        loaded(opened, files.configuration(path))


def test_tracing_needs_a_prepared_batch(files: FileSubject, opened: Open, tmp_path: Path) -> None:
    network = opened(files.small())
    with pytest.raises(NetworkError, match=r"m\.onnx: trace\(\) comes after load\(\) and prepare\(\)"):
        network.trace(tmp_path / "t.json")
    network.load()
    with pytest.raises(NetworkError, match=r"m\.onnx: trace\(\) comes after load\(\) and prepare\(\)"):
        network.trace(tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


# Inputs of model files


def test_a_dimension_without_a_size_is_named(files: FileSubject, opened: Open) -> None:
    network = opened(files.configuration(dynamic(files.folder / "d.onnx")))
    if not files.needs_sizes_to_load:
        network.load()
    with pytest.raises(ConfigError, match=r"dimension 'seq' of input 'ids' has no size.*--option dims=seq=N"):
        network.load() if files.needs_sizes_to_load else network.prepare(2)


@pytest.mark.parametrize("dims", ["seq=7", "ids.1=7"])
def test_dimensions_have_the_given_sizes(files: FileSubject, opened: Open, dims: str) -> None:
    network = loaded(opened, files.configuration(dynamic(files.folder / "d.onnx"), dims=dims))
    network.prepare(3)
    network.run(1, Phases())
    assert files.outputs(network).shape == (3, 7)
    arrays = network._batches.arrays(3)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "ids": ((3, 7), "int64"),
        "m": ((3, 3), "float32"),
    }
    assert network.check()


def test_arrays_of_a_file_give_the_sizes_of_dimensions(files: FileSubject, opened: Open) -> None:
    path = save(
        files.folder / "s.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", "seq", 4])},
        {"y": (TensorProto.FLOAT, ["batch", "seq", 3])},
        {"w": np.ones((4, 3), np.float32)},
    )
    np.savez(files.folder / "in.npz", x=np.ones((2, 5, 4), np.float32))
    network = loaded(opened, files.configuration(path, inputs=str(files.folder / "in.npz")))
    network.prepare(3)
    network.run(1, Phases())
    assert files.outputs(network).tolist() == [[[4.0] * 3] * 5] * 3


def test_rows_of_a_file_are_repeated_to_fill_the_batch(files: FileSubject, opened: Open) -> None:
    np.savez(files.folder / "in.npz", x=np.arange(8, dtype=np.float32).reshape(2, 4))
    network = loaded(opened, files.small(inputs=str(files.folder / "in.npz")))
    network.prepare(3)
    network.run(1, Phases())
    assert files.outputs(network)[:, 0].tolist() == [6.0, 22.0, 6.0]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"xx": np.zeros((1, 4), np.float32)}, "unknown input 'xx'"),
        ({}, r"in\.npz has no array 'x'"),
        ({"x": np.zeros((1, 4), np.float64)}, r"x is float64\[1,4\], but the model requires x:float32\[batch,4\]"),
        ({"x": np.zeros(4, np.float32)}, r"x is float32\[4\]"),
        ({"x": np.zeros((1, 4, 1), np.float32)}, r"x is float32\[1,4,1\], but the model requires x:float32\[batch,4\]"),
        ({"x": np.zeros((1, 5), np.float32)}, r"x is float32\[1,5\]"),
        ({"x": np.zeros((0, 4), np.float32)}, r"x is float32\[0,4\]"),
    ],
)
def test_a_file_of_other_inputs_is_refused(
    files: FileSubject, opened: Open, arrays: dict[str, np.ndarray], text: str
) -> None:
    np.savez(files.folder / "in.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text):
        loaded(opened, files.small(inputs=str(files.folder / "in.npz")))


def test_a_file_that_lacks_one_of_two_inputs_is_refused(files: FileSubject, opened: Open) -> None:
    np.savez(files.folder / "in.npz", ids=np.ones((2, 5), np.int64))
    with pytest.raises(ConfigError, match=r"in\.npz has no array 'm'"):
        loaded(opened, files.configuration(dynamic(files.folder / "d.onnx"), inputs=str(files.folder / "in.npz")))


def test_a_missing_or_broken_file_of_inputs_is_named(files: FileSubject, opened: Open) -> None:
    (files.folder / "bad.npz").write_bytes(b"PK not a zip")
    for name, text in (("none.npz", r"no input file .*none\.npz"), ("bad.npz", r"bad\.npz is not an \.npz file")):
        with pytest.raises(ConfigError, match=text):
            loaded(opened, files.small(inputs=str(files.folder / name)))


# Models as exporters write them (``support/model_cases.py``)

READERS = ("onnxruntime", "openvino", "torch", "tensorrt")
"""Runtimes that read most of these models."""


def cases(*names: str) -> pytest.MarkDecorator:
    return subjects(lambda subject: subject.name in names)


@cases(*READERS)
@pytest.mark.parametrize(
    ("build", "options", "shapes", "output"),
    [
        (model_cases.embedding, {}, {"ids": (4, 80)}, (4, 8)),
        (model_cases.fields, {}, {"dense_x": (4, 13), "indices": (26, 4)}, (4, 8)),
        (model_cases.recurrent, {"dims": "seq=10"}, {"x": (10, 4, 16)}, (10, 1, 4, 8)),
        (
            model_cases.state,
            {"dims": "samples=32", "values": "sr=16000"},
            {"input": (4, 32), "state": (2, 4, 4), "sr": ()},
            (4, 4),
        ),
    ],
)
def test_the_batch_is_the_size_along_its_axis(
    subject: FileSubject,
    opened: Open,
    build: Callable[[Path], Path],
    options: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    output: tuple[int, ...],
) -> None:
    if (subject.name, build) in UNSUPPORTED:
        pytest.skip(UNSUPPORTED[subject.name, build])
    network = loaded(opened, subject.configuration(build(subject.folder / "m.onnx"), **options))
    network.prepare(4)
    network.run(2, Phases())
    assert {name: array.shape for name, array in network._batches.arrays(4).items()} == shapes
    assert subject.outputs(network).shape == output
    assert network.check(2)


UNSUPPORTED = {("torch", model_cases.recurrent): "the runtime torch does not import LSTM"}


@cases("onnxruntime", "openvino")
def test_masks_lengths_and_positions_let_a_model_do_all_its_work(subject: FileSubject, opened: Open) -> None:
    network = loaded(opened, subject.configuration(model_cases.bert(subject.folder / "m.onnx"), dims="sequence=16"))
    network.prepare(2)
    network.run(1, Phases())
    text = "input_ids 0..999, attention_mask 1, token_type_ids 0..1, position_ids 0,1,2,..."
    assert network.describe()["input_values"] == text
    network = loaded(opened, subject.configuration(model_cases.lengths(subject.folder / "l.onnx"), dims="T=50"))
    network.prepare(2)
    network.run(1, Phases())
    x = network._batches.arrays(2)["x"]
    weights = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    assert np.allclose(subject.outputs(network), x.sum(axis=1) @ weights, rtol=1e-3, atol=1e-3)


@cases("onnxruntime", "openvino")
def test_arrays_of_a_file_with_unnamed_axes_need_the_batch_axis(subject: FileSubject, opened: Open) -> None:
    path = model_cases.state(subject.folder / "m.onnx", named=False)
    arrays = {"input": np.ones((1, 32), np.float32), "state": np.ones((2, 1, 4), np.float32), "sr": np.array(16000)}
    np.savez(subject.folder / "in.npz", **arrays)  # type: ignore[arg-type]
    file = str(subject.folder / "in.npz")
    with pytest.raises(ConfigError, match="batch_axis=state:1"):
        loaded(opened, subject.configuration(path, inputs=file))
    network = loaded(opened, subject.configuration(path, inputs=file, batch_axis="state:1"))
    network.prepare(4)
    network.run(1, Phases())
    assert subject.outputs(network).shape == (4, 4)
    assert network._batches.arrays(4)["state"].shape == (2, 4, 4)
    assert network.describe()["batch_axes"] == "state:1"


@cases("onnxruntime", "openvino", "tvm", "torch")
def test_outputs_of_a_file_that_are_not_finite_are_a_warning(
    subject: FileSubject, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    network = loaded(opened, subject.configuration(model_cases.logarithm(subject.folder / "m.onnx")))
    assert "not_finite_outputs" not in network.describe()
    assert network.check()
    assert "m.onnx: outputs are not finite" in caplog.text and "--option inputs=FILE.npz" in caplog.text
    network.close()
    network.load()
    assert "NaN or infinite" in network.describe()["not_finite_outputs"]


@cases("tvm")
def test_warnings_of_tvm_do_not_reach_the_terminal(
    subject: FileSubject, opened: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    network = loaded(opened, subject.configuration(model_cases.embedding(subject.folder / "m.onnx")))
    network.prepare(2)
    assert "Warning" not in capfd.readouterr().err


@cases("onnxruntime", "openvino", "torch", "tvm")
def test_a_model_without_inputs_has_the_batch_size_1(subject: FileSubject, opened: Open) -> None:
    network = loaded(opened, subject.configuration(model_cases.constant(subject.folder / "m.onnx")))
    assert network.describe()["fixed_batch"] == "1"
    assert network.check()
    with pytest.raises(UnsupportedBatchError, match=r"m\.onnx has no batch axis: its only batch size is 1, not 8"):
        network.prepare(8)
