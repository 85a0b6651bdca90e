"""The file format of training packs."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_lab.data.datasets import load_dataset
from arc_lab.data.packs import PackError, pair_bytes, pair_tokens, read_pack, split_pairs, write_pack
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.tasks.grids import same_grid
from support.pairs import some_groups, some_pair


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "small.pack"
    write_pack(path, {"settings": {"seed": 0}}, some_groups())
    return path


def test_a_pack_is_also_a_set_of_tasks_of_pairs_that_no_training_sees(tmp_path: Path) -> None:
    groups = some_groups(24)
    groups[0][0]["held_pairs"] = 9
    write_pack(tmp_path / "tasks.pack", {"settings": {"seed": 0}}, groups)
    dataset = load_dataset(str(tmp_path / "tasks.pack"))
    assert [task.task_id for task in dataset.loaded.tasks] == ["rearc-1-0", "rearc-1-1"]  # group 0 is trained on
    more = load_dataset(f"{tmp_path}/tasks.pack:3")
    assert [task.task_id for task in more.loaded.tasks] == ["rearc-1-0", "rearc-1-1", "rearc-1-2"]
    told, used = hashlib.sha256(), list[bytes]()
    for task in more.loaded.tasks:
        shown = [(example.input, example.output) for example in task.train]
        shown.append((task.tests[0], more.solutions.by_task[task.task_id][0]))
        assert len({pair_bytes(pair) for pair in shown} & set(groups[1][1])) == 4
        told.update(task.task_id.encode() + b"".join(map(pair_bytes, shown)))
        used += map(pair_bytes, shown)
    assert len(set(used)) == len(used) == 12  # no task shows another's answer
    most = load_dataset(f"{tmp_path}/tasks.pack:99").loaded.tasks
    assert len(most) == len(groups[1][1]) // 4
    assert [task.task_id for task in most[:3]] == [task.task_id for task in more.loaded.tasks]
    assert told.hexdigest()[:16] == "92043c92b53ea3f9"  # measurements refer to these very tasks


def test_a_pack_gives_back_every_pair(small: Path) -> None:
    pack = read_pack(small)
    assert [group.name for group in pack.groups] == ["rearc/0", "rearc/1"]
    for number, group in enumerate(pack.groups):
        for index in range(len(group)):
            for got, put in zip(group.pair(index), some_pair(100 * number + index), strict=True):
                assert same_grid(got, put)
                assert not got.flags.writeable
    assert list(pack.groups[0].training) == [0, 1, 2, 3]
    assert list(pack.groups[0].held) == [4, 5]
    assert list(pack.groups[1].training) == []
    assert list(pack.groups[1].held) == [0, 1, 2, 3, 4, 5]


def test_token_counts_are_those_of_the_compact_format(small: Path) -> None:
    group = read_pack(small).groups[0]
    for index in range(len(group)):
        example = group.example(index)
        expected = len(CompactFormat().encode((), example.input, example.output))
        assert group.tokens[index] == pair_tokens(group.pair(index)) == expected


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_pack_is_refused(small: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    raw = small.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / "cut.pack"
    cut.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(PackError, match=r"cut\.pack"):
        read_pack(cut)


def test_a_pack_cut_at_any_byte_is_refused(small: Path, tmp_path: Path) -> None:
    raw = small.read_bytes()
    for size in range(len(raw)):
        (tmp_path / "cut.pack").write_bytes(raw[:size])
        with pytest.raises(PackError):
            read_pack(tmp_path / "cut.pack")


@settings(max_examples=80, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_without_effect(
    small: Path, tmp_path_factory: pytest.TempPathFactory, share: float, flip: int
) -> None:
    raw = bytearray(small.read_bytes())
    raw[int(share * len(raw))] ^= flip
    changed = tmp_path_factory.mktemp("flip") / "changed.pack"
    changed.write_bytes(raw)
    try:
        pack = read_pack(changed)
    except PackError:
        return
    assert pack.sha256 == read_pack(small).sha256


def test_another_version_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    raw = bytearray(small.read_bytes())
    raw[8:12] = struct.pack("<I", 9)
    (tmp_path / "other.pack").write_bytes(raw)
    with pytest.raises(PackError, match=r"version 9.*version 1"):
        read_pack(tmp_path / "other.pack")


@pytest.mark.parametrize("raw", [b"", b"hello", b"PK\x03\x04" * 40, b"\x00" * 200])
def test_other_files_are_no_packs(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(PackError, match="is no training pack"):
        read_pack(tmp_path / "file")
    with pytest.raises(PackError, match="cannot be read"):
        read_pack(tmp_path / "missing")


def test_split_pairs_refuses_half_a_pair() -> None:
    whole = pair_bytes(some_pair(1)) + pair_bytes(some_pair(2))
    assert split_pairs(whole) == [pair_bytes(some_pair(1)), pair_bytes(some_pair(2))]
    with pytest.raises(PackError):
        split_pairs(whole[:-1])
