"""One network, every runtime: the same frames give the same logits wherever they are computed.

The outputs themselves are compared, element by element, with a forward pass written in numpy and with each other. They
are those that a runtime's own ``check`` looks at, computed through the code that is measured.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from joulewatch_harness import networks
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import RUNTIMES, open_network
from joulewatch_harness.runtimes.kserve import network as kserve_network
from support.commands import joulewatch
from support.kserve_server import KServeServer, Settings

pytestmark = pytest.mark.integration

NETWORK = "radioml-vgg10"
FILTERS = {"filters": "32"}
MACS = 2 * 32 * 3 * 1024 + 32 * 32 * 3 * sum(1024 >> n for n in range(1, 7)) + 256 * 128 + 128 * 128 + 128 * 24
"""By its layers: a convolution of 2 channels, six of 32 on halves of the frame, three fully connected ones."""
ROWS = 8
CHILD = Path(__file__).parents[1] / "support" / "onnx_child.py"
NEEDS = {"openvino": "openvino", "torch": "torch", "tvm": "tvm", "kserve-grpc": "grpc"}
"""What must be installed for a way to run it."""
WAYS = {
    "fp32": ("onnxruntime", "openvino", "torch", "tvm", "process", "kserve-http", "kserve-grpc"),
    "int8": ("onnxruntime", "openvino", "tvm", "process", "kserve-http", "kserve-grpc"),
}
TO_REFERENCE = {"fp32": 1e-5, "int8": 0.05}
"""RMS of the difference over the standard deviation of the reference: float32 rounding; 8 bits of random weights."""
TO_EACH_OTHER = {"fp32": 1e-5, "int8": 0.02}
"""The same int8 file in several runtimes: what rounds differently in its ties and sums."""

RUNS = [(precision, way) for precision, ways in WAYS.items() for way in ways]


@dataclass(frozen=True)
class Told:
    """What one way to run the network gave."""

    outputs: np.ndarray
    described: Mapping[str, Any]


class Bench:
    """The network's files, its servers, and what each way gave; each way runs once."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._told: dict[tuple[str, str], Told] = {}
        self.sources = {precision: networks.build(NETWORK, precision, FILTERS) for precision in WAYS}
        make = self.sources["fp32"].make_inputs
        assert make is not None
        self.inputs = make(ROWS)
        np.savez(folder / "inputs.npz", **self.inputs)

    def reference(self) -> np.ndarray:
        """What the float network gives in numpy."""
        forward = self.sources["fp32"].reference
        assert forward is not None
        return forward(self.inputs)

    def sha256(self, precision: str) -> str:
        return hashlib.sha256(self.sources[precision].path.read_bytes()).hexdigest()

    def configuration(self, precision: str, way: str) -> Configuration:
        """As a plan would have it; a way that cannot be here skips the test."""
        if way in NEEDS:
            pytest.importorskip(NEEDS[way], exc_type=ImportError)
        runtime, options = way.partition("-")[0], dict(FILTERS)
        if runtime == "kserve":
            options |= {"url": self._url(way, precision)}
        elif runtime == "process":
            model, rows = self.sources[precision].path, self._folder / "inputs.npz"
            command = shlex.join([sys.executable, str(CHILD), str(model), str(rows), precision])
            options = {"command": command, "transcript": str(self._transcript(precision))}
        if runtime in ("onnxruntime", "openvino", "torch", "tvm"):
            try:
                importlib.import_module(RUNTIMES[runtime].module)
            except ModuleNotFoundError as missing:
                pytest.skip(f"the runtime {runtime} cannot be imported: {missing}")
        return Configuration(
            name=f"{way} {precision}", network=NETWORK, runtime=runtime, precision=precision, options=options
        )

    def told(self, precision: str, way: str) -> Told:
        """Load it, run its check, and take the outputs out."""
        if (precision, way) not in self._told:
            network: Any = open_network(self.configuration(precision, way))
            with pytest.MonkeyPatch.context() as patch, ExitStack() as closing:
                closing.callback(network.close)
                patch.setattr(kserve_network, "CHECK_BATCH", ROWS)
                seen = _watch(network, patch)
                network.load()
                assert network.check()
                described = dict(network.describe())
            outputs = self._of_child(precision) if way == "process" else seen[-1]
            self._told[precision, way] = Told(outputs, described)
        return self._told[precision, way]

    def all_told(self, precision: str) -> dict[str, Told]:
        """What every way gave that can be here."""
        found = {}
        for way in WAYS[precision]:
            try:
                found[way] = self.told(precision, way)
            except pytest.skip.Exception:
                continue
        return found

    def _url(self, way: str, precision: str) -> str:
        settings = Settings(name=NETWORK)
        server: Any
        if way == "kserve-http":
            server = KServeServer(self.sources[precision].path, settings)
        else:
            from support.kserve_grpc_server import KServeGrpcServer

            server = KServeGrpcServer(self.sources[precision].path, settings)
        return str(self._stack.enter_context(server).url)

    def _transcript(self, precision: str) -> Path:
        return self._folder / f"transcript-{precision}"

    def _of_child(self, precision: str) -> np.ndarray:
        """The protocol carries no tensors, but the values of the check: here all logits."""
        answers = [
            json.loads(line[2:]) for line in self._transcript(precision).read_text().splitlines() if line[0] == "<"
        ]
        (values,) = [answer["values"] for answer in answers if "values" in answer]
        outputs = np.zeros((ROWS, 24))
        for place, entry in values.items():
            outputs[tuple(map(int, place.split(",")))] = entry["value"]
        return outputs


def _watch(network: Any, patch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The first output of each batch that the network's check looks at."""
    seen: list[np.ndarray] = []
    module = sys.modules[type(network).__module__]
    if type(network).__name__ == "ProcessNetwork":
        return seen
    plain = module.check_finite

    def watching(model: str, outputs: Mapping[str, np.ndarray]) -> None:
        seen.append(np.array(next(iter(outputs.values()))))
        plain(model, outputs)

    patch.setattr(module, "check_finite", watching)
    return seen


def difference(one: np.ndarray, other: np.ndarray, scale: float) -> float:
    """RMS of the difference, in standard deviations of the reference."""
    return float(np.sqrt(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))) / scale


def table(outputs: Mapping[str, np.ndarray], scale: float) -> str:
    """The RMS difference of each to each."""
    width = max(map(len, outputs))
    lines = [f"{'':{width}} {' '.join(f'{name:>{width}}' for name in outputs)}"]
    for name, one in outputs.items():
        cells = (f"{difference(one, other, scale):{width}.1e}" for other in outputs.values())
        lines.append(f"{name:{width}} {' '.join(cells)}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("same")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield Bench(folder, stack)


@pytest.mark.timeout(300)  # a compiler may be among them
@pytest.mark.parametrize(("precision", "way"), RUNS)
def test_its_outputs_are_those_of_the_numpy_reference(bench: Bench, precision: str, way: str) -> None:
    outputs, reference = bench.told(precision, way).outputs, bench.reference()
    assert outputs.shape == reference.shape == (ROWS, 24)
    scale = float(np.std(reference))
    assert difference(outputs, reference, scale) <= TO_REFERENCE[precision], table(
        {"numpy": reference, way: outputs}, scale
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", WAYS)
def test_all_of_them_agree_with_each_other(bench: Bench, precision: str) -> None:
    told = bench.all_told(precision)
    assert len(told) >= 3, "ONNX Runtime, a child process and a server need nothing else"
    scale = float(np.std(bench.reference()))
    outputs = {way: item.outputs for way, item in told.items()}
    worst = max(difference(one, other, scale) for one, other in itertools.combinations(outputs.values(), 2))
    assert worst <= TO_EACH_OTHER[precision], f"\n{table({'numpy': bench.reference(), **outputs}, scale)}"


def test_the_measure_tells_other_weights_apart(bench: Bench) -> None:
    """The tolerances prove something: another network of the same shape is far off, int8 is not taken for float."""
    reference = bench.reference()
    scale = float(np.std(reference))
    int8 = bench.told("int8", "onnxruntime").outputs
    assert difference(int8, reference, scale) > 100 * TO_REFERENCE["fp32"]
    assert difference(np.roll(reference, 1, axis=0), reference, scale) > TO_REFERENCE["int8"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", WAYS)
def test_each_says_which_model_it_ran(bench: Bench, precision: str) -> None:
    """The file's fingerprint, its cost and the precision it was really computed in, where a runtime can know them."""
    for way, told in bench.all_told(precision).items():
        described = told.described
        if not way.startswith("kserve"):
            assert described["model_sha256"] == bench.sha256(precision), way
            assert described["precision"] == precision, way
        else:
            assert "model_sha256" not in described, "a server does not tell its file"
            assert described["reference"] == f"{NETWORK} filters=32"
        if way in ("onnxruntime", "openvino", "torch", "tvm"):
            assert described["macs_per_inference"] == str(MACS), way


@pytest.mark.timeout(600)
def test_one_plan_measures_all_of_them(bench: Bench, tmp_path: Path) -> None:
    """The whole command: a process for each, an energy for each, all of them in table and figure."""
    configurations, precision = [], "fp32"
    for way in WAYS[precision]:
        try:
            made = bench.configuration(precision, way)
        except pytest.skip.Exception:
            continue
        options = {key: value for key, value in made.options.items() if key != "transcript"}
        entry = {"name": made.name, "network": NETWORK, "runtime": made.runtime, "precision": precision}
        configurations.append({**entry, "options": options})
    names = {item["name"] for item in configurations}
    assert len(names) == len(configurations) >= 3
    plan = {
        "preset": "quick", "batch_sizes": [ROWS], "isolate": True, "idle_s": 1, "warmup_s": 0.1, "max_warmup_s": 0.3,
        "window_s": 1, "max_window_s": 1, "configurations": configurations,
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    done = joulewatch("profile", "plan.yaml", "--figure", "figure.svg", folder=tmp_path, limit_s=500)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "result.json").read_text())["results"]
    measured = {(group["configuration"]["name"], group["batch_size"]) for group in results}
    assert measured == set(itertools.product(names, [ROWS]))
    for group in results:
        energy = group["energy"]["total"]["gross"]
        assert 0 < energy["value"] < 1, "joules per inference, of a network of 3 million MACs"
        assert energy["expanded_uncertainty"] > 0
    drawn = (tmp_path / "figure.svg").read_text()
    for name in names:
        assert name in done.out
        assert name in drawn
