"""Render the chart into plain manifests, for clusters without Helm.

    python deploy/kubernetes/build.py            # rewrites deploy/kubernetes/manifests
    python deploy/kubernetes/build.py --check    # exit 1 if a file differs from what this program writes

The manifests are committed: users need neither Helm nor this program. The dashboards are not in them, because
``kubectl create configmap`` makes a ConfigMap of each JSON file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import helm_python

FOLDER: Final = Path(__file__).resolve().parent
RELEASE: Final = "joulewatch"
MANIFESTS: Final = {
    "exporter": ("serviceaccount", "configmap", "networkpolicy", "service", "daemonset"),
    "prometheus-operator": ("servicemonitor", "prometheusrule"),
}
"""Name of a file -> the templates in it, in the order in which a cluster needs them."""
HEADER: Final = "# Rendered from ../chart by ../build.py. README.md in the folder above has the commands.\n"


def manifests() -> dict[Path, str]:
    """Return every file that this program writes, with its text."""
    with helm_python.Chart.load(FOLDER / "chart") as chart:
        rendered = chart.render({"prometheusOperator": {"enabled": True}}, name=RELEASE)
        prefix = f"{chart.name}/templates"
    files = {}
    for name, templates in MANIFESTS.items():
        documents = [rendered[f"{prefix}/{template}.yaml"].strip() for template in templates]
        text = HEADER + "".join(f"---\n{document}\n" for document in documents)
        # Helm also indents empty lines.
        files[FOLDER / "manifests" / f"{name}.yaml"] = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Render the chart into plain manifests.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = {
        path: text
        for path, text in manifests().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if check:
            sys.stderr.write(f"{path.name} is out of date: run make manifests\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
