"""Engines: build them from an ONNX file, keep them in a cache, read them from a file.

An engine is for one GPU model, one version of TensorRT and the shapes of its profile. Networks are strongly typed: each
tensor has the type of the file. TensorRT 11 has no other mode; TensorRT 10 would choose types with the flags of
precisions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.runtimes.tensorrt.device import Gpu
from joulewatch_harness.runtimes.tensorrt.libraries import Libraries, Messages, made

logger = logging.getLogger(__name__)

SUFFIXES: Final = (".engine", ".plan")
_MIB: Final = 1 << 20
_VERSIONS: Final = re.compile(r"expecting (?:library )?version ([\d.]+) got ([\d.]+)")
_COMPUTE: Final = re.compile(r"expecting compute ([\d.]+) got compute ([\d.]+)")
_PLACE: Final = re.compile(r"[^A-Za-z0-9.]+")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything an engine depends on, except the GPU and TensorRT."""

    model_sha256: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]
    """Input with a size that is open in the file -> its least, best and largest shape."""
    tf32: bool
    workspace_mib: int | None = None
    optimization_level: int | None = None
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine."""

    data: Any
    """Bytes, or TensorRT's memory: anything with the buffer protocol."""
    origin: str
    """``built in 41.2 s``, ``from cache (built in 41.2 s)``, ``file``."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Engines and times of kernels between runs, in ``$XDG_CACHE_HOME/joulewatch/tensorrt``."""

    folder: Path
    version: str
    gpu: Gpu

    @classmethod
    def here(cls, version: str, gpu: Gpu) -> Cache:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(base / "joulewatch" / "tensorrt", version, gpu)

    def engine(self, stem: str, recipe: Recipe) -> Path:
        """Return the file of a recipe, whose name contains all that the engine depends on."""
        text = json.dumps([asdict(recipe), self._machine()], sort_keys=True)
        return self.folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.engine"

    def timing(self) -> Path:
        text = json.dumps(self._machine(), sort_keys=True)
        label = _PLACE.sub("-", f"{self.gpu.name}-{self.version}").strip("-")
        return self.folder / f"timing-{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.cache"

    def read(self, path: Path) -> Plan | None:
        """Return a stored engine; None if it is not stored."""
        try:
            data, notes = path.read_bytes(), _notes(path)
        except OSError:
            return None
        built = notes.get("built_s")
        return Plan(data, f"from cache (built in {built:.1f} s)" if isinstance(built, float) else "from cache")

    def keep(self, path: Path, data: Any, recipe: Recipe, built_s: float) -> None:
        """Store an engine, and next to it the GPU and versions of the build, as JSON.

        Raises:
            ConfigError: the folder cannot be written.
        """
        notes = {**self._machine(), **asdict(recipe), "built_s": built_s}
        self.write(path.with_suffix(".json"), json.dumps(notes, indent=1).encode())
        self.write(path, data)

    def forget(self, path: Path) -> None:
        """Delete an engine that cannot be read."""
        with contextlib.suppress(OSError):
            path.unlink()

    def write(self, path: Path, data: Any) -> None:
        """Write and rename: another process reads the complete old or new file.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise files.write_error(
                f"the engine cache {self.folder} cannot be written ({error.strerror or error}): set XDG_CACHE_HOME to "
                "a folder that can be written, or set engine_cache=false and timing_cache=false",
                error,
            ) from error

    def _machine(self) -> dict[str, str]:
        gpu = self.gpu
        return {
            "tensorrt": self.version,
            "gpu": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.cuda,
        }


def deserialise(runtime: Any, messages: Messages, plan: Plan) -> Any | None:
    """Return the engine of a plan; None: TensorRT refuses it, and ``messages`` contains its reasons."""
    messages.forget()
    return runtime.deserialize_cuda_engine(plan.data)


def not_for_here(path: Path, version: str, gpu: Gpu, messages: Messages) -> Exception:
    """Return the error for an engine file that TensorRT refuses."""
    reasons = messages.reasons()
    if messages.no_memory():
        return MemoryError(f"engine file {path}: {gpu.name} has no memory for it: {reasons}")
    versions, compute = _VERSIONS.search(reasons), _COMPUTE.search(reasons)
    known = _notes(path)
    was = []
    if versions is not None or known.get("tensorrt"):
        was.append(f"TensorRT {versions[2] if versions is not None else known['tensorrt']}")
    if known.get("gpu"):
        was.append(f"{known['gpu']}, compute capability {known.get('capability')}")
    elif compute is not None:
        was.append(f"compute capability {compute[2]}")
    return ConfigError(
        f"engine file {path} cannot be used on this machine"
        + (f": it was built for {' and '.join(was)}" if was else "")
        + f"; this machine has TensorRT {version} and {gpu.name}, compute capability {gpu.capability}. Build it on "
        f"this machine, or use its .onnx file. TensorRT's reasons: {reasons or 'none'}"
    )


def build(
    libraries: Libraries,
    trt_logger: Any,
    messages: Messages,
    model: Path,
    content: bytes | None,
    recipe: Recipe,
    gpu: Gpu,
    times: Cache | None,
) -> tuple[Any, float]:
    """Build an engine.

    Args:
        libraries: TensorRT.
        trt_logger: Its logger, which writes to ``messages``.
        messages: The messages of TensorRT.
        model: The .onnx file.
        content: The model, if it differs from the file.
        recipe: Shapes and settings.
        gpu: The current GPU.
        times: The cache with times of kernels; None: measure them again.

    Returns:
        The plan, and the duration of the build in seconds.

    Raises:
        ConfigError: TensorRT cannot read the model or refuses a setting.
        MemoryError: the device has no memory.
        NetworkError: TensorRT cannot build it; the text contains the reason.
    """
    trt, name = libraries.trt, model.name
    start_s = time.monotonic()
    builder = made(trt.Builder, messages, trt_logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if libraries.major < 11 else 0
    network = builder.create_network(typed)
    parser = made(trt.OnnxParser, messages, network, trt_logger)
    read = parser.parse_from_file(str(model)) if content is None else parser.parse(content, path=str(model))
    if not read:
        raise ConfigError(
            f"model file {model}: TensorRT cannot read it: {_parser_errors(parser) or messages.reasons()}"
        )
    config = builder.create_builder_config()
    # The types of layers are read back from the engine; by default it stores only their names.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_tf32(trt, config, recipe.tf32, name)
    if recipe.workspace_mib is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, recipe.workspace_mib * _MIB)
        used = config.get_memory_pool_limit(pool)
        if used != recipe.workspace_mib * _MIB:
            raise ConfigError(
                f"{name}: option workspace_mib={recipe.workspace_mib}: TensorRT uses {used // _MIB} MiB: "
                "set that or less"
            )
    if recipe.optimization_level is not None:
        config.builder_optimization_level = recipe.optimization_level
    if recipe.shapes:
        profile = builder.create_optimization_profile()
        for tensor, (least, best, most) in recipe.shapes.items():
            profile.set_shape(tensor, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise NetworkError(f"{name}: TensorRT refuses the shapes {recipe.shapes}: {messages.reasons()}")
    if times is not None:
        _give_times(config, times, messages)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = messages.reasons() or "it gave no reason"
        if messages.no_memory():
            raise MemoryError(f"{name}: {gpu.name} has no memory to build it: {reasons}")
        raise NetworkError(f"{name}: TensorRT cannot build an engine: {reasons}")
    built_s = time.monotonic() - start_s
    if times is not None:
        _take_times(config, times)
    return plan, built_s


def _set_tf32(trt: Any, config: Any, tf32: bool, name: str) -> None:
    """Set TF32; TensorRT's default is on, so that float32 networks would silently compute in TF32."""
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if bool(config.get_flag(trt.BuilderFlag.TF32)) != tf32:
        raise NetworkError(f"{name}: TF32 was set {'on' if tf32 else 'off'}, but TensorRT has not changed it")


def _give_times(config: Any, cache: Cache, messages: Messages) -> None:
    path = cache.timing()
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    times = config.create_timing_cache(data)
    if times is None or not config.set_timing_cache(times, False):
        # A file of another GPU or version, or a broken one: start with an empty one.
        logger.info("%s is not for this GPU and TensorRT: starting a new one", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    messages.forget()


def _take_times(config: Any, cache: Cache) -> None:
    times = config.get_timing_cache()
    if times is not None:
        cache.write(cache.timing(), times.serialize())


def _parser_errors(parser: Any) -> str:
    reasons = [str(parser.get_error(number).desc()) for number in range(parser.num_errors)]
    return " ".join("; ".join(reasons).split())[:600]


def _notes(path: Path) -> Mapping[str, Any]:
    """Return what ``Cache.keep`` wrote next to an engine; empty if it is missing."""
    try:
        details = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return details if isinstance(details, Mapping) else {}
