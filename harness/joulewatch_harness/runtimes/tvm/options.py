"""The options of the runtime ``tvm``."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.inputs import InputOptions

COST_MODELS: Final = ("xgb", "random")
PROCESSORS: Final = len(os.sched_getaffinity(0))


def default_cost_model() -> str:
    """Return ``xgb`` if the package xgboost is installed, because it finds good schedules in fewer trials."""
    return "xgb" if importlib.util.find_spec("xgboost") is not None else "random"


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "tvm"

    threads: Annotated[int, Limits(ge=1)] | None = None
    """Threads of a kernel. Default: ``TVM_NUM_THREADS``, or one for each core that this process may use."""
    target: str = ""
    """``cuda``, ``cuda:N`` or a TVM target as JSON. Default: this processor."""
    trials: Annotated[int, Limits(ge=0)] = 0
    """Tuning trials per kernel; 0: use only what earlier tuning has found."""
    cost_model: Annotated[str, Choice(COST_MODELS)] = ""
    """What selects the candidates of tuning. Default: xgb if the package xgboost is installed."""
    copies: bool = False
    """Copy inputs from host memory and outputs to it in each batch; for devices with separate memory."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads > PROCESSORS:
            raise ConfigError(f"threads: must be <= {PROCESSORS}, the processors that this process may use")
        if self.cost_model == "xgb" and default_cost_model() != "xgb":
            raise ConfigError("cost_model: xgb requires the package xgboost: pip install xgboost")
        missing = next((name for name in ("psutil", "cloudpickle") if importlib.util.find_spec(name) is None), "")
        if self.trials and missing:
            raise ConfigError(f"trials: requires the package {missing}: pip install 'joulewatch[tvm]'")
        if self.copies and not self.target.startswith("cuda"):
            raise ConfigError("copies: requires a device with separate memory: set target=cuda")
