"""The Python driver with DMA, phase by phase.

An inference has the steps of the driver's ``execute``: fold and pack the input, copy it to the device, launch and wait,
copy the output back, unpack and unfold it. Each step is called and timed for every batch, on data that was packed for
it. The driver's ``throughput_test`` is not used: it is one launch on the current content of the buffers.

Packing takes most of a driver's time. Arrays of whole bytes are passed unchanged; all others are converted in Python,
value by value in FINN's own driver, and one frame can then take thousands of times longer than the accelerator.
Therefore the packing of the inputs is checked when the design is loaded, and slow packing is reported.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, JoulewatchError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.finn.arrays import (
    Array,
    fastest_type,
    random_input,
    read_inputs,
    read_npy,
    rows,
)
from joulewatch_harness.runtimes.finn.card import Card

logger = logging.getLogger(__name__)

FIRST_LAUNCH_LIMIT_S: Final = 30.0
"""Time limit of the first launch, in ``check``; the driver itself waits without a limit."""
CHECK_ROWS: Final = 8
PATTERNS: Final = (0xA5, 0x5A)
"""Written to the output buffers before a launch; two patterns, because one could be an output."""
DRIVER_PHASES: Final = ("pack", "copy_in", "copy_out", "unpack")


class DmaNetwork:
    """An accelerator behind DMA (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._files: tuple[Array, ...] | None = None
        self._expected: tuple[NDArray[Any], ...] | None = None
        self._arrays: list[Array] = []
        self._outputs: list[NDArray[Any]] = []
        self._facts: dict[str, Any] = {}

    def describe(self) -> Mapping[str, Any]:
        """Return the design, its types and shapes, and how its inputs are packed; before ``load``, only the build."""
        return {**self._card.describe(), "mode": "dma", **(self._facts if self._card.is_open else {})}

    def load(self) -> None:
        """Load the design and check how the driver packs inputs.

        Raises:
            ConfigError: the driver or a file is not valid, or the device is missing.
            NetworkError: the device refuses the design, or the driver cannot pack inputs for it.
        """
        card = self._card
        card.open()
        try:
            overlay, options = card.overlay, card.options
            count, outputs = int(overlay.num_inputs), int(overlay.num_outputs)
            _check_count("inputs", options.inputs, count)
            _check_count("reference", options.reference, outputs)
            self._files = None
            self._expected = None
            if options.inputs:
                self._files = tuple(
                    read_inputs(path, overlay.idt(ind), tuple(overlay.ishape_normal(ind)[1:]), options.array_type)
                    for ind, path in enumerate(options.inputs)
                )
            if options.reference:
                self._expected = tuple(
                    read_npy(path, tuple(overlay.oshape_normal(ind)[1:])) for ind, path in enumerate(options.reference)
                )
            self._use_dma()
            self._check_packing()
        except JoulewatchError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise card.refused(error, "the driver does not work") from error

    def prepare(self, batch: int) -> None:
        """Claim the card, allocate the device buffers of ``batch`` frames, and make the inputs.

        Raises:
            UnsupportedBatchError: the device has no memory for it.
        """
        card = self._card
        self._arrays, self._outputs = [], []
        card.claim()
        overlay = card.overlay
        try:
            overlay.batch_size = batch
        except (MemoryError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnsupportedBatchError(f"{card.name}: no device buffers for a batch of {batch}: {reason}") from error
        self._use_dma()
        self._arrays = self._inputs(batch)

    def run(self, batches: int, phases: Phases) -> None:
        """Run the prepared batch ``batches`` times, packing and unpacking it every time."""
        overlay = self._card.overlay
        arrays, packed_out = self._arrays, overlay.obuf_packed
        fold, pack, copy_in = overlay.fold_input, overlay.pack_input, overlay.copy_input_data_to_device
        execute, copy_out = overlay.execute_on_buffers, overlay.copy_output_data_from_device
        unpack, unfold, mark = overlay.unpack_output, overlay.unfold_output, phases.batch
        ins, outs = range(len(arrays)), range(len(packed_out))
        for _ in range(batches):
            with phases("pack"):
                packed = [pack(fold(arrays[ind], ind=ind), ind=ind) for ind in ins]
            with phases("copy_in"):
                for ind in ins:
                    copy_in(packed[ind], ind=ind)
            with phases("execute"):
                # False waits for the output; the driver's docstring states the opposite.
                execute(asynch=False)
            with phases("copy_out"):
                for ind in outs:
                    copy_out(packed_out[ind], ind=ind)
            with phases("unpack"):
                self._outputs = [unfold(unpack(packed_out[ind], ind=ind), ind=ind) for ind in outs]
            mark()

    def check(self) -> bool:
        """Run a small batch twice and check the outputs; that batch stays prepared.

        The output buffers contain a pattern before each launch, which the accelerator must overwrite.

        Raises:
            NetworkError: the accelerator does not finish, writes nothing or too little, or the outputs are all zero or
                differ from the reference.
        """
        given = [len(array) for array in (*(self._files or ()), *(self._expected or ()))]
        batch = min([CHECK_ROWS, *given])
        self.prepare(batch)
        card, overlay = self._card, self._card.overlay
        stale = np.ones((len(overlay.obuf_packed), batch), dtype=bool)
        for pattern in PATTERNS:
            for buffer in overlay.obuf_packed_device:
                buffer[:] = pattern
                buffer.flush()
            self._run_once()
            for ind, buffer in enumerate(overlay.obuf_packed):
                stale[ind] &= np.all(np.asarray(buffer).reshape(batch, -1) == pattern, axis=1)
        if stale.any():
            count = int(np.count_nonzero(stale.any(axis=0)))
            raise NetworkError(
                f"{card.name}: the accelerator has not written {count} of {count_of(batch, 'output')}: the bit file "
                "does not belong to this driver, or does not compute"
            )
        if self._expected is not None:
            self._compare(batch)
        elif not card.options.zeros_ok and not any(np.any(array) for array in self._outputs):
            raise NetworkError(
                f"{card.name}: all outputs are zero for {count_of(batch, 'frame')}: give inputs and their expected "
                "outputs (options inputs and reference), or set zeros_ok=true"
            )
        return True

    def close(self) -> None:
        """Release the buffers and the card."""
        self._arrays, self._outputs = [], []
        self._card.close()

    def _use_dma(self) -> None:
        """Select DMA in a design with both modes; otherwise only the driver's ``execute`` would do it."""
        set_mode = getattr(self._card.overlay, "set_current_mode", None)
        if callable(set_mode):
            set_mode("dma")

    def _inputs(self, batch: int) -> list[Array]:
        if self._files is not None:
            return [rows(array, batch) for array in self._files]
        overlay, options = self._card.overlay, self._card.options
        rng = np.random.default_rng(options.seed)
        arrays = []
        for ind in range(int(overlay.num_inputs)):
            kind = overlay.idt(ind)
            array_type = np.dtype(options.array_type) if options.array_type else fastest_type(kind)
            arrays.append(random_input(rng, kind, tuple(overlay.ishape_normal(ind)), array_type))
        return arrays

    def _check_packing(self) -> None:
        """Pack and unpack one frame; note whether packing is fast, and its time."""
        card, overlay = self._card, self._card.overlay
        if overlay.batch_size != 1:
            overlay.batch_size = 1
        _check_bitstring(card.name)
        arrays = self._inputs(1)
        slow, pack_s = [], 0.0
        for ind, array in enumerate(arrays):
            kind = overlay.idt(ind)
            took_s, packed = _timed(lambda a=array, i=ind: overlay.pack_input(overlay.fold_input(a, ind=i), ind=i))
            pack_s += took_s
            one_bit = kind.bitwidth() == 1 and overlay.ishape_folded(ind)[-1] % 8 == 0
            if not one_bit and not np.shares_memory(packed, array):
                slow.append(ind)
        unpack_s = 0.0
        for ind, buffer in enumerate(overlay.obuf_packed):
            buffer[:] = 0
            took_s, _ = _timed(lambda b=buffer, i=ind: overlay.unfold_output(overlay.unpack_output(b, ind=i), ind=i))
            unpack_s += took_s
        kinds = [overlay.idt(ind).name for ind in range(len(arrays))]
        self._facts = {
            "inputs": " ".join(
                f"{kind}[{_sizes(overlay.ishape_normal(ind))}]:{array.dtype}"
                for ind, (kind, array) in enumerate(zip(kinds, arrays, strict=True))
            ),
            "outputs": " ".join(
                f"{overlay.odt(ind).name}[{_sizes(overlay.oshape_normal(ind))}]"
                for ind in range(int(overlay.num_outputs))
            ),
            "fast_packing": str(not slow).lower(),
            "pack_ms_per_frame": f"{pack_s * 1e3:.3g}",
            "unpack_ms_per_frame": f"{unpack_s * 1e3:.3g}",
        }
        for ind in slow:
            warning = _slow_packing(kinds[ind], str(arrays[ind].dtype), pack_s)
            self._facts["warning"] = warning
            logger.warning("%s: %s", card.name, warning)

    def _run_once(self) -> None:
        """Run one batch with a time limit, which the driver's wait does not have."""
        failed: list[BaseException] = []

        def batch() -> None:
            try:
                self.run(1, Phases())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=batch, name="finn-first-launch", daemon=True)
        thread.start()
        thread.join(FIRST_LAUNCH_LIMIT_S)
        if thread.is_alive():
            raise NetworkError(
                f"{self._card.name}: the accelerator did not finish a batch in {FIRST_LAUNCH_LIMIT_S:g} s: the bit "
                "file does not belong to this driver, or its clock is too high"
            )
        if failed:
            error = failed[0]
            if not isinstance(error, Exception):
                raise error
            raise self._card.refused(error, "the first launch failed") from error
        if not self._finished():
            raise NetworkError(
                f"{self._card.name}: execute_on_buffers(asynch=False) returned before the accelerator had finished: "
                "measurements with this driver would be wrong"
            )

    def _finished(self) -> bool:
        overlay = self._card.overlay
        if self._card.build.platform == "alveo":
            return all(handle is None for handle in overlay.odma_handle)
        # Bit 2 of the control register of an HLS core: idle.
        return all(odma.read(0x00) & 0x4 for odma in overlay.odma)

    def _compare(self, batch: int) -> None:
        assert self._expected is not None
        for ind, (output, expected) in enumerate(zip(self._outputs, self._expected, strict=True)):
            found_rows = np.asarray(output, dtype=np.float64).reshape(batch, -1)
            expected_rows = np.asarray(expected[:batch], dtype=np.float64).reshape(batch, -1)
            same = np.all(np.isclose(found_rows, expected_rows, rtol=1e-4, atol=1e-6), axis=1)
            if not same.all():
                number = int(np.argmin(same))
                zeros = "; they are all zero" if not np.any(found_rows) else ""
                raise NetworkError(
                    f"{self._card.name}: output {ind} differs from {self._card.options.reference[ind]} in "
                    f"{int(np.count_nonzero(~same))} of {count_of(batch, 'row')}, first in row {number}{zeros}"
                )


def driver_share(phases: Phases) -> float:
    """Return the driver's share of the phases, 0 to 1: all but ``execute``.

    ``execute`` still contains the launch and the wait of the driver; their cost is the difference to the
    instrumentation mode.
    """
    total_ns = sum(total for _, total in phases.spans.values())
    return sum(phases.spans[name][1] for name in DRIVER_PHASES if name in phases.spans) / max(total_ns, 1)


def _slow_packing(kind: str, array_type: str, pack_s: float) -> str:
    fix = ""
    if kind in ("INT8", "UINT8"):
        fix = f"; arrays of {kind.lower()} (option array_type={kind.lower()}) are passed unchanged"
    elif kind != "FLOAT32":
        fix = "; only INT8, UINT8 and 1-bit inputs are packed fast: build with one of them, and narrow on the chip"
    return (
        f"slow packing: {kind} given as {array_type} is converted in Python, {pack_s * 1e3:.3g} ms per frame at any "
        f"batch size: most of the time and energy of a batch may be the driver's{fix}"
    )


def _timed(step: Any) -> tuple[float, Any]:
    """Run a step three times; return the shortest time in seconds, and the result."""
    best_ns, result = 0, None
    for _ in range(3):
        start_ns = time.monotonic_ns()
        result = step()
        took_ns = time.monotonic_ns() - start_ns
        best_ns = min(best_ns or took_ns, took_ns)
    return best_ns * 1e-9, result


def _check_bitstring(name: str) -> None:
    """Refuse bitstring 5, which does not accept the empty BitArray of FINN's packing."""
    module = sys.modules.get("bitstring")
    version = str(getattr(module, "__version__", ""))
    if version.partition(".")[0].isdecimal() and int(version.partition(".")[0]) >= 5:
        raise ConfigError(f"{name}: bitstring {version} breaks FINN's packing: pip install 'bitstring<5'")


def _check_count(option: str, paths: tuple[Path, ...], count: int) -> None:
    if paths and len(paths) != count:
        raise ConfigError(
            f"finn: option {option} names {count_of(len(paths), 'file')}, but the accelerator has {count}"
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return ",".join(["N", *map(str, shape[1:])])
