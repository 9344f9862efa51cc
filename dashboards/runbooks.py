"""The address of this project, and the runbooks of the alerts that follow from it."""

from __future__ import annotations

import re
from typing import Final

PROJECT_URL: Final = ""
"""Address of the repository, such as https://github.com/OWNER/joulewatch. Empty: it is not published, and no file has a
link to it. A test compares it with ``[project.urls]`` in pyproject.toml."""


def with_runbooks(rules: str, project_url: str) -> str:
    """Return the text of a file of rules in which each alert links to its section in README.md.

    Args:
        rules: The text; links that it already has are replaced.
        project_url: Address of the repository; empty: the alerts have no links.
    """
    rules = re.sub(r"(?m)^ *runbook_url: .*\n", "", rules)
    if not project_url:
        return rules
    return re.sub(
        r"(?m)^( *)- alert: (\w+)\n(?:.*\n)*?\1  annotations:\n",
        lambda alert: (
            f"{alert[0]}{alert[1]}    runbook_url: {project_url}/blob/main/dashboards/README.md#{alert[2].lower()}\n"
        ),
        rules,
    )
