"""An imitation of the driver.py of early FINN+ builds: DMA, instrumentation, and both in one design."""

from driver_base import FINNExampleOverlay
from pynq import Overlay
from qonnx.core.datatype import DataType


class FINNDMAOverlay(FINNExampleOverlay):
    """FINN's overlay with settings from JSON."""

    def __init__(self, bitfile_name, platform, io_shape_dict, runtime_weight_dir="runtime_weights/", **others):
        io_shape_dict["idt"] = [DataType[text.split("'")[1]] for text in io_shape_dict["idt"]]
        io_shape_dict["odt"] = [DataType[text.split("'")[1]] for text in io_shape_dict["odt"]]
        known = {key: value for key, value in others.items() if key in ("batch_size", "fclk_mhz", "device", "download")}
        io = io_shape_dict | {"input_dma_name": ["idma0"], "output_dma_name": ["odma0"]}
        super().__init__(bitfile_name, platform, io, runtime_weight_dir=runtime_weight_dir, **known)


class FINNInstrumentationOverlay(Overlay):
    """An overlay without DMA, from before the design counted frames."""

    def __init__(self, bitfile_name, platform="zynq", fclk_mhz=100.0, device=None, download=True, **others):
        super().__init__(bitfile_name, download=download, device=device)
        self.fclk_mhz_actual = fclk_mhz
        self.mode = 1

    def _read(self, name):
        return self.instrumentation_wrap_0.read(
            offset=self.ip_dict["instrumentation_wrap_0"]["registers"][name]["address_offset"]
        )

    def start_accelerator(self, throttle_interval=0):
        self.instrumentation_wrap_0.write(offset=0, value=throttle_interval << 1 | 1)

    def stop_accelerator(self):
        self.instrumentation_wrap_0.write(offset=0, value=0)

    def observe_instrumentation(self, debug_print=True):
        status = self._read("status")
        cycles = [self._read(name) for name in ("min_latency", "latency", "interval")]
        return (bool(status & 1), bool(status & 2), 0, 0, *cycles)
