"""Shares of the processors by weight, from trees whose shares are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import dictionaries, floats, lists, sampled_from

from joulewatch_exporter.attribution.reservations import own_shares, reserved_shares

WEIGHTS = {
    "kubepods.slice": 300.0,
    "kubepods.slice/pod1": 20.0,
    "kubepods.slice/pod2": 60.0,
    "system.slice": 100.0,
    "system.slice/nginx.service": 100.0,
    "system.slice/sshd.service": 100.0,
}


def test_a_share_is_the_product_of_the_levels() -> None:
    assert reserved_shares(WEIGHTS, WEIGHTS.__getitem__) == {
        "": 1.0,
        "kubepods.slice": 0.75,
        "kubepods.slice/pod1": 0.1875,
        "kubepods.slice/pod2": 0.5625,
        "system.slice": 0.25,
        "system.slice/nginx.service": 0.125,
        "system.slice/sshd.service": 0.125,
    }


def test_a_workload_has_no_share_of_those_inside_it() -> None:
    shares = reserved_shares(WEIGHTS, WEIGHTS.__getitem__)
    shown = ["system.slice", "system.slice/nginx.service", "kubepods.slice/pod2", "gone.service"]
    assert own_shares(shares, shown) == {
        "system.slice": 0.125,
        "system.slice/nginx.service": 0.125,
        "kubepods.slice/pod2": 0.5625,
    }


def test_a_cgroup_that_runs_only_on_idle_processors_reserves_none() -> None:
    """Its ``cpu.weight`` reads 0 (``cpu.idle``)."""
    assert reserved_shares(["a", "b"], {"a": 0.0, "b": 5.0}.__getitem__) == {"": 1.0, "a": 0.0, "b": 1.0}
    assert reserved_shares(["a", "a/b"], lambda _: 0.0) == {"": 1.0, "a": 0.0, "a/b": 0.0}


def test_children_of_a_parent_that_is_gone_are_ignored() -> None:
    assert reserved_shares(["a/b", "c"], lambda _: 1.0) == {"": 1.0, "c": 1.0}


@given(
    weights=dictionaries(
        lists(sampled_from("abc"), min_size=1, max_size=4).map("/".join), floats(1.0, 10_000.0), min_size=1
    ),
    shown=lists(lists(sampled_from("abc"), min_size=1, max_size=4).map("/".join)),
)
def test_own_shares_add_up_to_one_at_most(weights: dict[str, float], shown: list[str]) -> None:
    nodes = {"/".join(key.split("/")[: level + 1]) for key in weights for level in range(key.count("/") + 1)}
    shares = reserved_shares(nodes, lambda key: weights.get(key, 100.0))
    own = own_shares(shares, shown)
    assert all(share >= 0 for share in own.values())
    assert sum(own.values()) <= 1 + 1e-9
    # All of the tree together have all of it: what is in no leaf is in a node above.
    assert sum(own_shares(shares, nodes).values()) == pytest.approx(1.0)
