"""What the pages say is so: links lead somewhere, commands, options and folders exist, the example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from arc_lab.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
PAGES = [
    ROOT / "README.md",
    ROOT / "tests" / "README.md",
    ROOT / "wheels" / "README.md",
    *sorted(SRC.glob("*.md")),
    *sorted(SRC.glob("arc_lab/**/*.md")),
]
FIGURES = SRC / "arc_lab" / "measurements.md"
"""Its commands are those of the commits that they name."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the site that shows it."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


def help_of(*command: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin", "COLUMNS": "300"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of_code(page: Path) -> list[str]:
    """Lines of code blocks, and code inside of sentences, that are commands."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [*lines, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))]


def uses(pattern: str) -> list[tuple[str, str]]:
    """Page and rest of the line of every command that begins with the pattern."""
    found = []
    for page in PAGES:
        if page != FIGURES:
            for line in lines_of_code(page):
                found += [(name(page), rest) for rest in re.findall(pattern, line)]
    return found


def options_in(text: str) -> set[str]:
    """The long options that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_commands_and_their_options_exist() -> None:
    used = uses(r"(?<![\w-])arc-lab ([a-z]+[^&|]*)")
    told = {command: help_of("-m", "arc_lab", command) for command in sorted({rest.split()[0] for _, rest in used})}
    wrong = [
        f"{page}: {rest}" for page, rest in used if options_in(rest.split("   ")[0]) - options_in(told[rest.split()[0]])
    ]
    assert wrong == []
    assert len(told) > 10


def test_every_command_begins_and_explains_itself() -> None:
    for command in COMMANDS:
        assert command in help_of("-m", "arc_lab", command)


def test_options_of_kernel_py_exist() -> None:
    found = {option for _, rest in uses(r"kernel\.py( [^&|]*)") for option in options_in(rest)}
    assert found - options_in(help_of("kernel.py")) == set()
    assert len(found) > 5


def test_every_folder_stands_in_the_page_about_the_code() -> None:
    text = (SRC / "README.md").read_text(encoding="utf-8")
    folders = {
        path.name
        for package in ("arc_ttt", "arc_lab")
        for path in (SRC / package).iterdir()
        if (path / "__init__.py").exists()
    }
    files = {path.name for path in (SRC / "arc_ttt").glob("*.py")} - {"__init__.py"}
    wanted = {f"`{one}`" for one in (folders | files) if not one.startswith("__")}
    assert {one for one in wanted if one not in text} == set()


def test_files_that_the_page_about_the_code_names_exist() -> None:
    text = (SRC / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text))
    packages = [SRC / "arc_ttt", SRC / "arc_lab"]
    assert [one for one in sorted(named) if not any((package / one).exists() for package in packages)] == []
    assert len(named) > 8


def test_the_first_page_can_be_read_in_a_minute() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1200
    assert [line for line in prose.splitlines() if len(line) > 120] == []


def test_the_example_on_the_first_page_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[6, 5]] ")
