"""How large a module, a class and a list of parameters may be: what is longer holds more than one responsibility."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "kernel.py", *sorted((ROOT / "src").rglob("*.py"))]
MOST_LINES = 400
MOST_CLASS_LINES = 300
MOST_PARAMETERS = 8


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that a caller sees: `self` and `cls` do not count."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_classes_and_parameter_lists_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = [f"{path.name}: {len(text.splitlines())} lines"] if len(text.splitlines()) > MOST_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_CLASS_LINES:
            wrong.append(f"class {node.name}: {lines} lines")
        if isinstance(node, ast.FunctionDef) and parameters(node) > MOST_PARAMETERS:
            wrong.append(f"{node.name}: {parameters(node)} parameters")
    assert wrong == []


def test_kernel_py_shows_its_settings_on_the_first_screen_and_is_short() -> None:
    lines = (ROOT / "kernel.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("SETTINGS") for line in lines[:25])
