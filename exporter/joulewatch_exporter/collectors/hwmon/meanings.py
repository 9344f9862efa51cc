"""What each channel of a chip measures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import physical_packages, read_text_or
from joulewatch_exporter.collectors.hwmon import jetson
from joulewatch_exporter.collectors.hwmon.chips import Channel, Chip, skipped
from joulewatch_exporter.model import Component, Finding, Host, Scope

_GRACE: Final = re.compile(r"(?P<meter>Module|Grace|CPU|SysIO) Power Socket (?P<socket>\d+)", re.IGNORECASE)


AMD_ENERGY: Final = frozenset({"amd_energy", "zenergy"})
"""The driver of AMD's counters, and its fork for newer kernels."""

_I915_TILE: Final = re.compile(r"i915_gt\d+")


@dataclass(frozen=True, slots=True)
class Override:
    """What a chip measures, set by the owner of the board."""

    component: Component
    scope: Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a channel measures."""

    component: Component
    scope: Scope
    device: str
    domain: str


def meanings_of(
    chip: Chip, channels: Sequence[Channel], host: Host, override: Override | None, findings: list[Finding]
) -> list[tuple[Channel, Meaning]]:
    """Return what each channel measures, without channels that repeat another channel of the chip.

    The power of a rail whose energy is counted becomes the momentary power of that channel.
    """
    free: list[Channel] = []
    for channel in channels:
        if not host.claimed.isdisjoint((channel.source, *channel.paths)):
            findings.append(skipped(channel.source, f"{chip.name}: read by another family", device=chip.device))
        elif _is_system(channel) and any(_is_system(other) and other.kind == channel.kind for other in free):
            # occ lists it a second time, with its limit.
            findings.append(skipped(channel.source, f"{chip.name}: repeats the power of the whole system"))
        else:
            free.append(channel)
    powers = {_rail(channel): channel for channel in free if channel.kind == "power"}
    counted = {_rail(channel) for channel in free if channel.kind == "energy"}
    kept = [
        replace(channel, power=powers.get(_rail(channel))) if channel.kind == "energy" else channel
        for channel in free
        if channel.kind == "energy" or _rail(channel) not in counted
    ]
    if override is not None:
        return [
            (
                channel,
                Meaning(component=override.component, scope=override.scope, device=chip.device, domain=channel.domain),
            )
            for channel in kept
        ]
    if chip.name in AMD_ENERGY:
        return _amd_energy(chip, kept, host, findings)
    integrated_gpu = chip.name == "amdgpu" and _is_apu(chip)
    if integrated_gpu:
        findings.append(skipped(chip.identity, "amdgpu in a processor: its power includes the CPU, so it is a part"))
    return [
        (channel, _meaning(chip, channel, host, is_first=channel is kept[0], integrated_gpu=integrated_gpu))
        for channel in kept
    ]


def _meaning(chip: Chip, channel: Channel, host: Host, *, is_first: bool, integrated_gpu: bool) -> Meaning:
    """Return what a channel measures; an unknown channel is a part, which is never summed."""
    device, domain, name = chip.device, channel.domain, chip.name
    if name == "power_meter":
        oem = read_text_or(f"{channel.stem}_oem_info", "")
        if (grace := _GRACE.search(oem)) is not None:
            # Module contains Grace and the GPU; Grace contains CPU and SysIO: only Grace is a device.
            meter, socket = grace["meter"].lower(), f"socket{int(grace['socket'])}"
            is_socket = meter == "grace"
            component: Component = "cpu" if meter in ("grace", "cpu") else "other"
            return Meaning(
                component=component,
                scope="device" if is_socket else "part",
                device=socket,
                domain="package" if is_socket else meter,
            )
        return Meaning(component="node", scope="node", device=device, domain=domain)
    if jetson.is_input(name, channel.label, host):
        return Meaning(component="node", scope="node", device=device, domain=domain)
    if name in jetson.CHIPS:
        component = jetson.COMPONENTS.get(channel.label, "other")
        return Meaning(component=component, scope="part", device=device, domain=domain)
    if name in ("i915", "xe"):
        # energy1 is the card, energy2 of xe the package inside it; DG2 and PVC have the package only.
        return Meaning(component="gpu", scope="device" if is_first else "part", device=device, domain=domain)
    if _I915_TILE.fullmatch(name):
        return Meaning(component="gpu", scope="part", device=device, domain=f"{name.removeprefix('i915_')}-{domain}")
    if name == "amdgpu":
        # power2 exists only on processors (fast PPT): same device, other averaging.
        is_card = channel.number == 1 and not integrated_gpu
        return Meaning(component="gpu", scope="device" if is_card else "part", device=device, domain=domain)
    if name == "fam15h_power":
        return Meaning(component="cpu", scope="device", device=device, domain="package")
    if name == "zenpower":
        return Meaning(component="cpu", scope="part", device=device, domain=domain)
    if _is_system(channel):
        return Meaning(component="node", scope="node", device=device, domain=domain)
    return Meaning(component="other", scope="part", device=device, domain=domain)


def _rail(channel: Channel) -> str:
    """Return what the power and the energy of one rail have in common."""
    return channel.label or str(channel.number)


def _is_system(channel: Channel) -> bool:
    """Return whether the channel measures the whole machine; ibmpowernv and occ label it so."""
    return channel.label.lower() == "system"


def _is_apu(chip: Chip) -> bool:
    """Return whether the GPU is integrated: only then it has vddnb (amdgpu_pm.c, hwmon_attributes_visible)."""
    return read_text_or(f"{chip.directories[0]}/in1_label", "") == "vddnb"


def _amd_energy(
    chip: Chip, channels: Sequence[Channel], host: Host, findings: list[Finding]
) -> list[tuple[Channel, Meaning]]:
    """Return the channels of amd_energy, without an Esocket that the driver repeats for each NUMA node."""
    sockets = [channel for channel in channels if channel.label.startswith("Esocket")]
    packages = len(physical_packages(host.sysfs))
    copies = len(sockets) // packages if packages and len(sockets) % packages == 0 else 1
    meanings: list[tuple[Channel, Meaning]] = []
    for channel in channels:
        if channel in sockets:
            index = sockets.index(channel)
            if index % copies:
                findings.append(
                    skipped(
                        channel.source,
                        f"{channel.label}: same socket as {sockets[index - index % copies].label} "
                        "(the driver lists one per NUMA node)",
                    )
                )
                continue
            meanings.append(
                (
                    channel,
                    Meaning(component="cpu", scope="device", device=f"socket{index // copies}", domain="package"),
                )
            )
        else:
            meanings.append(
                (channel, Meaning(component="cpu", scope="part", device=chip.device, domain=channel.domain))
            )
    return meanings
