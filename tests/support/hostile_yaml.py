"""YAML that would need too much memory or recursion, with the error that both packages must raise."""

from __future__ import annotations

_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = {
    "billion-laughs": (_LAUGHS, "more than 1000000 values after its aliases are expanded"),
    "recursive": ("a: &a [*a]\n", "an alias contains itself"),
    "deep": ("[" * 100 + "]" * 100, "nested deeper than 50 levels"),
    "very-deep": ("[" * 100_000, "is not valid YAML: nested too deeply"),
    "deep-mappings": ("{a: " * 5_000, "is not valid YAML: nested too deeply"),
}
