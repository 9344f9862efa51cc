"""Open the network of a configuration: by the name of its runtime, or a custom network.

The module of a runtime is imported only when a plan names it, so that unused runtimes need not be installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from joulewatch_harness.binder import bind_options
from joulewatch_harness.errors import ConfigError, describe
from joulewatch_harness.names import unknown
from joulewatch_harness.network import Network
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.plan.runtimes import RUNTIMES, takes_model_files
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes.shared.options import ANY_PRECISION, RuntimeOptions

OWN_RUNTIME: Final = "python"
"""The runtime of ``module:object`` networks, unless their ``describe`` names another."""

_METHODS: Final = ("describe", "load", "prepare", "run", "close")


def is_own(network: str) -> bool:
    """Return whether ``network`` is ``module:object`` or ``file.py:object``."""
    return ":" in network


def open_network(configuration: Configuration) -> Network:
    """Return the network under test of a configuration, before it is loaded.

    Raises:
        ConfigError: unknown runtime or network, bad option, missing file or package, an object without the five
            methods.
    """
    options = dict(configuration.options)
    if configuration.runtime == OWN_RUNTIME:
        options.pop(ANY_PRECISION, None)
        return custom_network(configuration.target, configuration.precision, options)
    if is_own(configuration.target) and takes_model_files(configuration.runtime):
        raise ConfigError(f"{configuration.target} is a custom network: remove the runtime {configuration.runtime!r}")
    runtime = RUNTIMES.get(configuration.runtime)
    if runtime is None:
        raise ConfigError(unknown("runtime", configuration.runtime, RUNTIMES))
    try:
        module: Any = importlib.import_module(runtime.module)
    except ModuleNotFoundError as error:
        if not runtime.package or (error.name or "").startswith("joulewatch"):
            raise
        raise ConfigError(
            f"the runtime {runtime.name} needs the package {error.name}: pip install 'joulewatch[{runtime.extra}]'"
        ) from error
    return cast(Network, module.open_network(configuration.target, configuration.precision, options))


def custom_network(spec: str, precision: str, options: Mapping[str, str]) -> Network:
    """Return a custom network: an object, or what a class or function returns.

    Args:
        spec: ``module:object`` or ``path/file.py:object``.
        precision: Passed as ``precision=`` to a class or function with this parameter.
        options: Passed by name to a class or function with these parameters.

    Raises:
        ConfigError: the file, module or object does not exist; an option without a parameter; a missing method.
    """
    network = find_object(spec)
    if inspect.isclass(network) or (inspect.isroutine(network) and not _is_network(network)):
        network = _made(network, spec, precision, options)
    elif options:
        raise ConfigError(
            f"{spec} is an object, not a class or function: it does not accept the option {next(iter(options))!r}"
        )
    missing = [method for method in _METHODS if not callable(getattr(network, method, None))]
    if missing:
        raise ConfigError(
            f"{spec} has no method {missing[0]!r}: a network needs {', '.join(_METHODS)} (see harness/README.md)"
        )
    return cast(Network, network)


def as_loaded(configuration: Configuration, description: Mapping[str, Any]) -> Configuration:
    """Return the configuration with the facts that a loaded network describes.

    Raises:
        ConfigError: the actual precision is not the requested one, and the option any_precision is not set.
    """
    known = {"runtime", "runtime_version", "precision", "provider", "device", "model_sha256"}

    def fact(key: str) -> str:
        value = description.get(key)
        return "" if value is None else str(value)

    actual = fact("precision")
    requested = configuration.precision
    if requested != NATIVE and actual and actual != requested and not _accepts_any_precision(configuration):
        raise ConfigError(
            f"{configuration.name}: the precision {requested} was requested, but the network computes in {actual}; "
            f"request {actual}, or set {ANY_PRECISION}=true to accept that"
        )
    runtime = fact("runtime") if configuration.runtime == OWN_RUNTIME else configuration.runtime
    details = {key: str(value) for key, value in description.items() if key not in known and len(str(value)) <= 500}
    if configuration.runtime in RUNTIMES and (warning := RUNTIMES[configuration.runtime].warning(fact("device"))):
        details["experimental"] = warning.removeprefix("experimental: ")
    return replace(
        configuration,
        runtime=runtime or configuration.runtime,
        precision=(actual or requested) if requested == NATIVE else requested,
        actual_precision=actual,
        provider=fact("provider"),
        device=fact("device"),
        runtime_version=fact("runtime_version"),
        model_sha256=fact("model_sha256"),
        details=details,
    )


def _accepts_any_precision(configuration: Configuration) -> bool:
    given = {key: value for key, value in configuration.options.items() if key == ANY_PRECISION}
    return bind_options(RuntimeOptions, given, configuration.name).any_precision


def _is_network(value: Any) -> bool:
    return all(callable(getattr(value, method, None)) for method in _METHODS)


def _made(factory: Any, spec: str, precision: str, options: Mapping[str, str]) -> Any:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = {}
    takes_any = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    by_name = {name for name, item in parameters.items() if item.kind is not inspect.Parameter.POSITIONAL_ONLY}
    for key in options:
        if key not in by_name and not takes_any:
            raise ConfigError(f"{spec}: {unknown('option', key, by_name - {'precision'})}")
    keywords: dict[str, str] = dict(options)
    if takes_any or "precision" in by_name:
        keywords["precision"] = precision
    try:
        return factory(**keywords)
    except Exception as error:
        raise ConfigError(f"{spec} cannot be created: {describe(error)}") from error


def find_object(spec: str) -> Any:
    """Return the object of ``module:object`` or ``file.py:object``.

    Raises:
        ConfigError: the file, module or object does not exist, or cannot be imported.
    """
    place, _, name = spec.rpartition(":")
    value: Any = _find_module(place)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ConfigError(f"{place} has no {part!r} (requested as {spec})") from error
    return value


def _find_module(place: str) -> ModuleType:
    """Import a user's module by its name or its file.

    Raises:
        ConfigError: it does not exist, or cannot be imported.
    """
    if not place.endswith(".py"):
        # Console scripts do not search the current folder for modules.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                raise ConfigError(f"no module {place!r}; for a file, write file.py:object") from error
            raise ConfigError(f"{place} cannot be imported: {describe(error)}") from error
        except Exception as error:
            raise ConfigError(f"{place} cannot be imported: {describe(error)}") from error
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    # A unique name, so that a user's onnx.py or test.py does not replace another module.
    name = f"joulewatch_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} cannot be imported: {describe(error)}") from error
    return module
