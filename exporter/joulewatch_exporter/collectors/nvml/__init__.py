"""NVIDIA GPUs by NVML: `collector` reads them, `gpu` knows what each can tell, `library` what NVML's answers mean."""

from __future__ import annotations

from joulewatch_exporter.collectors.nvml.collector import NvmlCollector, NvmlOptions

__all__ = ["NvmlCollector", "NvmlOptions"]
