"""Which wheels are taken, and what happens when one is missing, damaged, for another interpreter, or does not work.

The installations run in a clean interpreter that has pip and nothing else, with small wheels made here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.tags import parse_tag, sys_tags

from arc_ttt.bootstrap.mounts import MANIFEST, Mounts, find_model, find_mounts
from arc_ttt.bootstrap.packages import choose_wheels
from arc_ttt.bootstrap.wheels import damage, misfit
from support.wheels import NAME, make_wheel

ROOT = Path(__file__).resolve().parents[2]
HERE = frozenset(sys_tags())
# Tags

pythons = st.sampled_from(["py2", "py3", "py39", "py311", "py314", "cp39", "cp310", "cp311", "cp312", "cp313", "pp311"])
abis = st.sampled_from(["none", "abi3", "cp39", "cp310", "cp311", "cp312", "cp313", "cp313t"])
SYSTEMS = ("linux", "manylinux1", "manylinux2014", "manylinux_2_24", "manylinux_2_99", "musllinux_1_2")
platforms = st.sampled_from(
    ["any", "win_amd64", *(f"{system}_{machine}" for system in SYSTEMS for machine in ("x86_64", "aarch64"))]
)


@given(
    st.lists(pythons, min_size=1, max_size=2, unique=True),
    st.lists(abis, min_size=1, max_size=2, unique=True),
    st.lists(platforms, min_size=1, max_size=3, unique=True),
)
def test_a_wheel_fits_exactly_when_pip_would_take_it(python: list[str], abi: list[str], platform: list[str]) -> None:
    tag = "-".join(".".join(part) for part in (python, abi, platform))
    assert (misfit(f"foo-1.0-{tag}.whl") == "") == bool(HERE & parse_tag(tag))


@pytest.mark.parametrize("name", ["foo.whl", "foo-1.0.tar.gz", "foo-1.0-py3-none.whl", "foo-1.0 (1)-py3-none-any.zip"])
def test_a_file_with_another_name_is_no_wheel(name: str) -> None:
    assert "not that of a wheel" in misfit(name)


def test_a_wheel_tells_which_interpreter_it_is_for() -> None:
    told = misfit("foo-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", (3, 12))
    assert "cp313" in told
    assert "Python 3.12" in told
    assert "glibc 2.27" in misfit("foo-1.0-py3-none-manylinux_2_28_x86_64.whl", (3, 12), 27)


def test_the_newest_whole_wheel_that_fits_is_taken(tmp_path: Path) -> None:
    old, new = make_wheel(tmp_path, "foo-1.9-py3-none-any.whl"), make_wheel(tmp_path, "foo-1.10-py3-none-any.whl")
    broken = make_wheel(tmp_path, "foo-2.0-py3-none-any.whl")
    broken.write_bytes(broken.read_bytes()[:100])
    other = make_wheel(tmp_path, "foo-3.0-cp39-cp39-any.whl")
    chosen, refused = choose_wheels(Mounts(wheels=[old, new, broken, other]))
    assert chosen == {"foo": new}
    assert refused == {}
    chosen, refused = choose_wheels(Mounts(wheels=[broken]))
    assert chosen == {}
    assert "foo-2.0" in refused["foo"]
    assert "damaged" in refused["foo"]


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_damage(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    wheel = make_wheel(tmp_path_factory.mktemp("wheel"))
    digest = sha256(wheel.read_bytes()).hexdigest()
    assert damage(wheel, digest) == damage(wheel, None) == ""
    body = bytearray(wheel.read_bytes())
    body[place % len(body)] ^= change
    wheel.write_bytes(body)
    assert "sha256" in damage(wheel, digest)
    assert isinstance(damage(wheel, None), str)  # an archive may be damaged in ways that show as any error


# Mounts


@pytest.mark.parametrize(
    ("places", "taken"),
    [
        (["competitions/arc-prize-2025", "competitions/arc-prize-2026-arc-agi-2"], 1),
        (["competitions/arc-prize-2026-arc-agi-2", "datasets/me/zzz"], 0),
        (["arc-prize-2026-arc-agi-2", "my-copies"], 0),
        (["a-copy/deep/inside", "arc-prize-2026-arc-agi-2"], 1),
    ],
)
def test_the_competition_s_own_tasks_are_taken_and_others_told(tmp_path: Path, places: list[str], taken: int) -> None:
    files = []
    for place in places:
        folder = tmp_path / "input" / place
        folder.mkdir(parents=True)
        (folder / "sample_submission.json").write_text("{}")
        files.append(folder / "arc-agi_test_challenges.json")
        files[-1].write_text("{}")
    mounts = find_mounts(tmp_path)
    assert mounts.challenges == files[taken]
    assert mounts.sample == files[taken].with_name("sample_submission.json")
    assert mounts.others == [files[1 - taken]]


@pytest.mark.parametrize(
    ("mounted", "asked"),
    [
        ("models/me/llama/transformers/4bit/1", "/kaggle/input/models/me/llama/transformers/4bit/1"),
        ("llama/transformers/4bit/1", "/kaggle/input/models/me/llama/Transformers/4bit/1"),
        ("models/me/llama/transformers/4bit/1", "/kaggle/input/llama/transformers/4bit/1"),
        ("datasets/me/my-model", "/kaggle/input/my-model"),
        ("my-model", "/kaggle/input/datasets/me/my-model"),
        ("datasets/me/my-model/weights/8b", "/kaggle/input/my-model"),
    ],
)
def test_a_model_is_found_in_either_layout(tmp_path: Path, mounted: str, asked: str) -> None:
    mounts = mounts_with(tmp_path, mounted, "models/me/other/transformers/default/1", "datasets/you/other-model")
    assert find_model(asked, mounts) == (tmp_path / "input" / mounted, "")
    assert find_model("/kaggle/input/unheard-of", mounts) is None


def mounts_with(root: Path, *models: str) -> Mounts:
    for name in models:
        (root / "input" / name).mkdir(parents=True)
        (root / "input" / name / "config.json").write_text("{}")
    return find_mounts(root)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("models/me/llama/transformers/4bit/1", None),  # of another owner
        ("llama/transformers/8bit/2", None),
        ("models/you/other/transformers/4bit/2", None),
        ("models/you/llama/transformers/4bit/1", "version 12 of the model instead of 1"),
        ("llama/transformers/4bit/9", "version 12 of the model instead of 9"),
        ("models/you/llama/transformers/4bit/2", ""),
        ("models/you/llama", None),  # which of two?
    ],
)
def test_no_other_model_is_taken_for_the_one_asked_for(tmp_path: Path, asked: str, why: str | None) -> None:
    mounts = mounts_with(tmp_path, *(f"models/you/llama/transformers/4bit/{version}" for version in (2, 12)))
    found = find_model(f"/kaggle/input/{asked}", mounts)
    assert (found and found[1]) == why


def test_a_damaged_manifest_is_a_problem_and_no_more(tmp_path: Path) -> None:
    make_wheel(tmp_path / "input" / "wheels")
    (tmp_path / "input" / "wheels" / MANIFEST).write_text('{"wheels": 3}')
    mounts = find_mounts(tmp_path)
    assert [path.name for path in mounts.wheels] == [NAME]
    assert MANIFEST in mounts.problems[0]


# Installations

DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {src!r})
import importlib.util
from arc_ttt.bootstrap.mounts import find_mounts
from arc_ttt.bootstrap.packages import PROBES, prepare_packages
PROBES.update(bitsandbytes="import bitsandbytes", unsloth="import unsloth")
root = Path(sys.argv[1])
mounts = find_mounts(root)
before = list(sys.path)
packages = prepare_packages(mounts, root / "scratch", unsloth=sys.argv[2] == "unsloth", seconds=400.0)
held = [name for name in ("bitsandbytes", "unsloth") if importlib.util.find_spec(name)]
print(json.dumps([packages.four_bit, packages.unsloth, list(packages.fallbacks.values()), packages.notes, held]))
"""


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def prepare(python: Path, root: Path, backend: str = "transformers") -> Any:
    """four_bit, unsloth, fallbacks, notes, what can be imported."""
    command = [str(python), "-I", "-c", DRIVER.format(src=str(ROOT / "src")), str(root), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "input" / "datasets" / "me" / "wheels"
    folder.mkdir(parents=True)
    return folder


def test_a_good_wheel_is_installed_and_tried_out(clean_python: Path, tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels)
    four_bit, _, fallbacks, notes, held = prepare(clean_python, tmp_path)
    assert (four_bit, fallbacks, held) == (True, [], ["bitsandbytes"])
    assert notes == [f"installed {NAME}", "bitsandbytes: works"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "no wheel of it is mounted"),
        ("damaged", "its sha256 is not the one in the manifest"),
        ("cut", "it is damaged"),
        ("other Python", "it is for cp39-cp39"),
        ("fails", "ImportError: no library for this GPU"),
        ("renamed", "its name is not that of a wheel"),
    ],
)
def test_a_wheel_that_is_of_no_use_costs_the_four_bits_and_tells_why(
    clean_python: Path, tmp_path: Path, wheels: Path, fault: str, words: str
) -> None:
    if fault == "damaged":
        make_wheel(wheels)
        (wheels / MANIFEST).write_text(json.dumps({"wheels": [{"file": NAME, "sha256": "0" * 64}]}))
    elif fault == "cut":
        path = make_wheel(wheels)
        path.write_bytes(path.read_bytes()[:60])
    elif fault == "other Python":
        make_wheel(wheels, "bitsandbytes-1.0-cp39-cp39-manylinux2014_x86_64.whl")
    elif fault == "fails":
        make_wheel(wheels, code="raise ImportError('no library for this GPU')")
    elif fault == "renamed":
        make_wheel(wheels).rename(wheels / "bitsandbytes-1.0.whl")
    four_bit, _, fallbacks, _, held = prepare(clean_python, tmp_path)
    assert not four_bit
    assert held == []  # peft would import it, wherever it is found
    assert len(fallbacks) == 1
    assert "\n" not in fallbacks[0]
    assert fallbacks[0].startswith("no 4-bit weights: ")
    assert words in fallbacks[0]


def test_an_unsloth_that_fails_leaves_nothing_of_its_set_on_the_path(
    clean_python: Path, tmp_path: Path, wheels: Path
) -> None:
    make_wheel(wheels)
    make_wheel(wheels, "unsloth-1.0-py3-none-any.whl", code="raise NotImplementedError('no GPU here, an error')")
    make_wheel(wheels, "arc_ttt-1.0-py3-none-any.whl", code="raise SystemExit('not part of a set')")
    four_bit, unsloth, fallbacks, _, held = prepare(clean_python, tmp_path, "unsloth")
    assert (four_bit, unsloth, held) == (True, False, ["bitsandbytes"])
    assert len(fallbacks) == 1
    assert "transformers instead of unsloth" in fallbacks[0]
    assert "no GPU here" in fallbacks[0]


def test_an_unpacked_wheel_is_used_as_it_lies(clean_python: Path, tmp_path: Path, wheels: Path) -> None:
    with zipfile.ZipFile(make_wheel(tmp_path)) as archive:
        archive.extractall(wheels / "bitsandbytes-1.0-py3-none-any")
    four_bit, _, fallbacks, _, held = prepare(clean_python, tmp_path)
    assert (four_bit, fallbacks, held) == (True, [], ["bitsandbytes"])


def test_wheels_are_for_this_interpreter_in_the_tests_too() -> None:
    """Guards the parametrization above: its wheel for another Python must not fit this one."""
    assert sys.version_info[:2] != (3, 9)
