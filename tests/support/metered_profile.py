"""``joulewatch`` on a machine whose energy counter is known: ``python metered_profile.py COUNTER ARGUMENT...``.

Each batch that ONNX Runtime computes in this process advances the counter, a file ``energy_uj``, by what the
coefficients below give for its network. Nothing else does but a small power at rest, so the energy does not depend on
how busy this machine is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.cli import main
from joulewatch_harness.prediction.features import Features, features_of_model

JOULES_PER_MAC: Final = 3e-9
JOULES_PER_ACTIVATION: Final = 1e-8
JOULES_PER_LAYER: Final = 2e-4
"""Once per batch."""
IDLE_WATTS: Final = 0.01
IDLE_STEP_S: Final = 0.005


def joules_per_batch(features: Features, batch_size: int) -> float:
    """Return the true energy of a batch, without the power at rest."""
    per_inference = (
        JOULES_PER_MAC * (features.macs_dense + features.macs_depthwise)
        + JOULES_PER_ACTIVATION * features.activation_elements
    )
    return batch_size * per_inference + JOULES_PER_LAYER * features.layers


class Counter:
    """The counter of a RAPL zone, in a file that the exporter reads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY)
        self._lock = threading.Lock()
        self._joules = 1.0
        self._idle_since_s = time.monotonic()

    def add(self, joules: float) -> None:
        """Advance the counter by an energy, and by the power at rest since the last call."""
        with self._lock:
            now_s = time.monotonic()
            self._joules += joules + IDLE_WATTS * (now_s - self._idle_since_s)
            self._idle_since_s = now_s
            # One write of constant length, so that a reader never gets a part of it.
            os.pwrite(self._file, f"{self._joules * 1e6:020.0f}\n".encode(), 0)

    def rest(self) -> None:
        """Advance the counter by the power at rest, for ever."""
        while True:
            time.sleep(IDLE_STEP_S)
            self.add(0.0)


class Session:
    """An ONNX Runtime session that advances a counter."""

    def __init__(self, session: Any, network: Any, features: Features, counter: Counter) -> None:
        self._session, self._network, self._features, self._counter = session, network, features, counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        self._counter.add(joules_per_batch(self._features, self._network._batch))


def install(counter: Counter) -> None:
    """Make every ONNX Runtime network of this process advance the counter."""
    from joulewatch_harness.runtimes.onnxruntime.network import OnnxRuntimeNetwork

    load = OnnxRuntimeNetwork.load

    def metered_load(self: Any) -> None:
        load(self)
        self._session = Session(self._session, self, features_of_model(self._source.path, {}), counter)

    OnnxRuntimeNetwork.load = metered_load  # type: ignore[method-assign]


if __name__ == "__main__":
    energy = Counter(Path(sys.argv[1]))
    install(energy)
    threading.Thread(target=energy.rest, daemon=True).start()
    sys.exit(main(sys.argv[2:]))
