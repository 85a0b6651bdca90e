"""The order of the modules and the means they may use, read from the source by `ast`: nothing is imported here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

STANDARD_LIBRARY = ("errors", "atomic", "machine", "bootstrap")
NO_TORCH = (
    "deadline",
    "presets",
    "tasks",
    "votes",
    "formats",
    "synthesis",
    "protocol",
    "settings",
    "checkpoints",
    "schedule",
)
TORCH = ("model", "adapt", "decode", "worker")
PROCESSES = ("fleet", "run", "kaggle")
ORDER = (*STANDARD_LIBRARY, *NO_TORCH, *TORCH, *PROCESSES)
"""Folders and single files of arc_ttt, bottom to top: each may import only from itself and from those before it."""

LAB_ORDER = ("folders", "command_line", "data", "evaluate", "simulate", "pretraining", "publish", "__main__")
"""The same for arc_lab."""

CODE_FROM_DATA = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (SRC / package).rglob("*.py"))


def shipped() -> list[Path]:
    return [*sources("arc_ttt", "arc_lab"), *(p for p in [ROOT / "kernel.py"] if p.exists())]


def place(path: Path, package: str = "arc_ttt") -> str:
    """The folder, or the single file, in which a module stands: errors, model, synthesis."""
    return path.relative_to(SRC / package).with_suffix("").parts[0]


def module(path: Path) -> str:
    """Dotted name of a source file: arc_ttt.run.coordinator."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def own_imports(path: Path, package: str = "arc_ttt") -> Iterator[tuple[str, int]]:
    """Folders and single files of a package that a file imports from."""
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] == package and len(parts) > 1:
            yield parts[1], line


def upward(package: str, order: tuple[str, ...]) -> list[str]:
    """Imports of a package that lead against its order."""
    wrong = []
    for path in sources(package):
        if path.parent.name == package and path.stem == "__init__":
            continue
        allowed = order[: order.index(place(path, package)) + 1]
        found = {(own, line) for own, line in own_imports(path, package) if own not in allowed}
        wrong += [f"{module(path)}:{line} imports {own}" for own, line in sorted(found)]
    return wrong


def test_every_file_and_folder_has_a_place_in_the_order() -> None:
    for package, order in (("arc_ttt", ORDER), ("arc_lab", LAB_ORDER)):
        unplaced = {place(path, package) for path in sources(package)} - set(order) - {"__init__"}
        assert not unplaced, f"give them a place in the order: {sorted(unplaced)}"


def test_folders_of_arc_ttt_import_one_way() -> None:
    assert upward("arc_ttt", ORDER) == []


def test_folders_of_arc_lab_import_one_way() -> None:
    assert upward("arc_lab", LAB_ORDER) == []


def test_no_two_modules_import_each_other() -> None:
    """Also not by way of others: modules form no circle, inside a folder either."""
    modules = {module(path): path for path in sources("arc_ttt", "arc_lab")}
    waiting = {
        name: {own for own, _ in imported(path) if own in modules and own != name} for name, path in modules.items()
    }
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize(
    "path", [path for path in sources("arc_ttt", "arc_lab") if path.name == "__init__.py"], ids=module
)
def test_the_file_that_introduces_a_folder_imports_nothing(path: Path) -> None:
    """`bootstrap` runs before NumPy is there, and a worker of synthesis must not load torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_arc_ttt_never_imports_arc_lab() -> None:
    """Solutions live in arc_lab alone; what runs on Kaggle must have no way to them."""
    wrong = [
        f"{path.name}:{line}"
        for path in sources("arc_ttt")
        for name, line in imported(path)
        if name.split(".")[0] == "arc_lab"
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [*STANDARD_LIBRARY, *NO_TORCH])
def test_the_lower_folders_need_little(name: str) -> None:
    """A worker must be able to load tasks and write a submission where torch is missing or broken."""
    allowed = {*sys.stdlib_module_names, "arc_ttt"}
    allowed |= set() if name in STANDARD_LIBRARY else {"numpy"}
    allowed |= {"scipy"} if name == "synthesis" else set()
    wrong = [
        f"{module(path)}:{line} imports {used}"
        for path in sources("arc_ttt")
        if place(path) == name
        for used, line in imported(path)
        if used.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_torch_is_imported_in_its_own_folders_only() -> None:
    wrong = [
        f"{module(path)}:{line}"
        for path in sources("arc_ttt")
        if place(path) not in TORCH
        for name, line in imported(path)
        if name.split(".")[0] in {"torch", "transformers", "peft", "bitsandbytes", "unsloth", "safetensors"}
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
