"""An imitation of the file that FINN writes for each accelerator: RadioML VGG10 with 8-bit input and top-1 output."""

from pynq.pl_server.device import Device  # noqa: F401  (the real one imports it, too)
from qonnx.core.datatype import DataType

io_shape_dict = {
    "idt": [DataType["INT8"]],
    "odt": [DataType["UINT8"]],
    "ishape_normal": [(1, 1024, 1, 2)],
    "oshape_normal": [(1, 1)],
    "ishape_folded": [(1, 1024, 1, 1, 2)],
    "oshape_folded": [(1, 1, 1)],
    "ishape_packed": [(1, 1024, 1, 1, 2)],
    "oshape_packed": [(1, 1, 1)],
    "input_dma_name": ["idma0"],
    "output_dma_name": ["odma0"],
    "number_of_external_weights": 0,
    "num_inputs": 1,
    "num_outputs": 1,
}

if __name__ == "__main__":
    raise SystemExit("only imported here")
