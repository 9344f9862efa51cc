"""Load and check every network before the run: its precision, its batch sizes, its outputs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from joulewatch_harness.errors import (
    ConfigError,
    JoulewatchError,
    NetworkError,
    WrongOutputsError,
    describe,
)
from joulewatch_harness.network import Phases, run_check
from joulewatch_harness.plan.cpus import parse_cpus
from joulewatch_harness.plan.plan import Plan, name_configurations
from joulewatch_harness.plan.runtimes import takes_model_files

if TYPE_CHECKING:
    from joulewatch_harness.network import Network
    from joulewatch_harness.records import Configuration

logger = logging.getLogger(__name__)

QUICK_S: Final = 2.0
"""After a check that takes longer, larger batch sizes are left to the run: they may be compiled for minutes."""
FIXED_BATCH: Final = "fixed_batch"
"""Key of a description: the only batch size that the network accepts."""


def check_networks(
    plan: Plan, stack: contextlib.ExitStack
) -> tuple[Plan, tuple[tuple[Configuration, Network], ...], tuple[str, ...]]:
    """Load every network once, check its description and its outputs, and unload it again.

    Returns:
        The plan, whose names contain the precision read back from each file, and whose batch sizes are those of the
        networks if none were requested; the networks, unloaded, because the first idle window is measured without
        them; and remarks. Isolated networks' processes end with ``stack``.

    Raises:
        ConfigError: a network cannot be opened, is of another precision, or cannot run any batch size of the plan.
        NetworkError: a network cannot be loaded, fails at every batch size, or computes wrong results.
    """
    from joulewatch_harness.runtimes import as_loaded

    found: list[tuple[Configuration, Network]] = []
    only_sizes: list[int | None] = []
    remarks: list[str] = []
    for configuration in plan.configurations:
        network = _opened(plan, configuration, stack)
        try:
            _load(network, configuration)
            loaded = as_loaded(configuration, network.describe())
            size, reason = _only_size(plan, configuration, network, fixed_batch_size(loaded))
        finally:
            network.close()
        if reason:
            remarks.append(f"{configuration.name} is measured at batch size {size}: it {reason}")
        only_sizes.append(size)
        found.append((_settled(configuration, loaded), network))
    named = tuple(name_configurations([configuration for configuration, _ in found]))
    plan = replace(plan, configurations=named, batch_sizes=_batch_sizes(plan, only_sizes))
    return plan, tuple((item, network) for item, (_, network) in zip(named, found, strict=True)), tuple(remarks)


def _opened(plan: Plan, configuration: Configuration, stack: contextlib.ExitStack) -> Network:
    from joulewatch_harness.runner.isolate import IsolatedNetwork
    from joulewatch_harness.runtimes import open_network

    if not plan.isolate:
        return open_network(configuration)
    isolated = IsolatedNetwork(configuration, cpus=parse_cpus(plan.cpus, "cpus"), time_limit_s=plan.time_limit_s)
    stack.callback(isolated.end)
    isolated.open()
    return isolated


def _load(network: Network, configuration: Configuration) -> None:
    try:
        network.load()
    except JoulewatchError:
        raise
    except Exception as error:
        raise NetworkError(f"{configuration.name} cannot be loaded: {describe(error)}") from error


def _settled(configuration: Configuration, loaded: Configuration) -> Configuration:
    """Return the configuration with precision and runtime as loaded, and without a name that contained others."""
    settled = replace(configuration, precision=loaded.precision, runtime=loaded.runtime)
    if (settled.precision, settled.runtime) == (configuration.precision, configuration.runtime):
        return settled
    automatic = next(name_configurations([replace(configuration, name="")])).name
    return replace(settled, name="") if configuration.name == automatic else settled


def fixed_batch_size(loaded: Configuration) -> int | None:
    """Return the only batch size that a loaded network accepts; None if it accepts several."""
    text = loaded.details.get(FIXED_BATCH, "")
    return int(text) if text.isdecimal() else None


def _only_size(plan: Plan, configuration: Configuration, network: Network, fixed: int | None) -> tuple[int | None, str]:
    """Check a network; return the only batch size that it can run, and why, if that replaces the default ones."""
    start_s = time.monotonic()
    checked = _check(network, configuration.name, _sizes_of(plan, configuration, fixed))
    if not plan.default_batch_sizes:
        return None, ""
    if fixed is not None:
        return fixed, "has a fixed batch axis"
    if time.monotonic() - start_s < QUICK_S and takes_model_files(configuration.runtime):
        # The graph may be for one batch size, although its batch axis is open.
        larger = [size for size in plan.batch_sizes if size > checked][:2]
        if error := _failure(network, larger):
            return checked, f"cannot run batch size {larger[0]} ({describe(error)})"
    return None, ""


def _sizes_of(plan: Plan, configuration: Configuration, fixed: int | None) -> Sequence[int]:
    """Return the batch sizes at which a network may run.

    Raises:
        ConfigError: its batch axis is fixed to a size that was not requested.
    """
    if fixed is None:
        return plan.batch_sizes
    if fixed not in plan.batch_sizes and not plan.default_batch_sizes:
        requested = ", ".join(map(str, plan.batch_sizes))
        raise ConfigError(
            f"{configuration.name} has a fixed batch axis of {fixed}, but the batch sizes are {requested}: "
            f"use --batch-sizes {fixed}, or omit it"
        )
    return (fixed,)


def _batch_sizes(plan: Plan, only: Sequence[int | None]) -> tuple[int, ...]:
    """Return the batch sizes of the plan; without requested ones, those that the networks can run."""
    return tuple(sorted({size for size in only if size is not None} | set(plan.batch_sizes if None in only else ())))


def _failure(network: Network, sizes: Sequence[int]) -> Exception | None:
    """Return why a network cannot run the first of these batch sizes; None if it can run one of them."""
    first: Exception | None = None
    for size in sizes:
        try:
            network.prepare(size)
            network.run(1, Phases())
            return None
        except Exception as error:
            first = first or error
    return first


def _check(network: Network, name: str, sizes: Sequence[int]) -> int:
    """Check the outputs at the smallest batch size that the network can run; the run notes those that it cannot.

    Returns:
        That batch size.

    Raises:
        ConfigError: an option or a file is missing, or wrong.
        NetworkError: wrong outputs, or no batch size can be run.
    """
    first: Exception | None = None
    for size in sizes:
        try:
            if not run_check(network, size):
                raise WrongOutputsError(f"{name}: its check reports wrong outputs")
            return size
        except (ConfigError, WrongOutputsError):
            raise
        except Exception as error:
            logger.info("%s: batch size %d: %s", name, size, describe(error))
            if first is not None and str(error) == str(first):
                # The batch size is not the reason.
                break
            first = first or error
    if isinstance(first, JoulewatchError):
        raise first
    assert first is not None
    raise NetworkError(f"{name} cannot run batch size {sizes[0]}: {describe(first)}") from first
