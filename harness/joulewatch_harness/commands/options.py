"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from joulewatch_harness import files
from joulewatch_harness.errors import ConfigError, RecordError


def add_format_argument(parser: argparse._ActionsContainer, *more: str) -> None:
    """Add ``--format``, with further formats."""
    parser.add_argument(
        "--format", choices=("table", "json", "csv", *more), default="table", help="output format (default: table)"
    )


def shell_words(text: str) -> list[str]:
    """Split the value of a flag into words as a shell does; the ``type`` of an argument."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def add_output_argument(parser: argparse._ActionsContainer) -> None:
    """Add ``--output``, the directory in which runs are searched."""
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("runs"), help="directory of all runs (default: runs)"
    )


def add_source_argument(parser: argparse._ActionsContainer) -> None:
    """Add ``--source``, the exporters whose series are read."""
    parser.add_argument(
        "--source",
        metavar="NAME",
        action="append",
        help="exporter to read from Prometheus: joulewatch, node_exporter, dcgm, ipmi_exporter, kepler, ceems, "
        "scaphandre, all-smi, nvidia_gpu_exporter, or a mapping FILE.yaml; repeatable (default: joulewatch)",
    )


def network_options(words: Sequence[str] | None, threads: str | None) -> dict[str, str]:
    """Return the options of a network and its runtime, from ``--option KEY=VALUE`` and ``--threads``.

    Raises:
        ConfigError: A word is not KEY=VALUE.
    """
    options: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {word!r}: must be KEY=VALUE, such as threads=2")
        options[key] = value
    if threads is not None:
        options["threads"] = threads
    return options


def check_folder(flag: str, path: Path) -> None:
    """Raise ConfigError if the folder of an output file is missing, or it is a folder, before any work is done."""
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: the directory {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: cannot be written: {os.strerror(errno.EISDIR)}")


def write_file(flag: str, path: Path, content: str | bytes) -> None:
    """Write an output file; text in UTF-8.

    Raises:
        ConfigError: The file cannot be written.
        StorageError: The disk is full.
    """
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise files.write_error(f"{flag} {path}: cannot be written: {error.strerror}", error) from error


def read_json(path: Path) -> object:
    """Return the content of a JSON file, such as a result or predictions.

    Raises:
        RecordError: It cannot be read, is too large, or is not JSON.
    """
    try:
        return json.loads(files.read_text(path, files.MOST_DATA_BYTES))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not valid JSON: {error}") from error
