"""Names of networks: short in tables, figures and labels, while the plan may name files in folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Final

from joulewatch_harness.plan.runtimes import RUNTIMES, takes_model_files
from joulewatch_harness.records import Configuration

MODEL_SUFFIXES: Final = (".onnx", ".xml", ".pt", ".pt2", ".ts", ".torchscript", ".engine", ".plan")
"""Suffixes of the model files of all runtimes."""
_FINN: Final = "finn"
_IN_EVERY_BUILD: Final = frozenset({"deploy", "driver", "driver.py", "settings.json"})
"""Names of files and folders that do not identify a FINN build."""


def short_name(network: str, runtime: str) -> str:
    """Return a network's name without its folder: the stem of a model file, the object of ``file.py:object``."""
    return _parts(network, runtime)[-1]


def name_networks(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """Replace paths by short names, and keep each path in the configuration's ``path``.

    Configurations that have a path already are named already.
    """
    names = short_names((item.network, item.runtime) for item in configurations if not item.path)
    return tuple(
        dataclasses.replace(item, network=names[item.network, item.runtime], path=item.network)
        if not item.path and names[item.network, item.runtime] != item.network
        else item
        for item in configurations
    )


def short_names(networks: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """Return the short name of each network with its runtime.

    Names that clash get as many folders in front as they need to differ: ``a/model`` and ``b/model``.
    """
    parts = {key: _parts(*key) for key in networks}
    for (network, runtime), own in tuple(parts.items()):
        same = [key for key, other in parts.items() if key[1] == runtime and other == own and key[0] != network]
        if same:
            # Two files of one folder: only their suffixes differ.
            for key in ((network, runtime), *same):
                parts[key] = (*own[:-1], PurePath(key[0]).name)
    names = {}
    for key, own in parts.items():
        clashing = {other for other in parts.values() if other[-1] == own[-1]}
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in clashing) > 1:
            count += 1
        names[key] = "/".join(own[-count:]).replace("//", "/")
    return names


def _parts(network: str, runtime: str) -> tuple[str, ...]:
    """Return the folders and the name of a network; the name alone if it is not that of a file, folder or object."""
    if runtime == _FINN:
        parts = list(PurePath(network).parts)
        while len(parts) > 1 and parts[-1] in _IN_EVERY_BUILD:
            parts.pop()
        return tuple(parts) or (network,)
    if runtime in RUNTIMES and not takes_model_files(runtime):
        # The server or program defines the name.
        return (network,)
    if ":" in network:
        place, _, name = network.rpartition(":")
        folders = PurePath(place.removesuffix(".py")).parts if place.endswith(".py") else place.split(".")
        return (*folders, name)
    path = PurePath(network)
    return (*path.parts[:-1], path.stem if path.suffix in MODEL_SUFFIXES else path.name)
