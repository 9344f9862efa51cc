"""The table of runtimes: names, packages, what they accept, and what is experimental."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime."""

    name: str
    summary: str
    package: str = ""
    """The import name of the runtime; empty: the harness is all that it needs."""
    takes_model_files: bool = False
    """Whether it runs built-in networks and model files. In the other runtimes, the server, program or accelerator
    defines the name of a network and its precision."""
    is_server: bool = False
    """Whether a server names its networks, for example ``llama3.2:1b``."""
    traces: bool = False
    """``joulewatch layers`` can trace it."""
    experimental: str = ""
    """What has never run on the real hardware or server; empty if nothing."""
    experimental_devices: bool = False
    """Whether it has run on CPUs only, so that it is experimental on other devices."""

    def __str__(self) -> str:
        return f"{self.name} (experimental)" if self.experimental else self.name

    @property
    def module(self) -> str:
        """The module that offers ``open_network(network, precision, options)``."""
        return f"joulewatch_harness.runtimes.{self.name}.network"

    @property
    def options_module(self) -> str:
        """The module with the class ``Options``; it needs no package of the runtime."""
        return f"joulewatch_harness.runtimes.{self.name}.options"

    @property
    def never_run(self) -> str:
        """Return what has never run on the real hardware or server, for lists of runtimes; empty if nothing."""
        return self.experimental or ("not run on devices other than CPUs" if self.experimental_devices else "")

    @property
    def extra(self) -> str:
        """The pip extra that installs it."""
        return self.name if self.package else "harness"

    @property
    def install_command(self) -> str:
        """The command that installs it, in a clone."""
        return f".venv/bin/pip install -e '.[{self.extra}]'"

    def warning(self, device: str) -> str:
        """Return ``experimental: ...`` if results on ``device`` rest on code that was never run there, else nothing."""
        text = self.experimental
        if not text and self.experimental_devices and device and not device.lower().startswith("cpu"):
            text = f"{self.summary} has not been run on {device}"
        return f"experimental: {text}" if text else ""


RUNTIMES: Final[Mapping[str, Runtime]] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnxruntime",
            summary="ONNX Runtime",
            package="onnxruntime",
            takes_model_files=True,
            traces=True,
            experimental_devices=True,
        ),
        Runtime(
            name="openvino",
            summary="OpenVINO",
            package="openvino",
            takes_model_files=True,
            traces=True,
            experimental_devices=True,
        ),
        Runtime(
            name="torch",
            summary="PyTorch",
            package="torch",
            takes_model_files=True,
            traces=True,
            experimental_devices=True,
        ),
        Runtime(
            name="tvm",
            summary="Apache TVM",
            package="tvm",
            takes_model_files=True,
            traces=True,
            experimental_devices=True,
        ),
        Runtime(
            name="tensorrt",
            summary="NVIDIA TensorRT",
            package="tensorrt",
            takes_model_files=True,
            traces=True,
            experimental="TensorRT support has not been run on a GPU",
        ),
        Runtime(
            name="finn",
            summary="FINN accelerators on FPGAs",
            package="bitstring",
            experimental="FINN support has not been run on an FPGA",
        ),
        Runtime(name="process", summary="any program that implements the protocol of PROTOCOL.md"),
        Runtime(name="kserve", summary="servers with the KServe v2 protocol, over HTTP or gRPC", is_server=True),
        Runtime(
            name="openai",
            summary="language model servers with an OpenAI-compatible API",
            is_server=True,
            experimental="the OpenAI client has not been run against a real server",
        ),
    )
}


def takes_model_files(runtime: str) -> bool:
    """Return whether a runtime of that name runs built-in networks and model files."""
    return runtime in RUNTIMES and RUNTIMES[runtime].takes_model_files


def is_server(runtime: str) -> bool:
    """Return whether a server names the networks of the runtime."""
    return runtime in RUNTIMES and RUNTIMES[runtime].is_server
