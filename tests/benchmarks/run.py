"""``make bench``: all benchmarks, or those named. Results go to ``tests/benchmarks/results``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

BENCHMARKS = (
    "exporter_cost", "attribution_cost", "edge_cost", "largest_node", "many_bmcs", "faulty_node", "soak", "accuracy",
    "measure", "analysis_speed", "coverage", "compare_rates", "process_overhead", "runtime_overhead", "trace_cost",
    "stopping", "dependent_rounds", "gpu", "gpu_networks", "prediction", "sizing", "short_windows", "hostile_clients",
    "peers", "llm_tokens", "fork_storm",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[], metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for a test of the benchmarks")
    args = parser.parse_args()
    for name in args.names or BENCHMARKS:
        importlib.import_module(f"benchmarks.{name}").run(quick=args.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
