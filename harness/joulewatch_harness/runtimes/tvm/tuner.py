"""The search for schedules, in a separate process that ``tuning`` starts; it prints only its progress."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

from joulewatch_harness.runtimes.tvm import tuning, vnni

LIMIT_S: Final = 120.0
"""Time limit to build or run one schedule; longer than TVM's 30 s, for a machine with other load."""
_LARGEST_ROUND: Final = 64
_BUILDS_PER_WORKER: Final = 256
"""TVM's workers leak memory."""


def main(scratch: str) -> None:
    """Tune the kernels of ``module.json`` according to ``request.json``, and append the results to the database.

    Write one JSON line for each kernel to stdout; the output of TVM goes to stderr.
    """
    progress = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C is for the process that started this one, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(Path(scratch, "request.json").read_text(encoding="utf-8"))
    module = tvm.ir.load_json(Path(scratch, "module.json").read_text(encoding="utf-8"))
    target = tvm.target.Target(json.loads(request["target"]))
    _search(request, module, target, scratch, progress)
    progress.flush()
    # Skip the interpreter's exit, in which TVM's worker pools can wait for each other.
    os._exit(0)


def _end_with_parent() -> None:
    # Not sys.stdin: a thread that waits in it keeps the interpreter from ending.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _search(request: Any, module: Any, target: Any, scratch: str, progress: Any) -> None:
    if target.kind.name == "llvm":
        # TVM imports this in every search; it parses the intrinsics of all targets, which takes up to a minute.
        sys.modules.setdefault("tvm.s_tir.tensor_intrin", ModuleType("tvm.s_tir.tensor_intrin"))
        vnni.register()
    trials = request["trials"]
    database = meta_schedule.database.JSONDatabase(work_dir=request["folder"])
    tasks = meta_schedule.relax_integration.extract_tasks(module, target)
    # Measured before the last process was killed: these kernels are complete.
    open_tasks = [task for task in tasks if _measured(database, task) < trials]
    done = len(tasks) - len(open_tasks)
    progress.write(json.dumps({"done": done, "tasks": len(tasks)}) + "\n")

    @derived_object
    class Progress(meta_schedule.measure_callback.PyMeasureCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.trials: dict[int, int] = {}

        def apply(self, _scheduler: Any, task_id: int, candidates: Any, _built: Any, _ran: Any) -> None:
            self.trials[task_id] = self.trials.get(task_id, 0) + len(candidates)
            ended = sum(count >= trials for count in self.trials.values())
            progress.write(json.dumps({"done": done + ended, "tasks": len(tasks)}) + "\n")

    if not open_tasks:
        return
    contexts, weights = meta_schedule.relax_integration.extracted_tasks_to_tune_contexts(
        open_tasks,
        work_dir=scratch,
        space=tuning.space(target),
        strategy=_strategy(),
        # TVM ignores a seed of 0.
        seed=request["seed"] + 1,
        num_threads=len(os.sched_getaffinity(0)),
    )
    meta_schedule.tune_tasks(
        tasks=contexts,
        task_weights=weights,
        work_dir=scratch,
        max_trials_global=trials * len(open_tasks),
        # Otherwise TVM may spend the whole budget on one of eighteen kernels.
        max_trials_per_task=trials,
        num_trials_per_iter=min(trials, _LARGEST_ROUND),
        builder=_builder(),
        runner=meta_schedule.runner.LocalRunner(timeout_sec=LIMIT_S),
        database=database,
        cost_model=_cost_model(request["cost_model"]),
        measure_callbacks=[*meta_schedule.measure_callback.MeasureCallback.create("default"), Progress()],
        task_scheduler="round-robin",
    )


def _strategy() -> Any:
    """TVM's evolutionary search, which ends after the first round without a new schedule.

    TVM's default is five such rounds: for kernels with a single schedule, such as those that only move data, that is
    half of the time of a tuning.
    """

    @derived_object
    class Search(meta_schedule.search_strategy.PySearchStrategy):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = meta_schedule.search_strategy.EvolutionarySearch()

        def _initialize_with_tune_context(self, context: Any) -> None:
            self.inner._initialize_with_tune_context(context)

        def pre_tuning(self, *arguments: Any) -> None:
            self.inner.pre_tuning(*arguments)

        def post_tuning(self) -> None:
            self.inner.post_tuning()

        def generate_measure_candidates(self) -> Any:
            return self.inner.generate_measure_candidates() or None

        def notify_runner_results(self, *arguments: Any) -> None:
            self.inner.notify_runner_results(*arguments)

        def clone(self) -> Any:
            return Search()

    return Search()


def _builder() -> Any:
    """TVM's builder with persistent workers: TVM starts new workers in each round, and each first parses the intrinsics
    of all targets, which takes longer than the builds."""
    pool = PopenPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)), timeout=LIMIT_S, maximum_process_uses=_BUILDS_PER_WORKER
    )

    # Pickled by value, so that the workers need not find this package.
    def build(module: Any, target: Any) -> str:
        from tvm.driver import build as build_module
        from tvm.s_tir.meta_schedule.builder.local_builder import default_export
        from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

        module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
        return str(default_export(build_module(module, target=target)))

    @derived_object
    class Builder(meta_schedule.builder.PyBuilder):  # type: ignore[misc]
        def build(self, inputs: Any) -> list[Any]:
            work = [(item.mod, item.target) for item in inputs]
            return [
                meta_schedule.builder.BuilderResult(str(outcome.value), None)
                if outcome.status == StatusKind.COMPLETE
                else meta_schedule.builder.BuilderResult(None, f"{outcome.status.name}: {outcome.value}")
                for outcome in pool.map_with_error_catching(lambda pair: build(*pair), work)
            ]

    return Builder()


def _cost_model(name: str) -> Any:
    cores = len(os.sched_getaffinity(0))
    create = meta_schedule.cost_model.CostModel.create
    return create("xgb", num_tuning_cores=cores, tree_method="auto") if name == "xgb" else create(name)


def _measured(database: Any, task: Any) -> int:
    """Return the number of trials of a kernel in the database."""
    module = task.dispatched[0]
    if not database.has_workload(module):
        return 0
    workload = database.commit_workload(module)
    return sum(record.workload.same_as(workload) for record in database.get_all_tuning_records())
