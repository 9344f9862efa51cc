"""The lock of the development and test dependencies agrees with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
LOCK = [line for line in (TOP / "constraints-dev.txt").read_text().splitlines() if not line.startswith("#")]


def _requirements(entries: list[Any]) -> Iterator[Requirement]:
    """Requirements of other projects; our own extras and included groups are expanded."""
    for entry in entries:
        if isinstance(entry, dict):
            yield from _requirements(PROJECT["dependency-groups"][entry["include-group"]])
            continue
        requirement = Requirement(entry)
        if requirement.name != PROJECT["project"]["name"]:
            yield requirement
        for extra in requirement.extras if requirement.name == PROJECT["project"]["name"] else ():
            yield from _requirements(PROJECT["project"]["optional-dependencies"][extra])


def test_the_lock_names_versions_and_nothing_else() -> None:
    """No index, no path, no range: each line is NAME==VERSION, perhaps with a marker."""
    term = r"\(?[a-z_]+ (==|!=|<|>=) '[\w.*]+'\)?"
    pin = re.compile(rf"[a-z0-9-]+==[a-z0-9.]+( ; {term}( (and|or) {term})*)?")
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once_to_a_version_that_it_allows(version: str) -> None:
    """A change of a dependency in pyproject.toml needs `make lock`."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    pins: dict[str, str] = {}
    for pin in map(Requirement, LOCK):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in pins, pin
            (specifier,) = pin.specifier
            pins[pin.name] = specifier.version
    names = ["joulewatch[all,tvm]", {"include-group": "dev"}, *PROJECT["project"]["dependencies"]]
    for requirement in _requirements(names):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no pin: run make lock"
        assert requirement.specifier.contains(pins[name]), f"{requirement}, locked {pins[name]}: run make lock"
