"""Read the SETTINGS of a `kernel.py` without running it, and make copies with other settings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from arc_ttt.errors import InputError


def kernel_with(text: str, changes: dict[str, object]) -> str:
    """The text of kernel.py with `changes` added at the end of SETTINGS, where they override earlier values.

    Raises:
        InputError: the text has no SETTINGS.
    """
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in changes.items())
    head, found, tail = text.partition("SETTINGS: dict[str, object] = {\n")
    end = tail.find("\n}\n")
    if not found or end < 0:
        raise InputError("kernel.py: SETTINGS is not where it should be")
    return f"{head}{found}{tail[: end + 1]}{lines}{tail[end + 1 :]}"


def shortened(limit_s: float) -> dict[str, object]:
    """The changes to SETTINGS for a run with a shorter limit, in seconds.

    The reserve follows from the limit, because a reserve that was chosen for hours may exceed the short limit.
    """
    return {"run.limit_s": limit_s, "run.reserve_s": 0.0}


def read_settings(path: Path) -> dict[str, Any]:
    """SETTINGS of a kernel.py. Raises InputError if they cannot be read."""
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SETTINGS" and node.value is not None:
                assert isinstance(node.value, ast.Dict)
                pairs = zip(node.value.keys, node.value.values, strict=True)
                return {str(ast.literal_eval(k)): _number(v) for k, v in pairs if k is not None}
    except (OSError, SyntaxError, ValueError, AssertionError) as error:
        raise InputError(f"{path}: SETTINGS cannot be read: {error}") from error
    raise InputError(f"{path}: there are no SETTINGS")


def _number(node: ast.expr) -> Any:
    """A literal, or a product of literals."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _number(node.left) * _number(node.right)
    return ast.literal_eval(node)
