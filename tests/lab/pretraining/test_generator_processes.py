"""Processes over generators: what they refuse, how they die, and what a build makes of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from arc_lab.data.packs import read_pack
from arc_lab.pretraining.rearc.build import build
from arc_lab.pretraining.rearc.generators import Generators, as_grid, attempt
from arc_lab.pretraining.rearc.settings import PackSettings
from arc_ttt.errors import InputError
from support.pairs import some_pair, write_task

MADE_UP = {
    "utils": """
def get_generators(module):
    return {name[5:]: f for name, f in vars(module).items() if name.startswith("make_")}
get_verifiers = get_generators
""",
    "verifiers": """
def make_calm(grid): return grid
make_grasping = make_exiting = make_odd = make_calm
""",
    "generators": """
import os, signal
def make_calm(rng, low, high):
    grid = tuple(tuple(rng.randrange(10) for _ in range(4)) for _ in range(4))
    return {"input": grid, "output": grid}
def make_grasping(rng, low, high):
    os.kill(os.getpid(), signal.SIGKILL)
def make_exiting(rng, low, high):
    os._exit(3)
def make_odd(rng, low, high):
    return {"input": ((1,),), "output": 5}
""",
}


@pytest.fixture
def made_up(tmp_path: Path) -> str:
    """A package of four generators: two end their process, one makes what is no grid, and the last works."""
    folder = tmp_path / "package" / "reasoning_gym" / "arc" / "rearc_utils"
    folder.mkdir(parents=True)
    for name, text in MADE_UP.items():
        (folder / f"{name}.py").write_text(text)
    return str(tmp_path / "package")


@pytest.mark.parametrize("processes", [1, 3])
def test_a_generator_that_ends_its_process_is_left_out_and_the_others_are_asked(
    tmp_path: Path, made_up: str, processes: int
) -> None:
    settings = PackSettings(pairs_per_generator=8, held_pairs=2)
    told: list[tuple[int, int]] = []
    report = build(
        made_up, tmp_path / "x.pack", settings, processes=processes, progress=lambda done, of: told.append((done, of))
    )
    assert report["left_out"] == {
        "rearc/exiting": "its process ended with status 3",
        "rearc/grasping": "its process was killed by SIGKILL",
        "rearc/odd": "fewer than 4 pairs",
    }
    pack = read_pack(tmp_path / "x.pack")
    assert [(group.name, len(group)) for group in pack.groups] == [("rearc/calm", 8)]
    assert pack.header["left_out"] == report["left_out"]
    assert told == [(done, 4) for done in range(1, 5)]


def test_a_generator_whose_process_was_killed_once_is_asked_again(tmp_path: Path, made_up: str) -> None:
    """As the system does when others have taken the memory."""
    generators = Path(made_up) / "reasoning_gym" / "arc" / "rearc_utils" / "generators.py"
    once = f"""
    try: os.close(os.open({str(tmp_path / "killed")!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError: return make_calm(rng, low, high)
    os.kill(os.getpid(), signal.SIGKILL)"""
    text = MADE_UP["generators"].replace("\n    os.kill(os.getpid(), signal.SIGKILL)", once)
    generators.write_text(text)
    report = build(
        made_up, tmp_path / "x.pack", PackSettings(pairs_per_generator=8, held_pairs=2, only=("calm", "grasping"))
    )
    assert (tmp_path / "killed").exists()
    assert report["left_out"] == {}
    assert report["training_groups"] == 2


def test_a_build_of_which_nothing_is_left_says_how_processes_ended(tmp_path: Path, made_up: str) -> None:
    with pytest.raises(InputError, match=r"enough pairs.*; grasping: its process was killed by SIGKILL"):
        build(made_up, tmp_path / "x.pack", PackSettings(only=("grasping",)))


def test_workers_that_end_at_their_start_end_the_build(tmp_path: Path, made_up: str) -> None:
    generators = Path(made_up) / "reasoning_gym" / "arc" / "rearc_utils" / "generators.py"
    generators.write_text("import os\nos._exit(4)\n")
    with pytest.raises(InputError, match="a generator process ended with status 4 at its start"):
        build(made_up, tmp_path / "x.pack", PackSettings(), processes=2)


def test_a_replacement_that_ends_at_its_start_ends_the_build(tmp_path: Path, made_up: str) -> None:
    """Here the first process leaves a file, which ends every other at its start."""
    generators = Path(made_up) / "reasoning_gym" / "arc" / "rearc_utils" / "generators.py"
    mark = tmp_path / "started"
    start = f"import os\nif os.path.exists({str(mark)!r}): os._exit(4)\nopen({str(mark)!r}, 'w').close()\n"
    generators.write_text(start + MADE_UP["generators"])
    with pytest.raises(InputError, match="status 4 at its start"):
        build(made_up, tmp_path / "x.pack", PackSettings(pairs_per_generator=8, held_pairs=2))


def test_a_task_with_too_few_pairs_left_is_told_its_own_limit(tmp_path: Path, made_up: str) -> None:
    """Of two tasks that share both pairs under different names, the second has none left."""
    for name in ("first", "second"):
        folder = write_task(tmp_path / "tasks" / f"{name}.json", [some_pair(1), some_pair(2)])
    settings = PackSettings(pairs_per_generator=8, held_pairs=2, only=("calm",))
    report = build(made_up, tmp_path / "x.pack", settings, user_tasks=[folder])
    assert report["left_out"] == {"tasks/second": "fewer than 2 pairs"}
    assert report["training_groups"] == 2


def test_an_output_that_is_no_grid_is_counted_as_an_error() -> None:
    def generate(*_: object) -> dict[str, Any]:
        return {"input": ((1,),), "output": 5}

    odd = Generators({"odd": generate}, {"odd": lambda grid: grid})
    assert attempt(odd, "odd", random.Random(0), (0.0, 1.0), 5.0) == (None, "error TypeError")


def test_rows_of_a_generator_are_checked() -> None:
    assert as_grid(((1, 2), (3, 4))) is not None
    for rows in ((), ((),), ((1, 2), (3,)), ((10,),), ((-1,),), tuple((0,) * 31 for _ in range(2)), ((1.5,),)):
        assert as_grid(rows) is None
