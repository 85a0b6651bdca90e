"""Settings as people write and read them: files with settings, and the list of all settings."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arc_ttt.errors import SettingsError
from arc_ttt.settings import Settings


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a file by dotted name, and "preset" if it names one.

    The file is TOML, in tables or dotted names; or JSON, such as the report.json of a run, whose "settings" are taken.

    Raises:
        SettingsError: the file cannot be read, or holds no settings. Names and values are not checked here.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror or error}") from error
    except ValueError as error:  # of either format, or of text that is no UTF-8
        raise SettingsError(f"--config {path}: neither TOML nor JSON: {error}") from error
    found = dict(_flat(document.get("settings", document)))
    if not found:
        raise SettingsError(f"--config {path}: holds no settings")
    return found


def _flat(document: object) -> Iterator[tuple[str, Any]]:
    """The values of tables within tables by their dotted names."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            if isinstance(value, Mapping):
                yield from ((f"{name}.{leaf}", inner) for leaf, inner in _flat(value))
            else:
                yield name, value


@dataclass(frozen=True, slots=True)
class ListedSetting:
    """One setting: its dotted name, its default as text, and the text that documents it."""

    name: str
    default: str
    meaning: str


def list_settings() -> list[ListedSetting]:
    """Every setting with its default and the docstring that stands below its field."""
    return [
        ListedSetting(f"{section}.{name}", _as_typed(getattr(part, name)), meanings.get(name, ""))
        for section, part in ((one.name, getattr(Settings(), one.name)) for one in fields(Settings))
        for meanings in [_field_docstrings(type(part))]
        for name in (one.name for one in fields(part))
    ]


def _field_docstrings(section: type) -> dict[str, str]:
    """The strings below the fields of a class, which Python itself does not keep, by the fields' names."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _as_typed(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
