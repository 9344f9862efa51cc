"""Write the JSON files of the Grafana dashboards, and the links from the alerts to their runbooks.

    python dashboards/build.py            # write the files
    python dashboards/build.py --check    # exit 1 if a file differs from what this program writes

Metric names come from the exporter's catalog, so the dashboards always use the current names. The JSON is committed:
users need neither this program nor its dependency (grafana-foundation-sdk).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiment import experiment
from fleet import fleet
from kit import to_json
from llm import llm
from llm_rules import llm_rules
from node import node
from results import results
from runbooks import PROJECT_URL, with_runbooks
from trust import trust

FOLDER: Final = Path(__file__).resolve().parent
RULES: Final = FOLDER / "rules" / "joulewatch.rules.yaml"
LLM_RULES: Final = FOLDER / "rules" / "joulewatch.llm.rules.yaml"


def files() -> dict[Path, str]:
    """Return every file that this program writes, with its text."""
    boards = {"fleet": fleet, "node": node, "experiment": experiment, "results": results, "trust": trust, "llm": llm}
    texts = {FOLDER / f"{name}.json": to_json(board()) for name, board in boards.items()}
    return texts | {RULES: with_runbooks(RULES.read_text(encoding="utf-8"), PROJECT_URL), LLM_RULES: llm_rules()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path.name} is out of date: run python dashboards/build.py\n")
        else:
            path.write_text(files()[path], encoding="utf-8")
            sys.stderr.write(f"wrote {path.name}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
