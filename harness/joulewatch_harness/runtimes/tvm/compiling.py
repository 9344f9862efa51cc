"""Compile fused kernels to a program: apply schedules of the database, generate code, create a virtual machine."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from joulewatch_harness.runtimes.tvm import importing

_SCHEDULED = "tirx.is_scheduled"


def scheduled(module: Any, target: Any, database: Any | None) -> tuple[Any, int]:
    """Apply the schedules of the database to the kernels.

    Args:
        module: From ``importing.fused``.
        target: A ``tvm.target.Target``.
        database: From ``tuning.open_database``.

    Returns:
        The module, and the number of kernels with a schedule.
    """
    with target, tvm.transform.PassContext(opt_level=3):
        if database is not None:
            with database:
                module = relax.transform.MetaScheduleApplyDatabase()(module)
        count = sum(bool(_has_schedule(function)) for function in importing.kernels(module).values())
        if target.kind.name != "llvm":
            from tvm.s_tir import dlight

            # On a GPU, a kernel without a schedule cannot run.
            rules = (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction)
            module = dlight.ApplyDefaultSchedule(*(rule() for rule in rules), dlight.gpu.Fallback())(module)
    return module, count


def _has_schedule(function: Any) -> bool:
    return function.attrs is not None and _SCHEDULED in function.attrs


def built(module: Any, target: Any) -> Any:
    """Return the executable of a module from ``scheduled``."""
    transform = relax.transform
    # The target's default pipeline would fuse kernels again that already have a schedule.
    passes = [
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.compile(module, target, relax_pipeline=tvm.transform.Sequential(passes))
