"""Lists of devices that are reached over the network, in files that may change while we run, and their passwords."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from joulewatch_exporter.config.strict import build, check_keys, mapping, read_yaml
from joulewatch_exporter.errors import ConfigError, SensorDeniedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _FileState:
    mtime_ns: int
    size: int
    inode: int


class TargetList(Generic[T]):
    """The devices of a family: those of the configuration, and those of a target file that may change while we run.

    A target file is YAML: ``targets``, a list of mappings, and ``defaults``, what they share. Relative paths in it
    are below the file's folder.
    """

    def __init__(self, cls: type[T], inline: Sequence[T], file: Path | None, *, where: str) -> None:
        """Prepare; nothing is read yet.

        Args:
            cls: Frozen dataclass of a target, with a field ``name``; fields of type ``Path`` may be relative.
            inline: Targets of the configuration.
            file: The target file; None: there is none.
            where: The configuration's key, for messages: ``collectors.ipmi``.
        """
        self._cls = cls
        self._inline = tuple(inline)
        self._file = file
        self._where = where
        self._state: _FileState | None = None

    def has_changed(self) -> bool:
        """Whether the file is another than when ``read`` was last called; no file counts as no change."""
        return self._file is not None and (state := self._look()) is not None and state != self._state

    def read(self) -> tuple[T, ...]:
        """Read the targets.

        Raises:
            ConfigError: The file cannot be read, a key or value is wrong, or a name is given twice.
        """
        targets = list(self._inline)
        source = self._where
        if self._file is not None:
            source = str(self._file)
            self._state = self._look()
            targets += self._from_file(self._file)
        seen: set[str] = set()
        for target in targets:
            name: str = getattr(target, "name")  # noqa: B009 - T is any dataclass with a name
            if name in seen:
                raise ConfigError(f"{source}: target {name} is there twice; a name is the label of its series")
            seen.add(name)
        _warn_of_open_secrets(targets)
        return tuple(targets)

    def _look(self) -> _FileState | None:
        assert self._file is not None
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return _FileState(stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _from_file(self, file: Path) -> list[T]:
        document = mapping(read_yaml(file), str(file), "")
        check_keys(document, ("defaults", "targets"), str(file), "")
        defaults = mapping(document.get("defaults") or {}, str(file), "defaults")
        entries = document.get("targets")
        if not isinstance(entries, list):
            raise ConfigError(f"{file}: targets: must be a list of targets")
        targets = []
        for index, entry in enumerate(entries):
            where = f"targets[{index}]"
            section = {**defaults, **mapping(entry, str(file), where)}
            for key, value in section.items():
                if key.endswith("_file") and isinstance(value, str):
                    section[key] = str(file.parent / value)
            targets.append(build(self._cls, section, str(file), where))
        return targets


def _warn_of_open_secrets(targets: Sequence[object]) -> None:
    for path in sorted({path for target in targets if (path := getattr(target, "password_file", None)) is not None}):
        try:
            is_open = bool(path.stat().st_mode & 0o004)
        except OSError:
            continue  # the login will say so
        if is_open:
            logger.warning("%s: everybody can read this password; run: chmod o-r %s", path, path)


def read_secret(path: Path) -> str:
    """Read a password from its file; the text of an error never holds it.

    Raises:
        SensorDeniedError: The file cannot be read, or is empty.
    """
    try:
        # Opened anew each time: a password that is rotated counts from the next login on.
        secret = path.read_text("utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise SensorDeniedError(f"{path}: password file: {reason}") from None
    if not secret:
        raise SensorDeniedError(f"{path}: password file: is empty")
    return secret
