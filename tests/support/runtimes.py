"""One subject per runtime for the conformance suite: a small network, and doubles of hardware and servers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest

from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes.kserve import over_http
from joulewatch_harness.runtimes.kserve.options import Options as KServeOptions
from joulewatch_harness.runtimes.openai import network as openai
from joulewatch_harness.runtimes.openai.options import Options as OpenAIOptions
from support import kserve_connection
from support.openai_sender import FakeSender
from support.process_protocol import CHILD


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A network that cannot run every batch size."""

    configuration: Configuration
    good: int
    bad: int
    error: str
    """Part of the error for ``bad``."""


class Subject:
    """A runtime that is installed, and how to open a small network with it."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """Import names; without one of them the tests are skipped."""
    phases: ClassVar[frozenset[str]] = frozenset({"execute"})
    """What one call of ``run`` records."""
    host_times: ClassVar[bool] = True
    """Times are real ones, not those of a double."""
    actual_precision: ClassVar[str] = "fp32"
    """What the small network computes in; empty if the runtime does not report it."""
    other_precision: ClassVar[str] = ""
    """A precision that can be requested and in which the small network does not compute."""
    loads_a_file: ClassVar[bool] = False
    """It reads the network from a file, and so reports its checksum and the device."""
    has_random_inputs: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def doubles(self) -> Iterator[None]:
        """Put doubles in place of hardware and servers."""
        yield

    def small(self, precision: str = "native", **options: str) -> Configuration:
        """Return the configuration of a small network."""
        raise NotImplementedError

    def limited(self) -> Limited:
        """Return a network that cannot run every batch size."""
        raise NotImplementedError

    def given(self, network: Any) -> Any:
        """Return the inputs of the prepared batch."""
        return {name: array.tolist() for name, array in network._batches.arrays(network._batch).items()}

    def configuration(self, network: str | Path, precision: str = "native", **options: str) -> Configuration:
        return Configuration(name="n", network=str(network), runtime=self.name, precision=precision, options=options)


class FileSubject(Subject):
    """A runtime of built-in networks and model files."""

    needs_sizes_to_load: ClassVar[bool] = False
    """It fixes all dimensions but the batch in ``load``; the others in ``prepare``."""
    computes_int8: ClassVar[bool] = True
    """It runs quantised files, and reports how many matrix products compute in integers."""
    one_thread: ClassVar[Mapping[str, str]] = MappingProxyType({"threads": "1"})
    """Options that let it use one thread of the CPU."""
    loads_a_file = True
    other_precision = "int8"

    def small(self, precision: str = "native", **options: str) -> Configuration:
        from support.onnx_models import matmul

        return self.configuration(matmul(self.folder / "m.onnx"), precision, **options)

    def limited(self) -> Limited:
        from support.onnx_models import matmul

        fixed = self.configuration(matmul(self.folder / "fixed.onnx", batch=4))
        return Limited(configuration=fixed, good=4, bad=8, error=r"fixed\.onnx has a fixed batch axis of 4, not 8")

    def outputs(self, network: Any) -> np.ndarray:
        """Return the first output of the last batch."""
        raise NotImplementedError


class OnnxRuntime(FileSubject):
    name = "onnxruntime"
    packages = ("onnx", "onnxruntime")

    def outputs(self, network: Any) -> np.ndarray:
        return np.array(network._binding.copy_outputs_to_cpu()[0])


class OpenVino(FileSubject):
    name = "openvino"
    packages = ("onnx", "openvino")
    needs_sizes_to_load = True

    def outputs(self, network: Any) -> np.ndarray:
        return np.array(network._request.get_output_tensor(0).data)


class Torch(FileSubject):
    name = "torch"
    packages = ("onnx", "torch")
    computes_int8 = False
    other_precision = ""

    @contextmanager
    def doubles(self) -> Iterator[None]:
        """Restore the settings of the process for the next test."""
        import torch

        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True

    def outputs(self, network: Any) -> np.ndarray:
        from joulewatch_harness.runtimes.torch.network import tensors

        return np.array(tensors(network._outputs)[0].numpy())


class Tvm(FileSubject):
    name = "tvm"
    packages = ("onnx", "tvm")
    needs_sizes_to_load = True

    def outputs(self, network: Any) -> np.ndarray:
        from joulewatch_harness.runtimes.tvm.network import tensors

        return np.array(tensors(network._outputs)[0].numpy())


class TensorRt(FileSubject):
    """Its double computes with ONNX Runtime what it was given, and reports float32 kernels."""

    name = "tensorrt"
    packages = ("onnx", "onnxruntime")
    needs_sizes_to_load = True
    computes_int8 = False
    one_thread = MappingProxyType({})
    host_times = False

    @contextmanager
    def doubles(self) -> Iterator[None]:
        import onnxruntime

        from joulewatch_harness.runtimes.tensorrt import device
        from support.tensorrt.double import fake_tensorrt

        with fake_tensorrt() as machine, pytest.MonkeyPatch.context() as patch:
            (self.folder / "driver").write_text(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel"
            )
            patch.setattr(device, "DRIVER_FILE", self.folder / "driver")
            patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
            machine.layers = [{"Name": "product", "LayerType": "gemm", "TacticName": "sm90_xmma_gemm_f32f32_f32_tn_n"}]
            machine.layer_ms = {"product": 2.0}

            def compute(inputs: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
                session = onnxruntime.InferenceSession(machine.model.SerializeToString())
                return [np.asarray(array) for array in session.run(None, inputs)]

            machine.compute = compute
            yield

    def outputs(self, network: Any) -> np.ndarray:
        return np.array(network._prepared.outputs[0].fetched(network._cuda, network._stream))


class Finn(Subject):
    name = "finn"
    phases = frozenset({"pack", "copy_in", "execute", "copy_out", "unpack"})
    actual_precision = ""
    loads_a_file = True

    @contextmanager
    def doubles(self) -> Iterator[None]:
        from support.finn.builds import fake_pynq

        with fake_pynq() as self.board:
            yield

    def small(self, precision: str = "native", **options: str) -> Configuration:
        from support.finn.builds import generated_build

        folder = self.folder / "deploy"
        return self.configuration(folder if folder.exists() else generated_build(folder), precision, **options)

    def limited(self) -> Limited:
        self.board.memory_bytes = 2048 * 8
        return Limited(
            configuration=self.small(), good=8, bad=16, error="no device buffers for a batch of 16: Failed to allocate"
        )

    def given(self, network: Any) -> Any:
        return [array.tolist() for array in network._arrays]


class Process(Subject):
    name = "process"
    phases = frozenset({"copy_in", "execute"})
    actual_precision = "int8"
    other_precision = "fp32"
    has_random_inputs = False

    def small(self, precision: str = "native", **options: str) -> Configuration:
        options.setdefault("command", f"{sys.executable} -S {CHILD}")
        return self.configuration("vgg10", precision, **options)

    def limited(self) -> Limited:
        refuses = self.small(command=f"{sys.executable} -S {CHILD} refuses 512")
        return Limited(configuration=refuses, good=8, bad=512, error=r"batch size 512\): at most 256")


class Server(Subject):
    """A model behind a server; ``connect`` replaces the connection."""

    URL: ClassVar[str] = "http://server:8000"
    network: ClassVar[str]
    actual_precision = ""

    def small(self, precision: str = "native", **options: str) -> Configuration:
        return self.configuration(self.network, precision, url=self.URL, **options)


class KServe(Server):
    name = "kserve"
    network = "m"
    phases = frozenset({"pack", "wait", "unpack"})

    @contextmanager
    def doubles(self) -> Iterator[None]:
        self.server = kserve_connection.FakeConnection(KServeOptions.parse({"url": self.URL}).where)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(over_http, "Connection", lambda where: self.server)
            yield

    def limited(self) -> Limited:
        self.server.pages["/v2/models/m/config"] = kserve_connection.answer({"max_batch_size": 8})
        return Limited(configuration=self.small(), good=8, bad=9, error="the largest batch is 8")


class OpenAI(Server):
    name = "openai"
    network = "m:1b"
    phases = frozenset({"prefill", "decode"})
    has_random_inputs = False

    @contextmanager
    def doubles(self) -> Iterator[None]:
        self.server = FakeSender(OpenAIOptions.parse({"url": self.URL}).where)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openai, "Connection", lambda where: self.server)
            yield

    def limited(self) -> Limited:
        return Limited(configuration=self.small(), good=2, bad=4096, error="4096 parallel requests: the limit is")


SUBJECTS: Sequence[type[Subject]] = (OnnxRuntime, OpenVino, Torch, Tvm, TensorRt, Finn, Process, KServe, OpenAI)


def skip_unless_installed(subject: type[Subject]) -> None:
    """Skip a test if a package of the runtime is missing; nothing is imported, because that changes some runtimes."""
    for package in subject.packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'joulewatch[{subject.name}]'")
