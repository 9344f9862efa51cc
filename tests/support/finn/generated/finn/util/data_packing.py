"""Packs value by value, as slowly as it can be done, but for whole bytes; the bit order is of no matter here."""

import numpy as np


def finnpy_to_packed_bytearray(array, kind, reverse_inner=False, reverse_endian=False, fast_mode=False):
    if fast_mode and kind.bitwidth() == 8 and array.dtype in (np.int8, np.uint8):
        return array.view(np.uint8)
    width = array.shape[-1]
    size = -(-width * kind.bitwidth() // 8)
    rows = []
    for row in array.reshape(-1, width):
        word = 0
        for value in row[::-1]:
            word = word << kind.bitwidth() | int(value) & (1 << kind.bitwidth()) - 1
        rows.append(np.frombuffer(word.to_bytes(size, "little"), dtype=np.uint8))
    return np.stack(rows).reshape(*array.shape[:-1], size)


def packed_bytearray_to_finnpy(packed, kind, shape, reverse_inner=False, reverse_endian=False, fast_mode=False):
    assert kind.bitwidth() == 8
    return packed.view(np.int8 if kind.signed() else np.uint8).reshape(shape).astype(np.float32)
