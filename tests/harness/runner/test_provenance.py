"""Provenance from a tree on disk and from this machine; missing facts are omitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from joulewatch_harness.runner.provenance import collect


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def cpuinfo(flags: str) -> str:
    threads = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 0, 0), (5, 0, 1), (6, 1, 0), (7, 1, 1)]
    return "\n".join(
        f"processor\t: {n}\nmodel name\t: AMD EPYC 7763\nphysical id\t: {s}\ncore id\t: {c}\nflags\t\t: {flags}\n"
        for n, s, c in threads
    )


def test_facts_of_a_bare_metal_node(tmp_path: Path) -> None:
    procfs = write(
        tmp_path / "proc",
        {
            "cpuinfo": cpuinfo("fpu avx2"),
            "meminfo": "MemTotal:       263921664 kB\nMemFree: 1 kB\n",
            "loadavg": "0.10 0.20 0.30 1/100 1\n",
            "driver/nvidia/gpus/0000:41:00.0/information": "Model: \t\t NVIDIA H200\nIRQ: 5\n",
        },
    )
    sysfs = write(
        tmp_path / "sys",
        {
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
            "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3529052\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq\n",
            "devices/system/cpu/smt/control": "on\n",
            "devices/system/cpu/cpufreq/boost": "1\n",
            "class/powercap/intel-rapl:0/constraint_0_name": "long_term\n",
            "class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "225000000\n",
            "class/powercap/intel-rapl:0/constraint_1_power_limit_uw": "\n",
            "class/dmi/id/sys_vendor": "Supermicro\n",
            "class/dmi/id/product_name": "AS-4124\n",
            "bus/pci/devices/0000:41:00.0/class": "0x030200\n",
            "bus/pci/devices/0000:41:00.0/vendor": "0x10de\n",
            "bus/pci/devices/0000:01:00.0/class": "0x120000\n",
            "bus/pci/devices/0000:01:00.0/vendor": "0x10ee\n",
            "bus/pci/devices/0000:01:00.0/device": "0x500c\n",
            "bus/pci/devices/0000:02:00.0/class": "0x020000\n",
            "bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
        },
    )
    facts = collect(sysfs, procfs)
    cpu = facts["cpu"]
    assert (cpu["model"], cpu["sockets"], cpu["cores"], cpu["threads"]) == ("AMD EPYC 7763", 2, 4, 8)
    assert (cpu["governor"], cpu["max_hertz"], cpu["smt"], cpu["turbo"]) == (
        "performance, powersave",
        3_529_052_000,
        "on",
        "on",
    )
    assert cpu["power_limits_watts"] == {"intel-rapl:0 long_term": pytest.approx(225.0)}
    assert facts["memory_bytes"] == 263921664 * 1024
    assert facts["accelerators"] == [
        "NVIDIA H200 at 0000:41:00.0",
        "AMD Xilinx processing accelerator 0x500c at 0000:01:00.0",
    ]
    assert facts["load_average"] == [0.1, 0.2, 0.3]
    assert "virtualisation" not in facts


def test_a_virtual_machine_is_recognised(tmp_path: Path) -> None:
    procfs = write(tmp_path / "proc", {"cpuinfo": cpuinfo("fpu hypervisor")})
    sysfs = write(tmp_path / "sys", {"class/dmi/id/sys_vendor": "QEMU\n"})
    assert collect(sysfs, procfs)["virtualisation"] == "QEMU"


def test_missing_files_are_not_an_error(tmp_path: Path) -> None:
    facts = collect(tmp_path / "none", tmp_path / "none")
    assert facts["python"]
    assert "memory_bytes" not in facts


def test_facts_of_this_machine_are_json_values() -> None:
    facts = collect()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]["threads"] >= 1
    assert "numpy" in facts["versions"]
