"""Device cards: what is published or measured about a device, each number with its source, date and status.

The cards of joulewatch are the YAML files in this folder; ``joulewatch device --from-run RUN`` writes a user's own. A
number whose source nobody opened is not in a card. A product of other numbers has the status of the worst of them, so
it is never more reliable than its inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from joulewatch_harness.binder import Limits, Text, bind, read_yaml
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown

Status = Literal["measured", "datasheet", "estimated"]
STATUSES: Final[tuple[Status, ...]] = ("measured", "datasheet", "estimated")
"""From the most to the least reliable. ``estimated``: from a rule, or two sources disagree."""
Kind = Literal["cpu", "gpu", "fpga", "board"]
Scope = Literal["device", "rails", "wall"]
FOLDER: Final = Path(__file__).parent
UNITS: Final[Mapping[str, str]] = {
    "peak_operations_per_second": "1/s",
    "observed_operations_per_second": "1/s",
    "memory_bandwidth_bytes_per_second": "B/s",
    "tdp_watts": "W",
    "idle_watts": "W",
    "machine_idle_watts": "W",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A document, as it was read."""

    title: str
    date: str
    """Date or version of the document; ``undated`` if it has none."""
    opened: str
    """Day on which it was read for the card."""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A number of a card: taken from a source, or the product of inputs."""

    value: Annotated[float, Limits(gt=0.0)] | None = None
    product_of: tuple[str, ...] = ()
    """Names of inputs."""
    source: str = ""
    """Key of a source."""
    status: Status | None = None
    """Of a product: that of the worst input, if it is not given."""
    scope: Scope | None = None
    """Of a power: the sensors of the device, some of its supply rails, or the whole board at the wall."""
    note: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.product_of):
            raise ValueError("give either value or product_of")
        if self.product_of and self.source:
            raise ValueError("source: a product has the sources of its inputs")
        if self.value is not None and not (self.source and self.status):
            raise ValueError("a value needs a source and a status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number of a card with its sources."""

    name: str
    value: float
    unit: str
    status: Status
    sources: tuple[Source, ...]
    scope: Scope | None = None
    note: str = ""
    formula: str = ""
    """The inputs that were multiplied; empty: taken from the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known about one device."""

    name: str
    title: str
    kind: Kind
    devices: tuple[Text, ...] = ()
    """Names of the device in results and tables."""
    note: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)
    inputs: Mapping[str, Value] = field(default_factory=dict)
    """Numbers that others are products of, in base units."""
    peak_operations_per_second: Mapping[str, Value] = field(default_factory=dict)
    """Precision -> additions and multiplications, without sparsity."""
    observed_operations_per_second: Mapping[str, Value] = field(default_factory=dict)
    """Precision -> largest rate of a run: a lower bound of the peak."""
    memory_bandwidth_bytes_per_second: Value | None = None
    tdp_watts: Value | None = None
    idle_watts: Value | None = None
    """At rest. Of an FPGA: with a bitstream loaded."""
    machine_idle_watts: Value | None = None
    """At rest, all device sensors of the machine that the device is in."""

    def __post_init__(self) -> None:
        for name, value in self._values():
            self._check(name, value)

    def _values(self) -> Iterator[tuple[str, Value]]:
        yield from ((f"inputs.{name}", value) for name, value in self.inputs.items())
        for name in UNITS:
            content = getattr(self, name)
            if isinstance(content, Mapping):
                yield from ((f"{name}.{key}", value) for key, value in content.items())
            elif content is not None:
                yield name, content

    def _check(self, name: str, value: Value) -> None:
        if value.source and value.source not in self.sources:
            raise ValueError(f"{name}: {unknown('source', value.source, self.sources)}")
        if name.startswith("inputs.") and value.product_of:
            raise ValueError(f"{name}: an input is a value, not a product")
        for part in value.product_of:
            if part not in self.inputs:
                raise ValueError(f"{name}: {unknown('input', part, self.inputs)}")
        if value.product_of and value.status is not None:
            best = self._worst(value)
            if STATUSES.index(value.status) < STATUSES.index(best):
                raise ValueError(f"{name}: status {value.status}, but an input is only {best}")
        if name.endswith("_watts") and value.scope is None:
            raise ValueError(f"{name}: a power needs a scope: device, rails or wall")

    def _worst(self, value: Value) -> Status:
        statuses = [status for part in value.product_of if (status := self.inputs[part].status) is not None]
        return worst(*statuses, *([value.status] if value.status else []))

    def facts(self) -> list[Fact]:
        """Return the numbers of the card, without the inputs."""
        return [self._fact(name, value) for name, value in self._values() if not name.startswith("inputs.")]

    def fact(self, name: str) -> Fact | None:
        """Return a number by its name (``idle_watts``, ``peak_operations_per_second.fp32``); None: it is not known."""
        return next((fact for fact in self.facts() if fact.name == name), None)

    def _fact(self, name: str, value: Value) -> Fact:
        parts = [self.inputs[part] for part in value.product_of]
        number = value.value if value.value is not None else math.prod(part.value or 0.0 for part in parts)
        keys = dict.fromkeys([value.source, *(part.source for part in parts)])
        notes = [note for note in (value.note, *(part.note for part in parts)) if note]
        return Fact(
            name=name,
            value=number,
            unit=UNITS[name.partition(".")[0]],
            status=self._worst(value),
            sources=tuple(self.sources[key] for key in keys if key),
            scope=value.scope,
            note="; ".join(dict.fromkeys(notes)),
            formula=" × ".join(f"{part} {self.inputs[part].value:g}" for part in value.product_of),
        )


def worst(*statuses: Status) -> Status:
    """Return the least reliable status."""
    return max(statuses, key=STATUSES.index)


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        ConfigError: The file cannot be read, or is not a valid card.
    """
    return bind(Card, read_yaml(path), str(path))


def card_yaml(card: Card) -> str:
    """Return a card as YAML, which ``read_card`` reads."""
    import yaml

    return str(yaml.safe_dump(_plain(card), sort_keys=False, allow_unicode=True, width=110))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(content) for name, content in pairs if content not in (None, "", (), {})}
    if isinstance(value, Mapping):
        return {key: _plain(content) for key, content in value.items()}
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def cards() -> Mapping[str, Card]:
    """Return the cards of joulewatch by name."""
    all_cards = map(read_card, sorted(FOLDER.glob("*.yaml")))
    return {card.name: card for card in all_cards}


def find_card(word: str) -> Card:
    """Return the card with this name, of the device with this name in results, or in this file.

    Raises:
        ConfigError: There is none, or the file is not a valid card.
    """
    if word.endswith((".yaml", ".yml")):
        return read_card(Path(word))
    for card in cards().values():
        if word in (card.name, card.title, *card.devices):
            return card
    raise ConfigError(
        f"{unknown('device', word, cards())}; 'joulewatch device --from-run RUN' writes a card of your own device"
    )
