"""Model files: find the file that a configuration names, and its checksum."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def fingerprint(model: Path) -> str:
    """Return the SHA-256 of everything that a runtime reads of a model, as if it were one file.

    The external data of an .onnx file are part of it, and the .bin file of an .xml file (OpenVINO).

    Raises:
        ConfigError: a file cannot be read.
    """
    return sha256_of(model, *_further_files(model))


def sha256_of(*paths: Path) -> str:
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


def _further_files(model: Path) -> list[Path]:
    if model.suffix == ".xml":
        weights = model.with_suffix(".bin")
        return [weights] if weights.is_file() else []
    if model.suffix != ".onnx":
        return []
    import onnx

    try:
        content = onnx.load(os.fspath(model), load_external_data=False)
    except Exception:
        # The runtime reports what is wrong with the file.
        return []
    graphs = (content.graph, *content.functions)
    entries = itertools.chain.from_iterable(tensor.external_data for graph in graphs for tensor in _tensors(graph))
    return [model.parent / place for place in sorted({entry.value for entry in entries if entry.key == "location"})]


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the stored tensors of a graph or function, also of those inside."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for attribute in itertools.chain.from_iterable(node.attribute for node in graph.node):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)
