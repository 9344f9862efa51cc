# mypy: disable-error-code="valid-type"
# No postponed annotations: TVM's script reads them as they are.
"""The instruction that multiplies and adds four pairs of bytes (VNNI), in the form that TVM's LLVM requires.

TVM 0.27 contains LLVM 22, whose ``vpdpbusd`` has factors of bytes; TVM's intrinsic of that name still passes 32-bit
words, so that every schedule with it fails to build. The variant for AVX-512 without VNNI adds pairs in 16 bits, which
overflow: it is never used (``tuning.space``).

This module repeats both descriptions because TVM's module takes up to a minute to import: it parses the intrinsics of
all other targets.
"""

from typing import Final

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

NAME: Final = "dot_16x4_vnni"
"""Name of the intrinsic in TVM's rules for schedules."""
FEATURE: Final = "avx512vnni"
"""LLVM's name of the processor feature that the instruction needs."""


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def _described(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], A[0:4], B[0:16, 0:4])
        T.writes(C[0:16])
        for i in T.serial(0, 16):
            for k in T.serial(0, 4):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def _called(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], A[0:4], B[0:16, 0:4])
        T.writes(C[0:16])
        C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            C.vload([0], dtype="int32x16"),
            T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), 16), dtype="uint8x64"),
            B.vload([0, 0], dtype="int8x64"),
            dtype="int32x16",
        )


def register() -> None:
    """Replace TVM's intrinsic, under the name that schedules in a database use."""
    TensorIntrin.register(NAME, _described, _called, override=True)
