"""The order of the modules and the means they may use, read from the source by `ast`: nothing is imported here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

GROUND = (
    "errors",
    "faults",
    "deadline",
    "machine",
    "run.deadman",
    "run.signals",
    "settings",
    "run.journal",
    "tasks.grids",
    "tasks.views",
    "formats.format",
    "formats.text",
    "adapt.sequences",
    "votes.rules",
    "run.submission",
)
MODEL = (
    "checkpoints.folders",
    "checkpoints.memory_plan",
    "model.four_bit",
    "model.unsloth",
    "model.load",
    "adapt.adapter",
    "adapt.training",
    "adapt.recording",
    "decode.decoder",
    "decode.search",
    "decode.scoring",
)
RUN = (
    "worker.solver",
    "worker.ready",
    "worker.calibrate",
    "schedule.cost",
    "schedule.plan",
    "run.findings",
    "run.report",
    "fleet.fleet",
    "worker.__main__",
    "fleet.twin",
    "fleet.launch",
    "run.recovery",
    "run.coordinator",
    "kaggle.run",
)
ORDER = ("bootstrap.mounts", *GROUND, "synthesis", *MODEL, *RUN)
"""Modules of arc_ttt, top to bottom: each may import only from those above it. `synthesis` is a package of its own."""

CODE_FROM_DATA = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (SRC / package).rglob("*.py"))


def shipped() -> list[Path]:
    return [*sources("arc_ttt", "arc_lab"), *(p for p in [ROOT / "kernel.py"] if p.exists())]


def place(path: Path) -> str:
    """Name of a module of arc_ttt as it stands in ORDER: errors, model, synthesis."""
    parts = path.relative_to(SRC / "arc_ttt").with_suffix("").parts
    return "synthesis" if parts[0] == "synthesis" else ".".join(parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports anywhere, inside functions too, with their lines; relative ones made whole."""
    package = path.relative_to(SRC).parent.parts if SRC in path.parents else ()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            source = base if node.level else node.module or ""
            yield source, node.lineno
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of arc_ttt that a file imports, as they stand in ORDER."""
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] == "arc_ttt" and len(parts) > 1:
            own = "synthesis" if parts[1] == "synthesis" else ".".join(parts[1:])
            if own in ORDER:
                yield own, line


def test_every_module_of_arc_ttt_has_a_place_in_the_order() -> None:
    unplaced = {place(path) for path in sources("arc_ttt") if path.name != "__init__.py"} - set(ORDER)
    assert not unplaced, f"give them a place in ORDER: {sorted(unplaced)}"


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_modules_above_it(name: str) -> None:
    files = [path for path in sources("arc_ttt") if place(path) == name]
    if not files:
        pytest.skip(f"there is no module {name}")
    above = set(ORDER[: ORDER.index(name)]) | ({name} if name == "synthesis" else set())
    wrong = [f"{path.name}:{line} imports {own}" for path in files for own, line in own_imports(path)]
    assert [text for text in wrong if text.rsplit(" ", 1)[1] not in above] == []


def test_arc_ttt_never_imports_arc_lab() -> None:
    """Solutions live in arc_lab alone; what runs on Kaggle must have no way to them."""
    wrong = [
        f"{path.name}:{line}"
        for path in sources("arc_ttt")
        for name, line in imported(path)
        if name.split(".")[0] == "arc_lab"
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["bootstrap.mounts", *GROUND, "synthesis"])
def test_ground_modules_need_only_the_standard_library_and_numpy(name: str) -> None:
    """A worker must be able to load tasks and write a submission where torch is missing or broken."""
    files = [path for path in sources("arc_ttt") if place(path) == name]
    if not files:
        pytest.skip(f"there is no module {name}")
    allowed = set(sys.stdlib_module_names)
    allowed |= set() if name == "bootstrap.mounts" else {"numpy", "arc_ttt"}
    allowed |= {"scipy"} if name == "synthesis" else set()
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in files
        for name, line in imported(path)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_only_deadline_asks_for_the_time() -> None:
    """A second source of time escapes the virtual clock, and wall-clock limits break when the clock is set."""
    users = {
        path.name
        for path in sources("arc_ttt")
        for name, _ in imported(path)
        if name.split(".")[0] in {"time", "datetime"}
    }
    assert users == {"deadline.py"}


@pytest.mark.parametrize("path", shipped(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_is_made_from_data(path: Path) -> None:
    """No pickle, eval, exec, torch.load or shell: weights are safetensors, everything else is JSON."""
    wrong = [f"line {line}: {name}" for name, line in imported(path) if name.split(".")[0] in CODE_FROM_DATA]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "builtins.eval", "builtins.exec", "torch.load", "os.system", "os.popen"}:
            wrong.append(f"line {node.lineno}: {called}")
        for keyword in node.keywords:
            if keyword.arg in {"shell", "allow_pickle"} and ast.unparse(keyword.value) != "False":
                wrong.append(f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
    assert wrong == []


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    """Guards this file: a reader that misses a form of import would let every test above pass."""
    file = tmp_path / "sample.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    import e as g\n    from h.i import j\n")
    assert {name for name, _ in imported(file)} == {"a.b", "c", "c.d", "e", "h.i", "h.i.j"}
