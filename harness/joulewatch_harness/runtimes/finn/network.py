"""FINN: dataflow accelerators on FPGAs, driven through the Python driver that FINN generated for them.

The network is the output folder of the build: ``deploy``, the folder above it, or the ``driver`` folder itself.
Two generations of drivers are supported: FINN's own (``driver.py`` with ``driver_base.FINNExampleOverlay``) and
FINN+'s (``settings.json``, with the overlay classes in the folder's ``driver.py`` or in the package
``finn_plus_driver``). Two ways to run them:

- ``mode: dma``, the way an application uses the accelerator: the host packs the input, copies it, launches,
  copies back, unpacks; each step is a phase (``driver.py``);
- ``mode: instrumentation``, FINN+ builds only: a generator on the chip feeds the design, the host sleeps
  (``instrumentation.py``). The difference between the two configurations is the cost of the driver.

FINN's C++ driver is linked into a child process (``harness/children/finn_cpp``) and run with runtime ``process``;
``text.py`` reads the times that FINN's own program prints.
"""

from __future__ import annotations

from collections.abc import Mapping

from joulewatch_harness.network import Network
from joulewatch_harness.runtimes.finn.build import find_build
from joulewatch_harness.runtimes.finn.card import Card
from joulewatch_harness.runtimes.finn.driver import DmaNetwork
from joulewatch_harness.runtimes.finn.instrumentation import InstrumentationNetwork
from joulewatch_harness.runtimes.finn.options import Options


def open_network(network: str, precision: str, options: Mapping[str, str]) -> Network:
    """Return the network, before the driver is imported; the entry point of the runtime.

    Args:
        network: Folder of the build.
        precision: The label in results: a driver does not know the widths inside its accelerator.
        options: See ``Options``.

    Raises:
        ConfigError: the folder, its driver or its bit file is missing, an unknown option, or a mode that the build
            does not have.
    """
    parsed = Options.parse(options)
    build = find_build(network, parsed)
    card = Card(build, parsed)
    if build.mode(parsed.mode) == "instrumentation":
        return InstrumentationNetwork(card)
    return DmaNetwork(card)
