"""The pretrain command: its settings, its refusals, and trainings of real size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_lab.data.packs import write_pack
from arc_lab.pretraining.command import _parser, main, make_settings
from arc_lab.pretraining.settings import PRESETS
from arc_ttt.errors import SettingsError
from support.generators import WHEEL, needs_generators
from support.pretraining import DATA, options_of, rule_pairs, run, settings_of

CPU = torch.device("cpu")


def test_a_training_on_packed_rows_wastes_little(pack_file: Path, tmp_path: Path) -> None:
    data = replace(DATA, packed=True, compose=0.5)
    card = run(pack_file, settings_of(data=data, steps=3), options_of(tmp_path))
    assert card["finished"]
    assert card["padding"] < 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "XXL"},
        {"rope": "2d"},
        {"steps": 0},
        {"seconds": 5.0},
        {"muon_lr": 0.0},
        {"accumulate": 0},
        {"data": replace(DATA, lengths=(128,), window_sequences=3)},  # of which no batch of four could be filled
    ],
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        settings_of(**changes)


def test_wrong_use_is_told_in_one_line(pack_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["--pack", str(tmp_path / "no.pack"), "--steps", "1", "--out", out]) == 2
    assert main(["--pack", "x", "--steps", "1", "--out", out, "--preset", "XXL"]) == 2
    assert main(["--pack", "x", "--out", out]) == 2
    (tmp_path / "file").write_text("mine")
    beneath = ["--pack", str(pack_file), "--steps", "1", "--out", str(tmp_path / "file" / "out")]
    assert main(beneath) == 2
    assert main([*beneath[:-1], out, "--checkpoints", str(tmp_path / "file")]) == 2
    assert main([*beneath[:-1], out, "--live", "none.whl"]) == 2
    for wrong in (["--log-every", "0"], ["--threads", "0"], ["--processes", "-1"]):
        assert main([*beneath[:-1], out, *wrong]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("arc-lab pretrain: ") for line in lines)


def test_a_cpu_has_smaller_batches_of_a_size_for_gpus_by_default(tmp_path: Path) -> None:
    command = ["--pack", "x", "--out", str(tmp_path), "--steps", "1", "--rows", "padded", "--dtype", "bfloat16"]
    found = {
        (size, kind): make_settings(_parser().parse_args([*command, "--preset", size]), torch.device(kind)).data
        for size in ("XS", "S", "M")
        for kind in ("cpu", "cuda")
    }
    for (size, kind), data in found.items():
        preset = PRESETS[size]
        own = (preset.batch_tokens, preset.window_sequences, preset.windows_ahead)
        expected = (8192, 512, 3) if (size, kind) == ("M", "cpu") else own
        assert (data.batch_tokens, data.window_sequences, data.windows_ahead) == expected
    options = _parser().parse_args([*command, "--preset", "M", "--batch-tokens", "70000"])
    assert make_settings(options, CPU).data.batch_tokens == 70_000


@pytest.mark.parametrize(
    ("arguments", "preset"), [([], "XS"), (["--init", "embedded-M"], "M"), (["--preset", "S"], "S")]
)
def test_the_preset_is_that_of_the_checkpoint_to_go_on_from(arguments: list[str], preset: str, tmp_path: Path) -> None:
    options = _parser().parse_args(["--pack", "x", "--out", str(tmp_path), "--steps", "1", *arguments])
    settings = make_settings(options, torch.device("cpu"))
    assert settings.preset == preset
    assert settings.muon_lr == PRESETS[preset].muon_lr
    assert settings.data.max_tokens == PRESETS[preset].max_tokens


@pytest.mark.slow
def test_a_minute_of_training_solves_new_pairs_of_an_easy_generator(pack_file: Path, tmp_path: Path) -> None:
    data = replace(DATA, batch_tokens=2048, window_sequences=96, upscale=0.0)
    card = run(
        pack_file,
        settings_of(steps=0, seconds=60.0, warmup_steps=20, data=data),
        options_of(tmp_path, processes=1, eval_sequences=40),
    )
    losses = [line["loss"] for line in card["curve"] if "loss" in line]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]  # batches of one length each: single lines vary
    assert card["exact_match"]["seen"]["exact"] > 0


@pytest.mark.slow
@needs_generators
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at tensors that have none
def test_the_dry_path_of_the_large_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of a GPU: compiled layers, packed rows, live pairs."""
    groups = [
        ({"name": f"rearc/{name}", "family": name, "split": split, "held_pairs": 0}, rule_pairs("copy", 20, seed))
        for seed, (name, split) in enumerate([("67a3c6ac", "train"), ("a5313dff", "train"), ("x", "held-out")])
    ]
    write_pack(tmp_path / "p.pack", {"settings": {}}, groups)
    small = ["--max-tokens", "1024", "--batch-tokens", "1024", "--window-sequences", "12", "--windows-ahead", "1"]
    gpu = ["--compile", "--rows", "packed", "--live", WHEEL, "--save-dtype", "bfloat16", "--eval-sequences", "2"]
    command = ["--pack", str(tmp_path / "p.pack"), "--preset", "M", "--steps", "3", *small, *gpu]
    assert main([*command, "--log-every", "1", "--out", str(tmp_path)]) == 0
    shares = re.findall(r"([\d.]+)% of peak", capsys.readouterr().out)
    assert len(shares) == 3
    assert all(0 < float(share) < 100 for share in shares)
    shards = list((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) >= 4
    assert all(shard.stat().st_size < 14_500_000 for shard in shards)
