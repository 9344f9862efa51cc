"""Record the contents of a file of ``recorded`` again, from the installed NVIDIA bindings.

    python tests/support/tensorrt/record.py tests/support/tensorrt/recorded/tensorrt-11.txt

The bindings must be importable; no GPU is needed. ``api.read`` describes the format. Classes and enumerations are
recorded with all members; of CUDA, only the functions, errors and properties that the file names. To record more, add
their names to the file first.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.tensorrt import api


def signature(doc: str, name: str) -> str:
    """``name(first,second=|first)``: the overloads in a docstring; an optional parameter ends in ``=``."""
    overloads = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*?)\)(?: ->.*)?$", doc, re.MULTILINE):
        if match[1].startswith("*args"):
            continue
        # Types may contain commas.
        flat = re.sub(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|<[^<>]*>", "", match[1])
        words = [
            re.sub(r"^(?:size_t|unsigned int|unsigned long long|int) ", "", word.strip()) for word in flat.split(",")
        ]
        names = [re.split("[:=]", word)[0].strip() + "=" * ("=" in word) for word in words if word]
        overloads.append(",".join(word for word in names if word.rstrip("=") != "self"))
    return f"{name}({'|'.join(overloads)})"


def tensorrt(sections: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    trt: Any = importlib.import_module("tensorrt")
    yield f"tensorrt {trt.__version__}", []
    for section in sections:
        kind = getattr(trt, section, None) or getattr(trt.ILogger, section)
        if hasattr(kind, "__members__"):
            yield section, [f"{name}={int(value)}" for name, value in kind.__members__.items()]
            continue
        members = {name: getattr(kind, name) for name in sorted(dir(kind)) if not name.startswith("_")}
        yield (
            section,
            [
                name if isinstance(value, property) else signature(value.__doc__ or "", name)
                for name, value in members.items()
                if isinstance(value, property) or (callable(value) and not isinstance(value, type))
            ],
        )


def cuda(sections: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    runtime: Any = importlib.import_module("cuda.bindings.runtime")
    yield f"cuda.bindings {importlib.import_module('cuda.bindings').__version__}", []
    for section, names in sections.items():
        if section == "functions":
            yield section, [signature(getattr(runtime, name).__doc__.splitlines()[0], name) for name in names]
        elif section == "cudaDeviceProp":
            yield section, [name for name in names if hasattr(runtime.cudaDeviceProp(), name)]
        else:
            place = getattr(runtime, section, runtime)
            yield section, [f"{name}={int(getattr(place, name))}" for name in names]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    (title, _), *sections = api.read(path.stem).items()
    lines = []
    for name, words in (cuda if title.startswith("cuda") else tensorrt)(dict(sections)):
        lines += [f"[{name}]", *textwrap.wrap(" ".join(words), 118, break_long_words=False, break_on_hyphens=False)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
