"""Every runtime computes the same logits from the same frames with the same network.

The outputs are compared, element by element, with a forward pass in numpy and with each other. They are the outputs
that the ``check`` of a runtime verifies, computed by the measured code.
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
from joulewatch_harness.runtimes.shared import outputs as shared_outputs
from joulewatch_harness.runtimes.shared.outputs import check_finite
from support.commands import joulewatch
from support.kserve_server import KServeServer, Settings

pytestmark = pytest.mark.integration

NETWORK = "radioml-vgg10"
FILTERS = {"filters": "32"}
MACS = 2 * 32 * 3 * 1024 + 32 * 32 * 3 * sum(1024 >> n for n in range(1, 7)) + 256 * 128 + 128 * 128 + 128 * 24
"""Sum over the layers: a convolution of 2 channels, six of 32 on halves of the frame, three fully connected layers."""
ROWS = 8
CHILD = Path(__file__).parents[1] / "support" / "onnx_child.py"
REQUIRED_MODULES = {"openvino": "openvino", "torch": "torch", "tvm": "tvm", "kserve-grpc": "grpc"}
"""Modules that a backend requires."""
BACKENDS = {
    "fp32": ("onnxruntime", "openvino", "torch", "tvm", "process", "kserve-http", "kserve-grpc"),
    "int8": ("onnxruntime", "openvino", "tvm", "process", "kserve-http", "kserve-grpc"),
}
TO_REFERENCE = {"fp32": 1e-5, "int8": 0.05}
"""Limits of the RMS difference in standard deviations of the reference: float32 rounding; 8 bits of random weights."""
TO_EACH_OTHER = {"fp32": 1e-5, "int8": 0.02}
"""Limits of the same between two runtimes; with the same int8 file, they round ties and sums differently."""

RUNS = [(precision, backend) for precision, backends in BACKENDS.items() for backend in backends]


@dataclass(frozen=True)
class BackendResult:
    """Outputs and description of one backend."""

    outputs: np.ndarray
    described: Mapping[str, Any]


class Bench:
    """The files of the network, its servers and the results of each backend; each backend runs once."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._results: dict[tuple[str, str], BackendResult] = {}
        self.sources = {precision: networks.build(NETWORK, precision, FILTERS) for precision in BACKENDS}
        make = self.sources["fp32"].make_inputs
        assert make is not None
        self.inputs = make(ROWS)
        np.savez(folder / "inputs.npz", **self.inputs)

    def reference(self) -> np.ndarray:
        """Return the outputs of the float network, computed by numpy."""
        forward = self.sources["fp32"].reference
        assert forward is not None
        return forward(self.inputs)

    def sha256(self, precision: str) -> str:
        return hashlib.sha256(self.sources[precision].path.read_bytes()).hexdigest()

    def configuration(self, precision: str, backend: str) -> Configuration:
        """Return the configuration as in a plan; skip the test if the backend is not installed."""
        if backend in REQUIRED_MODULES:
            pytest.importorskip(REQUIRED_MODULES[backend], exc_type=ImportError)
        runtime, options = backend.partition("-")[0], dict(FILTERS)
        if runtime == "kserve":
            options |= {"url": self._url(backend, precision)}
        elif runtime == "process":
            model, rows = self.sources[precision].path, self._folder / "inputs.npz"
            command = shlex.join([sys.executable, str(CHILD), str(model), str(rows), precision])
            options = {"command": command, "transcript": str(self._transcript(precision))}
        if runtime in ("onnxruntime", "openvino", "torch", "tvm"):
            try:
                importlib.import_module(RUNTIMES[runtime].module)
            except ModuleNotFoundError as error:
                pytest.skip(f"the runtime {runtime} cannot be imported: {error}")
        return Configuration(
            name=f"{backend} {precision}", network=NETWORK, runtime=runtime, precision=precision, options=options
        )

    def result(self, precision: str, backend: str) -> BackendResult:
        """Load the network, run its check and return its outputs."""
        if (precision, backend) not in self._results:
            network: Any = open_network(self.configuration(precision, backend))
            with pytest.MonkeyPatch.context() as patch, ExitStack() as closing:
                closing.callback(network.close)
                patch.setattr(kserve_network, "CHECK_BATCH", ROWS)
                seen = _watch(network, patch)
                network.load()
                assert network.check()
                described = dict(network.describe())
            outputs = self._of_child(precision) if backend == "process" else seen[-1]
            self._results[precision, backend] = BackendResult(outputs, described)
        return self._results[precision, backend]

    def results(self, precision: str) -> dict[str, BackendResult]:
        """Return the results of all installed backends."""
        available = {}
        for backend in BACKENDS[precision]:
            try:
                available[backend] = self.result(precision, backend)
            except pytest.skip.Exception:
                continue
        return available

    def _url(self, backend: str, precision: str) -> str:
        settings = Settings(name=NETWORK)
        server: Any
        if backend == "kserve-http":
            server = KServeServer(self.sources[precision].path, settings)
        else:
            from support.kserve_grpc_server import KServeGrpcServer

            server = KServeGrpcServer(self.sources[precision].path, settings)
        return str(self._stack.enter_context(server).url)

    def _transcript(self, precision: str) -> Path:
        return self._folder / f"transcript-{precision}"

    def _of_child(self, precision: str) -> np.ndarray:
        """Return the values of the check, here all logits; the protocol does not transfer tensors."""
        answers = [
            json.loads(line[2:]) for line in self._transcript(precision).read_text().splitlines() if line[0] == "<"
        ]
        (values,) = [answer["values"] for answer in answers if "values" in answer]
        outputs = np.zeros((ROWS, 24))
        for place, entry in values.items():
            outputs[tuple(map(int, place.split(",")))] = entry["value"]
        return outputs


def _watch(network: Any, patch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Return a list that receives the first output of each batch that the check of the network verifies."""
    seen: list[np.ndarray] = []
    module = sys.modules[type(network).__module__]

    def watching(model: str, outputs: Mapping[str, np.ndarray], *, strict: bool) -> dict[str, str]:
        seen.append(np.array(next(iter(outputs.values()))))
        return check_finite(model, outputs, strict=strict)

    patch.setattr(shared_outputs, "check_finite", watching)
    patch.setattr(module, "check_finite", watching, raising=False)
    return seen


def difference(first: np.ndarray, second: np.ndarray, scale: float) -> float:
    """Return the RMS difference in units of ``scale``, the standard deviation of the reference."""
    return float(np.sqrt(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))) / scale


def table(outputs: Mapping[str, np.ndarray], scale: float) -> str:
    """Return a table of the RMS differences between all pairs."""
    width = max(map(len, outputs))
    lines = [f"{'':{width}} {' '.join(f'{name:>{width}}' for name in outputs)}"]
    for name, values in outputs.items():
        cells = (f"{difference(values, compared, scale):{width}.1e}" for compared in outputs.values())
        lines.append(f"{name:{width}} {' '.join(cells)}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("same")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield Bench(folder, stack)


@pytest.mark.timeout(300)  # some runtimes compile the network
@pytest.mark.parametrize(("precision", "backend"), RUNS)
def test_outputs_are_those_of_the_numpy_reference(bench: Bench, precision: str, backend: str) -> None:
    outputs, reference = bench.result(precision, backend).outputs, bench.reference()
    assert outputs.shape == reference.shape == (ROWS, 24)
    scale = float(np.std(reference))
    assert difference(outputs, reference, scale) <= TO_REFERENCE[precision], table(
        {"numpy": reference, backend: outputs}, scale
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", BACKENDS)
def test_all_backends_agree_with_each_other(bench: Bench, precision: str) -> None:
    results = bench.results(precision)
    assert len(results) >= 3, "ONNX Runtime, a child process and a server have no further requirements"
    scale = float(np.std(bench.reference()))
    outputs = {backend: result.outputs for backend, result in results.items()}
    worst = max(difference(*pair, scale) for pair in itertools.combinations(outputs.values(), 2))
    assert worst <= TO_EACH_OTHER[precision], f"\n{table({'numpy': bench.reference(), **outputs}, scale)}"


def test_the_limits_detect_other_weights_and_another_precision(bench: Bench) -> None:
    """Other outputs of the same shape exceed the limits, and so does int8 where float is expected."""
    reference = bench.reference()
    scale = float(np.std(reference))
    int8 = bench.result("int8", "onnxruntime").outputs
    assert difference(int8, reference, scale) > 100 * TO_REFERENCE["fp32"]
    assert difference(np.roll(reference, 1, axis=0), reference, scale) > TO_REFERENCE["int8"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", BACKENDS)
def test_each_backend_describes_the_model_that_it_ran(bench: Bench, precision: str) -> None:
    """The description has the hash of the file, its cost and the actual precision where the runtime knows them."""
    for backend, result in bench.results(precision).items():
        described = result.described
        if not backend.startswith("kserve"):
            assert described["model_sha256"] == bench.sha256(precision), backend
            assert described["precision"] == precision, backend
        else:
            assert "model_sha256" not in described, "a server does not describe its file"
            assert described["reference"] == f"{NETWORK} filters=32"
        if backend in ("onnxruntime", "openvino", "torch", "tvm"):
            assert described["macs_per_inference"] == str(MACS), backend


@pytest.mark.timeout(600)
def test_one_plan_measures_all_backends(bench: Bench, tmp_path: Path) -> None:
    """The command runs a process for each backend and reports the energy of each in the table and the figure."""
    configurations, precision = [], "fp32"
    for backend in BACKENDS[precision]:
        try:
            configuration = bench.configuration(precision, backend)
        except pytest.skip.Exception:
            continue
        options = {key: value for key, value in configuration.options.items() if key != "transcript"}
        entry = {
            "name": configuration.name,
            "network": NETWORK,
            "runtime": configuration.runtime,
            "precision": precision,
        }
        configurations.append({**entry, "options": options})
    names = {entry["name"] for entry in configurations}
    assert len(names) == len(configurations) >= 3
    plan = {
        "preset": "quick", "rounds": 3, "batch_sizes": [ROWS], "isolate": True, "idle_s": 1, "warmup_s": 0.1,
        "max_warmup_s": 0.3, "window_s": 1, "max_window_s": 1, "configurations": configurations,
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
