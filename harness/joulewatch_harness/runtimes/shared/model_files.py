"""Model files: find the file that a configuration names, and its checksum."""

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
    """Return the model file that ``network`` names; that of a built-in network is built.

    Args:
        runtime: Name of the runtime in errors.
        network: A file with one of the suffixes, or a built-in network.
        precision: Precision of the file of a built-in network.
        options: All given options.
        known: Names of the runtime's options; all others must be options of the built-in network.
        suffixes: Suffixes of the files that the runtime reads.

    Returns:
        The source, and the options for the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file does not exist.
    """
    path = Path(network)
    own = () if path.suffix in suffixes else networks.builtin(network).options
    refuse_unknown(runtime, "option", options, (*known, *own))
    rest = {key: value for key, value in options.items() if key not in own}
    if path.suffix not in suffixes:
        return networks.build(network, precision, {key: options[key] for key in own if key in options}), rest
    if not path.is_file():
        raise ConfigError(f"no model file {path}")
    return networks.ModelSource(path=path), rest


def fingerprint(*paths: Path) -> str:
    """Return the SHA-256 of one file, or of several as if they were one.

    Raises:
        ConfigError: a file cannot be read.
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
