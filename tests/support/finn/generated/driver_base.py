"""An imitation of FINN's driver base: the same methods with the same meaning, written anew, without weights to load."""

import inspect

import numpy as np
from finn.util.data_packing import finnpy_to_packed_bytearray, packed_bytearray_to_finnpy
from pynq import Overlay, allocate
from pynq.ps import Clocks

# FINN requests the fast mode; FINN+ always unpacks fast.
_takes = inspect.signature(packed_bytearray_to_finnpy).parameters
FAST_UNPACKING = {"fast_mode": True} if "fast_mode" in _takes else {}


class FINNExampleOverlay(Overlay):
    """One accelerator between an input and an output DMA engine."""

    def __init__(
        self,
        bitfile_name,
        platform,
        io_shape_dict,
        batch_size=1,
        fclk_mhz=100.0,
        device=None,
        download=True,
        runtime_weight_dir="runtime_weights/",
    ):
        super().__init__(bitfile_name, download=download, device=device)
        self.runtime_weight_dir = runtime_weight_dir
        self._io = io_shape_dict
        self.platform = platform
        self.batch_size = batch_size
        self.idma = [getattr(self, name) for name in io_shape_dict["input_dma_name"]]
        self.odma = [getattr(self, name) for name in io_shape_dict["output_dma_name"]]
        self.odma_handle = [None] * len(self.odma)
        if platform == "zynq-iodma" and fclk_mhz > 0:
            Clocks.fclk0_mhz = fclk_mhz

    def _shape(self, key, ind):
        return (self.batch_size, *self._io[key][ind][1:])

    def idt(self, ind=0):
        return self._io["idt"][ind]

    def odt(self, ind=0):
        return self._io["odt"][ind]

    def ishape_normal(self, ind=0):
        return self._shape("ishape_normal", ind)

    def oshape_normal(self, ind=0):
        return self._shape("oshape_normal", ind)

    def ishape_folded(self, ind=0):
        return self._shape("ishape_folded", ind)

    def oshape_folded(self, ind=0):
        return self._shape("oshape_folded", ind)

    @property
    def num_inputs(self):
        return self._io["num_inputs"]

    @property
    def num_outputs(self):
        return self._io["num_outputs"]

    @property
    def batch_size(self):
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value):
        self._batch_size = value
        cacheable = self.platform == "zynq-iodma"

        def buffer(key, ind):
            return allocate(self._shape(key, ind), dtype=np.uint8, cacheable=cacheable, target=self.device)

        self.ibuf_packed_device = [buffer("ishape_packed", ind) for ind in range(self.num_inputs)]
        self.obuf_packed_device = [buffer("oshape_packed", ind) for ind in range(self.num_outputs)]
        self.obuf_packed = [np.empty(one.shape, dtype=np.uint8) for one in self.obuf_packed_device]

    def fold_input(self, ibuf_normal, ind=0):
        assert ibuf_normal.shape == self.ishape_normal(ind)
        return ibuf_normal.reshape(self.ishape_folded(ind))

    def pack_input(self, ibuf_folded, ind=0):
        return finnpy_to_packed_bytearray(
            ibuf_folded, self.idt(ind), reverse_endian=True, reverse_inner=True, fast_mode=True
        )

    def unpack_output(self, obuf_packed, ind=0):
        return packed_bytearray_to_finnpy(
            obuf_packed,
            self.odt(ind),
            self.oshape_folded(ind),
            reverse_endian=True,
            reverse_inner=True,
            **FAST_UNPACKING,
        )

    def unfold_output(self, obuf_folded, ind=0):
        return obuf_folded.reshape(self.oshape_normal(ind))

    def copy_input_data_to_device(self, data, ind=0):
        np.copyto(self.ibuf_packed_device[ind], data)
        self.ibuf_packed_device[ind].flush()

    def copy_output_data_from_device(self, data, ind=0):
        self.obuf_packed_device[ind].invalidate()
        np.copyto(data, self.obuf_packed_device[ind])

    def execute_on_buffers(self, asynch=False, batch_size=None):
        batch = self.batch_size if batch_size is None else batch_size
        if self.platform == "zynq-iodma":
            for engine, buffer in zip(
                self.odma + self.idma, self.obuf_packed_device + self.ibuf_packed_device, strict=True
            ):
                assert engine.read(0x00) & 0x4, "a DMA engine is not idle"
                engine.write(0x10, buffer.device_address)
                engine.write(0x1C, batch)
                engine.write(0x00, 1)
        else:
            for engine, buffer in zip(self.idma, self.ibuf_packed_device, strict=True):
                engine.start(buffer, batch)
            for ind, engine in enumerate(self.odma):
                assert self.odma_handle[ind] is None, "a DMA engine is running"
                self.odma_handle[ind] = engine.start(self.obuf_packed_device[ind], batch)
        if asynch is False:
            self.wait_until_finished()

    def wait_until_finished(self):
        for ind, engine in enumerate(self.odma):
            if self.platform == "zynq-iodma":
                while not engine.read(0x00) & 0x2:
                    pass
            else:
                self.odma_handle[ind].wait()
                self.odma_handle[ind] = None

    def throughput_test(self):
        raise AssertionError("one launch on stale buffers: nobody may call this")
