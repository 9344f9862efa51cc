"""From what a configuration names to a model file, for the runtimes that take one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown


def find_source(
    runtime: str,
    network: str,
    precision: str,
    options: Mapping[str, str],
    known: Iterable[str],
    suffixes: tuple[str, ...] = (".onnx",),
) -> tuple[networks.ModelSource, dict[str, str]]:
    """The model file that ``network`` names, built where it is a built-in network.

    Args:
        runtime: What errors call the runtime.
        network: A file with one of the suffixes, or a built-in network.
        precision: What a built-in network's file is made in.
        options: All that were given.
        known: The runtime's own options; a built-in network's are told apart from them.
        suffixes: Of the files that the runtime reads.

    Returns:
        The source, and the options that are left for the runtime.

    Raises:
        ConfigError: unknown network, option or precision; no such file.
    """
    path = Path(network)
    own = () if path.suffix in suffixes else networks.builtin(network).options
    refuse_unknown(runtime, "option", options, (*known, *own))
    rest = {key: value for key, value in options.items() if key not in own}
    if path.suffix not in suffixes:
        return networks.build(network, precision, {key: options[key] for key in own if key in options}), rest
    if not path.is_file():
        raise ConfigError(f"no model file {path}")
    return networks.ModelSource(path), rest


def fingerprint(*paths: Path) -> str:
    """SHA-256 of one file, or of several as if they were one.

    Raises:
        ConfigError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise ConfigError(f"model file {path}: {error.strerror or error}") from error
    return digest.hexdigest()
