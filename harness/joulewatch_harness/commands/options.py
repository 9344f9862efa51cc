"""What subcommands that open a network read alike from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from joulewatch_harness.errors import ConfigError


def network_options(words: Sequence[str] | None, threads: str | None) -> dict[str, str]:
    """The options of a network and its runtime, from ``--option KEY=VALUE`` and ``--threads``.

    Raises:
        ConfigError: a word is not KEY=VALUE.
    """
    options: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {word!r}: KEY=VALUE is wanted, such as threads=2")
        options[key] = value
    if threads is not None:
        options["threads"] = threads
    return options
