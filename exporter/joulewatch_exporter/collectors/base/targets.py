"""Lists of devices on the network, in files that may change while the exporter runs, and their passwords."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from joulewatch_exporter.config.strict import build, check_keys, mapping, read_bytes, read_yaml
from joulewatch_exporter.errors import ConfigError, SensorDeniedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _FileState:
    mtime_ns: int
    size: int
    inode: int


class TargetList(Generic[T]):
    """The devices of a family, from the configuration and from a target file, which may change any time.

    A target file is YAML: ``targets``, a list of mappings, and ``defaults``, the keys that they share. Relative paths
    start at the folder of the file.
    """

    def __init__(self, cls: type[T], inline: Sequence[T], file: Path | None, *, where: str) -> None:
        """Prepare; nothing is read yet.

        Args:
            cls: Frozen dataclass of a target, with a field ``name``; fields of type ``Path`` may be relative.
            inline: Targets of the configuration.
            file: The target file; None: no target file.
            where: Key of the configuration, for messages: ``collectors.ipmi``.
        """
        self._cls = cls
        self._inline = tuple(inline)
        self._file = file
        self._where = where
        self._state: _FileState | None = None

    def has_changed(self) -> bool:
        """Return whether the file has changed since ``read``; a missing file counts as unchanged."""
        return self._file is not None and (state := self._file_state()) is not None and state != self._state

    def read(self) -> tuple[T, ...]:
        """Read the targets.

        Raises:
            ConfigError: The file cannot be read, a key or value is invalid, or a name is listed twice.
        """
        targets = list(self._inline)
        source = self._where
        if self._file is not None:
            source = str(self._file)
            self._state = self._file_state()
            targets += self._from_file(self._file)
        seen: set[str] = set()
        for target in targets:
            name: str = getattr(target, "name")  # noqa: B009 - T is any dataclass with a name
            if name in seen:
                raise ConfigError(
                    f"{source}: target {name} is listed twice; names must be unique, because they label the series"
                )
            seen.add(name)
        _warn_of_open_secrets(targets)
        return tuple(targets)

    def _file_state(self) -> _FileState | None:
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
            continue  # reported at the login
        if is_open:
            logger.warning("%s: all users can read this password; run: chmod o-r %s", path, path)


def read_secret(path: Path) -> str:
    """Return the password in a file; error messages never contain it.

    Raises:
        SensorDeniedError: The file cannot be read or is empty.
    """
    try:
        # Read at each login, so that a rotated password is used from the next login on.
        secret = read_bytes(path).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not valid UTF-8"
        raise SensorDeniedError(f"{path}: password file: {reason}") from None
    if not secret:
        raise SensorDeniedError(f"{path}: password file: is empty")
    return secret
