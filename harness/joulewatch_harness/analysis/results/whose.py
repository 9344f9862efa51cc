"""Whose energy: that of a component in a window, shared between the network, other programs and the machine. Pure.

The energy above idle power (*active*) of processors and memory is shared by processor time. Memory has no better weight
without counters of its traffic. A GPU or FPGA has one user, the network: its active energy is the network's, unless
several networks run at the same time. Nothing is cut off or spread: the parts and the idle energy of a window add up to
the energy of the devices, also where noise makes the active energy negative.

The parts of the active energy:

* ``own``: the processes of the measured network.
* ``concurrent``: networks that are measured at the same time.
* ``measuring``: what measures: the harness, exporters, Prometheus.
* ``system``: kernel threads, interrupts, steal.
* ``others``: everything else.

Each part has a bound. Equal processor times are not equal energies: two programs may differ in watts per processor by
the factor that ``joulewatch calibrate --workloads`` has measured on the machine, else by ``DEFAULT_RATIO``. The bound
of a share is that of ``share_bounds``; it also contains the rounding of the kernel, which is in ``others``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO, share_bounds
from joulewatch_harness.analysis.results.model import Consumer, Part, WindowShares
from joulewatch_harness.records import Window

ROUNDING_S: Final = 0.02
"""Largest error of the machine's processor time in a window: the kernel rounds two counts to 10 ms at either edge."""
BY_TIME: Final = frozenset({"cpu", "memory"})
"""Components that are shared by processor time."""
ONE_USER: Final = frozenset({"gpu", "fpga"})
Seconds = Mapping[Consumer, float]


def seconds_of(window: Window) -> dict[Consumer, float] | None:
    """Return the processor time of each consumer in a window; None if that of the network is not known."""
    used = window.processor_time
    if used is None or window.configuration not in used.networks_s:
        return None
    own_s = used.networks_s[window.configuration]
    seconds: dict[Consumer, float] = {
        "own": own_s,
        "concurrent": sum(used.networks_s.values()) - own_s,
        "measuring": used.measuring_s,
        "others": used.others_s,
        "system": used.system_s,
    }
    return seconds if sum(seconds.values()) > 0 else None


def share_by_time(seconds: Seconds, active_joules: float, ratio: float = DEFAULT_RATIO) -> dict[Consumer, Part]:
    """Share an energy by processor time."""
    total_s = sum(seconds.values())
    parts = {}
    for name, used_s in seconds.items():
        # The error is in the rest of the machine's time, so for all but the others it is in the time of the others.
        own_error_s, rest_error_s = (ROUNDING_S, 0.0) if name == "others" else (0.0, ROUNDING_S)
        rest_s = total_s - used_s
        low, high = (
            share_bounds(part_s / (part_s + of_rest_s) if part_s > 0 else 0.0, ratio)[side]
            for side, part_s, of_rest_s in (
                (0, used_s - own_error_s, rest_s + rest_error_s),
                (1, used_s + own_error_s, max(rest_s - rest_error_s, 0.0)),
            )
        )
        parts[name] = _part(used_s / total_s, low, high, active_joules)
    return parts


def to_one_user(active_joules: float, others: Iterable[Consumer]) -> dict[Consumer, Part]:
    """Give an energy to the network."""
    parts = {name: _part(0.0, 0.0, 0.0, active_joules) for name in others}
    return {**parts, "own": _part(1.0, 1.0, 1.0, active_joules)}


def share_window(
    component: str, window: Window, joules: float, idle_joules: float, ratio: float = DEFAULT_RATIO
) -> WindowShares | str:
    """Share the energy of one component in one window, or return the reason why that is not possible.

    Args:
        component: Component of the devices.
        window: The window.
        joules: Energy of the devices.
        idle_joules: Their idle power times the length of the window.
        ratio: How much the watts per processor of two programs differ at most.
    """
    seconds = seconds_of(window)
    if seconds is None:
        return "the processor time of the network is not known"
    active_joules = joules - idle_joules
    if component in BY_TIME:
        parts = share_by_time(seconds, active_joules, ratio)
    elif component not in ONE_USER:
        return f"nothing shows who uses the component {component}"
    elif seconds["concurrent"] > 0:
        return f"several networks ran at the same time, and nothing shows their shares of the {component.upper()}"
    else:
        parts, ratio = to_one_user(active_joules, seconds), 1.0
    return WindowShares(window=window.index, joules=joules, idle_joules=idle_joules, ratio=ratio, parts=parts)


def joined(shares: Iterable[WindowShares]) -> WindowShares:
    """Return the sum over components, or over windows; the bounds add up, because their errors may be the same."""
    shares = tuple(shares)
    names = dict.fromkeys(name for one in shares for name in one.parts)
    return WindowShares(
        window=shares[0].window,
        joules=sum(one.joules for one in shares),
        idle_joules=sum(one.idle_joules for one in shares),
        ratio=max(one.ratio for one in shares),
        parts={
            name: Part(
                joules=sum(one.parts[name].joules for one in shares),
                low_joules=sum(one.parts[name].low_joules for one in shares),
                high_joules=sum(one.parts[name].high_joules for one in shares),
            )
            for name in names
        },
    )


def _part(share: float, low: float, high: float, joules: float) -> Part:
    bounds = sorted((low * joules, high * joules))
    return Part(joules=share * joules, low_joules=bounds[0], high_joules=bounds[1])
