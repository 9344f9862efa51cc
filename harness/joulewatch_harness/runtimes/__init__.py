"""Runtimes by name, and networks of the user's own: from a configuration to an object that can be run.

A runtime's module is imported only when a plan names it, so that nobody needs a runtime they do not use.
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
"""The runtime of ``module:object`` networks until ``describe`` names a better one."""

_METHODS: Final = ("describe", "load", "prepare", "run", "close")


def is_own(network: str) -> bool:
    """Whether ``network`` is a ``module:object`` or ``file.py:object``."""
    return ":" in network


def open_network(configuration: Configuration) -> Network:
    """Make the network under test of one configuration; nothing is loaded yet.

    Raises:
        ConfigError: unknown runtime or network, bad option, missing file or package, an object without the five
            methods.
    """
    options = dict(configuration.options)
    if configuration.runtime == OWN_RUNTIME:
        options.pop(ANY_PRECISION, None)
        return own_network(configuration.network, configuration.precision, options)
    if is_own(configuration.network) and takes_model_files(configuration.runtime):
        raise ConfigError(
            f"{configuration.network} brings its own runtime: leave out runtime {configuration.runtime!r}"
        )
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
    return cast(Network, module.open_network(configuration.network, configuration.precision, options))


def own_network(spec: str, precision: str, options: Mapping[str, str]) -> Network:
    """The user's network: an object, or a class or function that makes one.

    Args:
        spec: ``module:object`` or ``path/file.py:object``.
        precision: Passed as ``precision=`` to a factory that takes it.
        options: Passed by name to a factory that takes them.

    Raises:
        ConfigError: no such file, module or object; an option that the factory does not take; a method missing.
    """
    found = find_object(spec)
    if inspect.isclass(found) or (inspect.isroutine(found) and not _is_network(found)):
        found = _made(found, spec, precision, options)
    elif options:
        raise ConfigError(f"{spec} is an object, not a class or function: it takes no option {next(iter(options))!r}")
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"{spec} has no method {missing[0]!r}: a network needs {', '.join(_METHODS)} (see harness/README.md)"
        )
    return cast(Network, found)


def as_loaded(configuration: Configuration, description: Mapping[str, Any]) -> Configuration:
    """The configuration with what the network says of itself once it is loaded.

    Raises:
        ConfigError: the actual precision is not the one asked for and the option any_precision is not set.
    """
    known = {"runtime", "runtime_version", "precision", "provider", "device", "model_sha256"}

    def said(key: str) -> str:
        value = description.get(key)
        return "" if value is None else str(value)

    actual = said("precision")
    asked = configuration.precision
    if asked != NATIVE and actual and actual != asked and not _accepts_any_precision(configuration):
        raise ConfigError(
            f"{configuration.name}: {asked} was asked for, but what was loaded computes in {actual}; "
            f"ask for {actual}, or set the option {ANY_PRECISION}=true to measure it all the same"
        )
    runtime = said("runtime") if configuration.runtime == OWN_RUNTIME else configuration.runtime
    details = {key: str(value) for key, value in description.items() if key not in known and len(str(value)) <= 500}
    if configuration.runtime in RUNTIMES and (warning := RUNTIMES[configuration.runtime].warning(said("device"))):
        details["experimental"] = warning.removeprefix("experimental: ")
    return replace(
        configuration,
        runtime=runtime or configuration.runtime,
        precision=(actual or asked) if asked == NATIVE else asked,
        actual_precision=actual,
        provider=said("provider"),
        device=said("device"),
        runtime_version=said("runtime_version"),
        model_sha256=said("model_sha256"),
        details=details,
    )


def _accepts_any_precision(configuration: Configuration) -> bool:
    given = {key: value for key, value in configuration.options.items() if key == ANY_PRECISION}
    return bind_options(RuntimeOptions, given, configuration.name).any_precision


def _is_network(found: Any) -> bool:
    return all(callable(getattr(found, method, None)) for method in _METHODS)


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
    found: Any = _find_module(place)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ConfigError(f"{place} has no {part!r} (requested as {spec})") from error
    return found


def _find_module(place: str) -> ModuleType:
    """Import a user's module by its name or its file.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    if not place.endswith(".py"):
        # The user's own modules lie where the command is run, which a console script does not search.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                raise ConfigError(f"no module {place!r}; a file is written file.py:object") from error
            raise ConfigError(f"{place} cannot be imported: {describe(error)}") from error
        except Exception as error:
            raise ConfigError(f"{place} cannot be imported: {describe(error)}") from error
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    # A name of its own, so that a user's onnx.py or test.py shadows nothing.
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
