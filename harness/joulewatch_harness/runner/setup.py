"""Load networks and prepare batch sizes, with the time and the energy counters read before and after.

Building or tuning an engine may take minutes. It has its own window, outside the measure windows.
"""

from __future__ import annotations

from typing import Final

from joulewatch_harness.network import Network
from joulewatch_harness.plan.plan import scenario_of
from joulewatch_harness.records import Configuration, Setup
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.calls import Cell, LoadedNetwork
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.drivers import driver_of
from joulewatch_harness.runtimes import as_loaded

SHORTEST_WINDOW_S: Final = 1.0
"""A shorter setup has no window, only a duration: the uncertainty of the edges would exceed its energy."""


def load_network(context: RunContext, configuration: Configuration, network: Network) -> LoadedNetwork:
    """Load a network and write its configuration as loaded.

    Raises:
        ConfigError: the network computes in another precision than the plan requests.
        Exception: raised by the network.
    """
    with context.bracket() as bracket:
        network.load()
    scenario = scenario_of(configuration)
    loaded = LoadedNetwork(
        configuration=as_loaded(configuration, network.describe()),
        network=network,
        driver=driver_of(network, scenario, context.clock),
        scenario=scenario,
    )
    context.log.configuration(loaded.configuration)
    _write(context, bracket, Setup(configuration=loaded.name, phase="load", duration_s=bracket.duration_s))
    return loaded


def prepare(context: RunContext, cell: Cell) -> None:
    """Prepare a batch size; the first time is written as setup, because it may build or tune an engine.

    Raises:
        ConfigError: prepared for this batch size, the network computes in another precision than requested.
        Exception: raised by the network.
    """
    network = cell.loaded.network
    if cell.prepared:
        network.prepare(cell.batch_size)
        return
    with context.bracket() as bracket:
        network.prepare(cell.batch_size)
    cell.prepared = True
    loaded = cell.loaded.configuration
    prepared = as_loaded(loaded, network.describe())
    changed = {key: value for key, value in prepared.details.items() if loaded.details.get(key) != value}
    setup = Setup(
        configuration=cell.name,
        phase="prepare",
        duration_s=bracket.duration_s,
        batch_size=cell.batch_size,
        details=changed,
    )
    _write(context, bracket, setup)


def _write(context: RunContext, bracket: Bracket, setup: Setup) -> None:
    """Write a setup as a window or, if it was short, as its duration only."""
    if setup.duration_s < SHORTEST_WINDOW_S:
        context.log.setup(setup)
        return
    context.log.window(
        bracket,
        "setup",
        configuration=setup.configuration,
        phase=setup.phase,
        batch_size=setup.batch_size,
        details=setup.details,
    )
