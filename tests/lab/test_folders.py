"""The version and commit of this checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from arc_lab.folders import current_build


def test_only_what_the_wheel_is_made_from_counts_as_a_change(tmp_path: Path) -> None:
    """Not kernel.py and kernel-metadata.json, which everybody edits before the first bundle."""
    names = ("pyproject.toml", "LICENSE", "kernel.py", "kernel-metadata.json", "src/arc_ttt/solve.py")
    (tmp_path / "src" / "arc_ttt").mkdir(parents=True)
    for name in names:
        (tmp_path / name).write_text('[project]\nversion = "0.1.0"\n')
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    made = current_build(tmp_path)
    for name in ("kernel.py", "kernel-metadata.json"):
        (tmp_path / name).write_text("edited")
    assert current_build(tmp_path) == made
    subprocess.run([*git, "commit", "-q", "-a", "-m", "second"], check=True)
    assert current_build(tmp_path) == made
    assert not made.dirty
    (tmp_path / "src" / "arc_ttt" / "solve.py").write_text("edited and committed")
    subprocess.run([*git, "commit", "-q", "-a", "-m", "third"], check=True)
    assert current_build(tmp_path).commit != made.commit
    assert not current_build(tmp_path).dirty
    for name in ("src/arc_ttt/solve.py", "src/arc_ttt/new.py"):
        (tmp_path / name).write_text("edited")
        assert current_build(tmp_path).stamp.endswith("+changes")
        subprocess.run([*git, "stash", "-q", "-u"], check=True)
