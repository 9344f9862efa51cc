"""The living cgroups of a machine: one walk at the start, inotify from then on, and another walk every minute.

Folders of workloads (slices, the kubelet's, Slurm's) are watched; workloads are not, so their children cost nothing. A
walk finds what inotify missed: dropped events, and folders beyond the bound on watches.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from joulewatch_exporter.attribution.cgroup_mounts import folders, members
from joulewatch_exporter.attribution.inotify import Watcher
from joulewatch_exporter.attribution.names import Names

logger = logging.getLogger(__name__)

Depth = Literal["workload", "container"]

WALK_NS: Final = 60 * 1_000_000_000
MOST_WATCHES: Final = 1024
MOST_NODES: Final = 20_000
_MOST_LEVELS: Final = 16


class CgroupTree:
    """Paths of the cgroups in one hierarchy, below its root: folders, workloads, and parts if they are wanted."""

    def __init__(
        self,
        root: str,
        names: Names,
        *,
        depth: Depth = "workload",
        clock_ns: Callable[[], int] = time.monotonic_ns,
        open_watcher: Callable[[], Watcher] = Watcher,
    ) -> None:
        """Walk the tree once.

        Args:
            root: Where the hierarchy is mounted.
            names: Decides what is a workload.
            depth: Whether parts of workloads are wanted.
            clock_ns: Monotonic clock; replaced in tests.
            open_watcher: Opens inotify; replaced in tests.
        """
        self._root = root
        self._names = names
        self._depth = depth
        self._clock_ns = clock_ns
        self.nodes: set[str] = set()
        """Paths of the living cgroups."""
        self.tops: tuple[str, ...] = ()
        """Those directly below the root."""
        self.refused = ""
        """Why inotify is not used for all folders; empty if it is."""
        self.is_full = False
        """Whether there are more than `MOST_NODES` cgroups: the others count as part of their parent."""
        self._parents: set[str] = set()
        """Those that have others below them."""
        self._watcher: Watcher | None = None
        try:
            self._watcher = open_watcher()
        except OSError as error:
            self.refused = _refusal(error)
        self._walked_at_ns = 0
        self.walk()

    @property
    def is_watched(self) -> bool:
        """Whether new cgroups are seen without a walk."""
        return self._watcher is not None and not self.refused

    def refresh(self) -> None:
        """Take over what came and went; walk the tree if that is due."""
        if self._clock_ns() - self._walked_at_ns >= WALK_NS or not self.is_watched:
            self.walk()
        else:
            self.take_changes()

    def take_changes(self) -> None:
        """Take over what came and went since the last call, as far as inotify reports it; cheap if nothing did."""
        if self._watcher is None:
            self._list_tops()
            return
        try:
            changes = self._watcher.changes()
        except OSError as error:
            self._stop_watching(error)
            changes = None
        if changes is None:
            self.walk()
            return
        if not changes:
            return
        before = len(self._root) + 1
        for folder, name, appeared in changes:
            key = f"{folder}/{name}"[before:]
            if appeared:
                self._visit(key)
            else:
                self._drop(key)
        self._find_tops()

    def walk(self) -> None:
        """Read the whole tree."""
        self._walked_at_ns = self._clock_ns()
        if self._watcher is not None:
            try:
                self._watcher.changes()  # the walk finds what they report
                self.refused = ""
            except OSError as error:
                self._stop_watching(error)
        self.nodes, self._parents = set(), set()
        self.is_full = False
        self._watch("")
        for name in folders(self._root):
            self._visit(name)
        self._find_tops()
        self._names.keep(self.nodes)

    def members(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the path and process identifier of each process in a cgroup and in those below it."""
        return members(self._root, key)

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _visit(self, top: str) -> None:
        """Add a cgroup and those below it."""
        waiting = [top]
        while waiting:
            key = waiting.pop()
            if len(self.nodes) >= MOST_NODES:
                self.is_full = True
                return
            rule = self._names.match(key).rule
            path = f"{self._root}/{key}"
            if rule.level == "folder" and key.count("/") < _MOST_LEVELS:
                # Watched before it is listed, so that nothing is missed in between.
                self._watch(key)
            self.nodes.add(key)
            children = [f"{key}/{name}" for name in folders(path)]
            if rule.level != "folder":
                parts = self._depth == "container"
                children = [child for child in children if self._names.is_shown(child, parts=parts)]
            if children and key.count("/") < _MOST_LEVELS:
                self._parents.add(key)
                waiting.extend(children)

    def _drop(self, key: str) -> None:
        self.nodes.discard(key)
        if key in self._parents:
            below = f"{key}/"
            self._parents.discard(key)
            self.nodes = {node for node in self.nodes if not node.startswith(below)}

    def _watch(self, key: str) -> None:
        if self._watcher is None:
            return
        folder = f"{self._root}/{key}" if key else self._root
        if len(self._watcher) >= MOST_WATCHES and folder not in self._watcher:
            self.refused = f"more than {MOST_WATCHES} folders of cgroups"
            return
        try:
            self._watcher.watch(folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.refused = _refusal(error)

    def _stop_watching(self, error: OSError) -> None:
        self.refused = _refusal(error)
        self.close()

    def _list_tops(self) -> None:
        tops = set(folders(self._root))
        for key in tops - self.nodes:
            self._visit(key)
        for key in set(self.tops) - tops:
            self._drop(key)
        self._find_tops()

    def _find_tops(self) -> None:
        self.tops = tuple(sorted(key for key in self.nodes if "/" not in key))


def _refusal(error: OSError) -> str:
    return f"{error.strerror}"
