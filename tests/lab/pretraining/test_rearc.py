"""Training packs: what is kept out of them, and that the same settings give the same pack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab.data.datasets import DATASETS, DATASETS_HELP, load_dataset
from arc_lab.data.families import arc_training_ids, families, family_of, held_out_families
from arc_lab.data.packs import pair_bytes, read_pack
from arc_lab.pretraining.rearc.build import build
from arc_lab.pretraining.rearc.command import main
from arc_lab.pretraining.rearc.generate import Answered
from arc_lab.pretraining.rearc.generators import package_folder, source_fingerprint
from arc_lab.pretraining.rearc.groups import named_apart, task_groups, without_repeats
from arc_lab.pretraining.rearc.known_pairs import KnownPairs, dataset_pairs, evaluation_pairs, training_tasks
from arc_lab.pretraining.rearc.settings import PackSettings
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.tasks.views import dihedral
from support.generators import WHEEL, needs_generators
from support.pairs import some_groups, some_pair, write_task

ROOT = Path(__file__).resolve().parents[3]


def test_families_are_closed_and_held_out_as_wholes() -> None:
    ids = set(arc_training_ids())
    assert len(ids) == 400
    shared = families()
    assert all(shared[name] == name for name in shared.values())
    out = held_out_families()
    held = [task_id for task_id in ids if family_of(task_id) in out]
    assert 40 <= len(held) <= 48
    assert {family_of(i) for i in held} == set(out)
    assert len({family_of(i) for i in ("67a3c6ac", "68b16354", "74dd1130")}) == 1
    assert family_of("7fe24cdd") == family_of("46442a0e") != family_of("67a3c6ac")


@pytest.fixture(scope="module")
def evaluation() -> KnownPairs:
    return evaluation_pairs()


def test_the_evaluation_set_of_arc_agi_2_is_a_data_set() -> None:
    dataset = load_dataset("evaluation2")
    assert (len(dataset.loaded.tasks), dataset.loaded.problems) == (120, ())
    assert set(dataset.solutions.by_task) == set(dataset.loaded.test_counts)
    assert not set(dataset.loaded.test_counts) & set(training_tasks().loaded.test_counts)
    assert all(name in DATASETS_HELP for name in DATASETS)


@pytest.mark.parametrize("name", ["evaluation", "evaluation2"])
def test_an_evaluation_pair_is_known_under_every_symmetry(evaluation: KnownPairs, name: str) -> None:
    for number, (_, pair) in enumerate(dataset_pairs(load_dataset(name))):
        if number % 37 == 0:
            for index in range(8):
                turned = dihedral(pair[0], index), dihedral(pair[1], index)
                assert evaluation.task_with(pair_bytes(turned)) is not None
    assert evaluation.task_with(pair_bytes(some_pair(5))) is None


def test_the_training_task_that_equals_an_evaluation_task_is_dropped(evaluation: KnownPairs) -> None:
    groups, dropped = task_groups(training_tasks(), PackSettings(), evaluation)
    assert [task_id for task_id, why in dropped.items() if "evaluation" in why] == ["40853293"]
    assert "070dd51e" in dropped["40853293"]
    assert all(entry["name"] != "tasks/40853293" for entry, _ in groups)
    assert all(evaluation.task_with(pair) is None for _, pairs in groups for pair in pairs)
    assert len(groups) > 380


def test_an_evaluation_task_of_the_user_is_dropped_turned_or_not(tmp_path: Path, evaluation: KnownPairs) -> None:
    task = load_dataset("evaluation").loaded.tasks[3]
    train = [{"input": dihedral(e.input, 3).tolist(), "output": dihedral(e.output, 3).tolist()} for e in task.train]
    (tmp_path / "mine.json").write_text(json.dumps({"train": train, "test": [{"input": [[1]]}]}))
    groups, dropped = task_groups(load_dataset(str(tmp_path / "mine.json")), PackSettings(), evaluation)
    assert not groups
    assert task.task_id in dropped["mine"]


def test_a_copy_of_a_held_out_task_is_held_out_whatever_its_id(tmp_path: Path, evaluation: KnownPairs) -> None:
    """Turned or not, and if it shares but one pair."""
    pairs = {task_id: pair for task_id, pair in dataset_pairs(training_tasks()) if task_id in ("67a3c6ac", "a5313dff")}
    out = held_out_families()
    held = next(task for task in training_tasks().loaded.tasks if family_of(task.task_id) in out)
    pairs["held"] = (held.train[1].input, held.train[1].output)
    for index in range(8):
        for name, pair in pairs.items():
            some = [some_pair(index), (dihedral(pair[0], index), dihedral(pair[1], index))]
            shown = [{"input": first.tolist(), "output": second.tolist()} for first, second in some]
            (tmp_path / f"{name}-{index}.json").write_text(json.dumps({"train": shown, "test": [{"input": [[1]]}]}))
    groups, _ = task_groups(load_dataset(str(tmp_path)), PackSettings(max_tokens=3000), evaluation)
    assert len(groups) == 24
    for entry, _ in groups:
        expected = "held-out" if "/held-" in entry["name"] else "train"
        assert entry["split"] == expected, entry
        assert (entry["family"] in out) == (expected == "held-out")


def test_groups_of_one_rule_are_held_out_if_one_of_them_is() -> None:
    (train, first), (held, second) = some_groups()
    groups = [(train, first), ({**held, "name": train["name"]}, [*second, first[2]])]
    for order in (groups, groups[::-1]):
        ((entry, pairs),), repeated = without_repeats(named_apart(order))
        assert entry["split"] == "held-out"
        assert sorted(pairs) == sorted(first + second)
        assert repeated == 1


def test_tasks_of_one_name_are_joined_only_where_they_share_a_pair(tmp_path: Path, evaluation: KnownPairs) -> None:
    """A training task, another task under its id, each again, and a task whose id is the name that one then gets."""
    known = next(task for task in training_tasks().loaded.tasks if family_of(task.task_id) == task.task_id)
    own = [(example.input, example.output) for example in known.train]
    folders = [
        write_task(tmp_path / "other" / f"{known.task_id}.json", [some_pair(1), some_pair(2)]),
        write_task(tmp_path / "again" / f"{known.task_id}.json", [own[0], some_pair(3)]),
        write_task(tmp_path / "taken" / f"{known.task_id}-2.json", [some_pair(4), some_pair(5)]),
        write_task(tmp_path / "more" / f"{known.task_id}.json", [some_pair(2), some_pair(6)]),
    ]
    settings = PackSettings(max_tokens=5000)
    groups = list(task_groups(training_tasks(), settings, evaluation)[0])
    for folder in folders:
        groups += task_groups(load_dataset(folder), settings, evaluation)[0]
    kept, repeated = without_repeats(named_apart(groups))
    found = {entry["name"].removeprefix(f"tasks/{known.task_id}"): pairs for entry, pairs in kept}
    assert len({entry["name"] for entry, _ in kept}) == len(kept)
    assert set(map(pair_bytes, own)) | {pair_bytes(some_pair(3))} <= set(found[""])
    assert found["-2"] == [pair_bytes(some_pair(seed)) for seed in (4, 5)]
    assert found["-3"] == [pair_bytes(some_pair(seed)) for seed in (1, 2, 6)]
    assert repeated >= 2


@pytest.mark.parametrize(
    "changes",
    [
        {"difficulty": (0.5, 0.2)},
        {"difficulty": (0.0, 1.5)},
        {"pairs_per_generator": 1},
        {"max_side": 31},
        {"held_pairs": 900},
        {"cpu_s_per_generator": 0.0},
    ],
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        PackSettings(**changes)


def test_a_missing_package_is_refused_with_the_command_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="neither a wheel"):
        package_folder(str(tmp_path))
    assert main(["--wheel", str(tmp_path / "no.whl"), "--out", str(tmp_path / "x.pack")]) == 2
    assert "no.whl" in capsys.readouterr().err
    assert not (tmp_path / "x.pack").exists()


def test_task_files_and_the_place_to_write_to_are_looked_at_before_the_generators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("[1, 2")
    (tmp_path / "none.json").write_text('{"a": 3}')
    (tmp_path / "folder.pack").mkdir()
    wheel, out = ["--wheel", str(tmp_path / "no.whl")], str(tmp_path / "x.pack")
    for arguments, words in (
        (["--out", out, "--tasks", str(tmp_path / "bad.json")], "is not JSON"),
        (["--out", out, "--tasks", str(tmp_path / "none.json")], "no usable task"),
        (["--out", out, "--tasks", str(tmp_path / "gone.json")], "nor an existing file"),
        (["--out", out, "--tasks", str(tmp_path / "some.pack:9")], "to measure on"),
        (["--out", str(tmp_path / "bad.json" / "x.pack")], "cannot be made"),
        (["--out", str(tmp_path / "folder.pack")], "is a folder"),
    ):
        assert main([*wheel, *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("arc-lab rearc: ")
        assert words in line


def test_a_full_disk_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("arc_lab.pretraining.rearc.command.build", full)
    assert main(["--out", str(tmp_path / "x.pack")]) == 1
    assert capsys.readouterr().err == "arc-lab rearc: [Errno 28] No space left on device\n"


def heed_ctrl_c() -> None:
    """Tests that a shell runs in the background are started with SIGINT ignored, and so is what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_generators
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "arc-lab rearc: interrupted; the same command goes on\n"), (signal.SIGKILL, -9, "")],
)
def test_ctrl_c_is_told_in_one_line_and_no_generator_outlives_a_build(
    tmp_path: Path, number: int, code: int, words: str
) -> None:
    command = [sys.executable, "-m", "arc_lab", "rearc", "--wheel", WHEEL, "--out", str(tmp_path / "x.pack")]
    process = subprocess.Popen(
        [*command, "--processes", "2", "--only", "67a3c6ac,a416b8f3,d631b094", "--pairs-per-generator", "1000000"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    give_up_s = time.monotonic() + 60
    try:
        while len(children.read_text().split()) < 2 and time.monotonic() < give_up_s:
            time.sleep(0.1)
        time.sleep(0.5)
        started = children.read_text().split()
        os.killpg(process.pid, number)
        told = process.communicate(timeout=60)[1]  # until all have closed it
    finally:
        process.kill()
    assert (process.returncode, told) == (code, words)
    assert len(started) == 2
    assert not any(Path(f"/proc/{child}/exe").exists() for child in started)


FEW = PackSettings(
    pairs_per_generator=12,
    held_pairs=3,
    held_out_pairs=6,
    max_side=12,
    difficulty=(0.0, 0.3),
    only=("67a3c6ac", "a416b8f3", "0520fde7", "d631b094", "1e0a9b12", "40853293", *sorted(held_out_families())[:2]),
    training_tasks=True,
)


@needs_generators
def test_a_pack_is_the_same_for_any_hash_seed_and_number_of_processes(tmp_path: Path) -> None:
    report = build(WHEEL, tmp_path / "one.pack", FEW, processes=1)
    script = (
        "import json, sys; from pathlib import Path\n"
        "from arc_lab.pretraining.rearc.command import PackSettings, build\n"
        "given = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(sys.argv[2]).items()}\n"
        "print(build(sys.argv[3], Path(sys.argv[1]), PackSettings(**given), processes=2)['sha256'])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "two.pack"), json.dumps(asdict(FEW)), WHEEL],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == report["sha256"] == read_pack(tmp_path / "two.pack").sha256
    assert (tmp_path / "one.pack").read_bytes() == (tmp_path / "two.pack").read_bytes()
    other = build(WHEEL, tmp_path / "three.pack", replace(FEW, seed=1))
    assert other["sha256"] != report["sha256"]


@needs_generators
def test_a_built_pack_holds_no_evaluation_pair_and_no_held_out_family_in_training(
    tmp_path: Path, evaluation: KnownPairs
) -> None:
    report = build(WHEEL, tmp_path / "p.pack", FEW, processes=1)
    pack = read_pack(tmp_path / "p.pack")
    out = held_out_families()
    assert report["held_out_groups"] > 0
    assert "rearc/40853293" in report["left_out"]
    train, measured = set(), set()
    for group in pack.groups:
        raw = [pair_bytes(group.pair(i)) for i in range(len(group))]
        assert len(set(raw)) == len(raw)
        assert all(evaluation.task_with(pair) is None for pair in raw)
        assert (group.family in out) == (group.split == "held-out")
        train |= {raw[i] for i in group.training}
        measured |= {raw[i] for i in group.held}
        assert all(max(grid.shape) <= 12 for i in range(len(group)) for grid in group.pair(i))
    assert train
    assert not train & measured


@needs_generators
def test_a_cpu_limit_that_bites_is_reported(tmp_path: Path) -> None:
    settings = PackSettings(pairs_per_generator=100_000, cpu_s_per_generator=0.1, only=("67a3c6ac",))
    report = build(WHEEL, tmp_path / "cut.pack", settings, processes=1)
    assert report["cut"] == ["67a3c6ac"]
    assert 0 < report["pairs"] < 100_000


@needs_generators
def test_an_interrupted_build_goes_on_and_gives_the_same_pack(tmp_path: Path) -> None:
    settings = PackSettings(pairs_per_generator=8, held_pairs=2, max_side=10, only=("67a3c6ac", "a416b8f3", "d631b094"))
    whole = build(WHEEL, tmp_path / "whole.pack", settings)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(WHEEL, tmp_path / "part.pack", settings, progress=stop)
    partial = tmp_path / "part.pack.partial"
    with partial.open("a") as file:
        file.write('[{"generator": "cut')
    assert len(Answered(partial).known) >= 2
    assert build(WHEEL, tmp_path / "part.pack", settings)["sha256"] == whole["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.pack", "whole.pack"]


def test_a_changed_answer_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    for number in (1, 2):
        Answered(path).add({"generator": number}, {"pairs": 1, "packed": "AQEBAQEC"})
    assert len(Answered(path).known) == 2
    text = path.read_text()
    for changed in (text.replace("AQEBAQEC", "AQEBAQED", 1), text.replace('"generator": 1', '"generator": 3')):
        path.write_text(changed)
        assert [json.loads(request)["generator"] for request in Answered(path).known] == [2]
    path.write_bytes(b"\xff[[1], [2]]\n5\n" + text.encode())
    assert len(Answered(path).known) == 2


def test_answers_of_other_generators_are_not_taken_over(tmp_path: Path) -> None:
    marks = []
    for text in ("def generate_a(): 1", "def generate_a(): 2"):
        utils = tmp_path / "reasoning_gym" / "arc" / "rearc_utils"
        utils.mkdir(parents=True, exist_ok=True)
        (utils / "generators.py").write_text(text)
        marks.append(source_fingerprint(package_folder(str(tmp_path))))
        with zipfile.ZipFile(tmp_path / "reasoning_gym-0.whl", "w") as wheel:
            wheel.write(utils / "generators.py", "reasoning_gym/arc/rearc_utils/generators.py")
        assert source_fingerprint(package_folder(str(tmp_path / "reasoning_gym-0.whl"))) == marks[-1]
    assert marks[0] != marks[1]


@needs_generators
def test_an_unknown_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zzz"):
        build(WHEEL, tmp_path / "x.pack", PackSettings(only=("zzz",)), processes=1)
