"""Short names of networks: stems, objects, and folders only where names clash."""

from __future__ import annotations

import pytest

from joulewatch_harness.plan.network_names import name_networks, short_name, short_names
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.records import Configuration


@pytest.mark.parametrize(
    ("network", "runtime", "name"),
    [
        ("mlp", "onnxruntime", "mlp"),
        ("my.onnx", "onnxruntime", "my"),
        ("/data/nets/my.v2.onnx", "tvm", "my.v2"),
        ("nets/my.xml", "openvino", "my"),
        ("nets/my.pt2", "torch", "my"),
        ("nets/my.engine", "tensorrt", "my"),
        ("lib/mine.py:Mine", "python", "Mine"),
        ("package.module:Mine", "numpy", "Mine"),
        ("builds/vgg10/deploy/driver", "finn", "vgg10"),
        ("deploy", "finn", "deploy"),
        ("meta/llama3.2:1b", "openai", "meta/llama3.2:1b"),
        ("team/net.onnx", "kserve", "team/net.onnx"),
        ("a/b", "process", "a/b"),
        ("net.v1", "onnxruntime", "net.v1"),
    ],
)
def test_a_name_has_no_folder_and_no_suffix(network: str, runtime: str, name: str) -> None:
    assert short_name(network, runtime) == name


@pytest.mark.parametrize(
    ("networks", "names"),
    [
        (["a/model.onnx", "b/model.onnx", "c/other.onnx"], ["a/model", "b/model", "other"]),
        (["x/a/m.onnx", "y/a/m.onnx", "x/b/m.onnx"], ["x/a/m", "y/a/m", "b/m"]),
        (["m.onnx", "b/m.onnx"], ["m", "b/m"]),
        (["/a/m.onnx", "/b/m.onnx"], ["a/m", "b/m"]),
        (["/m.onnx", "/b/m.onnx"], ["/m", "b/m"]),
        (["mlp", "nets/mlp.onnx"], ["mlp", "nets/mlp"]),
        (["nets/m.onnx", "nets/m.xml"], ["m.onnx", "m.xml"]),
    ],
)
def test_names_that_clash_get_the_shortest_folders_that_differ(networks: list[str], names: list[str]) -> None:
    found = short_names((network, "openvino") for network in networks)
    assert [found[network, "openvino"] for network in networks] == names


def test_one_network_in_two_runtimes_keeps_its_name() -> None:
    found = short_names([("nets/m.onnx", "onnxruntime"), ("nets/m.onnx", "openvino"), ("nets/m.xml", "openvino")])
    assert list(found.values()) == ["m", "m.onnx", "m.xml"]


def test_objects_that_clash_get_their_file() -> None:
    found = short_names([("lib/a.py:Net", "python"), ("lib/b.py:Net", "python"), ("pkg.c:Net", "python")])
    assert list(found.values()) == ["a/Net", "b/Net", "c/Net"]


def test_a_plan_keeps_the_path_for_the_runtime_and_the_journal() -> None:
    plan = make_plan({"configurations": ["nets/a.onnx", "more/a.onnx", "mlp"]}, "x")
    assert [(item.name, item.network, item.path, item.target) for item in plan.configurations] == [
        ("nets/a/onnxruntime/native", "nets/a", "nets/a.onnx", "nets/a.onnx"),
        ("more/a/onnxruntime/native", "more/a", "more/a.onnx", "more/a.onnx"),
        ("mlp/onnxruntime/fp32", "mlp", "", "mlp"),
    ]
    assert [item["network"] for item in plan.to_mapping()["configurations"]] == ["nets/a.onnx", "more/a.onnx", "mlp"]


def test_names_that_are_short_already_stay() -> None:
    """A run of which one of two clashing networks could not be loaded."""
    named = Configuration(name="n", network="a/m", path="x/a/m.onnx", runtime="onnxruntime", precision="fp32")
    assert name_networks([named]) == (named,)
