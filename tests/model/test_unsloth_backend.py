"""The unsloth backend: contract with a stand-in of its interface, fallback, patches undone, import order."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.checkpoints.memory_formulas import T4
from arc_ttt.checkpoints.memory_plan import MemoryPlan, plan
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.deadline import Deadline
from arc_ttt.errors import ModelError
from arc_ttt.model import unsloth as unsloth_backend
from arc_ttt.model.attention import hidden_states
from arc_ttt.model.load import load_model
from arc_ttt.model.unsloth import Patches, adapter_refusal
from arc_ttt.protocol.messages import Note
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, Task, freeze
from arc_ttt.worker import ready
from arc_ttt.worker.ready import check_backend, ready_solver
from arc_ttt.worker.solver import TaskSolver
from support.fake_unsloth import FakeUnsloth
from support.small_tokenizers import BOS, EOS, tokenizer_for

CPU = torch.device("cpu")
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]


def grid(*rows: str) -> Any:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


TASK = Task("t", (Example(grid("012", "340"), grid("21", "04")), Example(grid("55"), grid("5"))), (grid("70", "07"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with grouped heads and a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_for("architects", "llama").inner
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 6,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.15,  # enough for positions to matter
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )
    where = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(where)
    tokenizer.save(str(where / "tokenizer.json"))
    return where


@pytest.fixture(autouse=True)
def patches() -> Iterator[Patches]:
    """The libraries' state, put back after each test."""
    kept = Patches()
    yield kept
    kept.undo()


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeUnsloth) -> FakeUnsloth:
    monkeypatch.setattr(unsloth_backend, "import_unsloth", lambda: fake)
    return fake


def settings(folder: Path, backend: str = "unsloth", **changes: Any) -> Settings:
    fixed = {
        "model.path": str(folder),
        "model.backend": backend,
        "model.dtype": "float32",
        "model.dequantize": "never",
        "ttt.rank": 4,
        "ttt.alpha": 8.0,
        "ttt.max_sequences": 4,
        "ttt.epochs": 1,
        "ttt.learning_rate": 1e-2,
        "decode.views": 3,
        "vote.scoring_views": 2,
        "run.seed": 2**40 + 1,
    }
    return Settings.of("llama-1b").override({**fixed, **{k.replace("__", "."): v for k, v in changes.items()}}.items())


def answers_of(solver: TaskSolver) -> tuple[list[float], list[tuple[list[list[int]], float]]]:
    found = solver.adapt(TASK, Deadline.never())
    assert found.training is not None
    return found.training.losses, [(c.grid.tolist(), c.nll) for c in found.candidates]


def test_a_task_is_answered_as_with_transformers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    plain, notes = ready_solver(settings(folder, "transformers"), CPU)
    assert notes == []
    want = answers_of(plain)
    fake = use(monkeypatch, FakeUnsloth())
    solver, notes = ready_solver(settings(folder), CPU)
    assert notes == []
    assert solver.base.unsloth is not None
    assert solver.base.four_bit
    losses, candidates = answers_of(solver)
    assert losses == pytest.approx(want[0], rel=1e-4)
    assert [g for g, _ in candidates] == [g for g, _ in want[1]]
    assert [nll for _, nll in candidates] == pytest.approx([nll for _, nll in want[1]], rel=1e-3)
    names = [name for name, _ in fake.calls]
    assert names[:2] == ["from_pretrained", "get_peft_model"]
    assert names[-2:] == ["for_training", "for_inference"]
    assert not solver.base.llama.training
    assert answers_of(solver)[0] == losses  # reset: the second time is the first


def test_what_unsloth_is_told(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    fake = use(monkeypatch, FakeUnsloth())
    ready_solver(settings(folder, model__max_tokens=6000), CPU)
    (_, load), (_, attach) = fake.calls[:2]
    assert load["max_seq_length"] == 4096  # above the checkpoint's own limit it would stretch rotary positions
    assert load["dtype"] == torch.float32
    assert load["load_in_4bit"]
    assert load["kwargs"] == {"local_files_only": True}
    assert (load["fix_tokenizer"], load["offload_embedding"], load["fast_inference"]) == (False, False, False)
    assert (attach["r"], attach["lora_alpha"], attach["use_rslora"]) == (4, 8.0, False)
    assert attach["target_modules"] == ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    assert attach["use_gradient_checkpointing"] is True
    assert attach["random_state"] == (2**40 + 1) % 2**32


def test_an_older_unsloth_is_not_told_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use(monkeypatch, FakeUnsloth(older=True))
    _, notes = ready_solver(settings(folder), CPU)
    assert notes == []


def test_training_sequences_stay_below_the_length_that_unsloth_cuts_at(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use(monkeypatch, FakeUnsloth())
    solver, _ = ready_solver(settings(folder, model__max_tokens=512), CPU)
    assert solver.settings.ttt.max_sequence_tokens == 512
    ids = torch.zeros(1, 600, dtype=torch.long)
    assert hidden_states(solver.base.llama, ids, torch.arange(600)[None]).shape[1] == 512  # the trap is there


def test_decoding_does_not_use_its_rotary_embedding(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use(monkeypatch, FakeUnsloth())
    base = load_model(settings(folder).model, CPU)
    hidden, late = torch.zeros(1, 1, 64), torch.tensor([[7]])
    assert base.rotary is not None
    right, wrong = base.rotary(hidden, late)[1], base.llama.model.rotary_emb(hidden, late)[1]
    assert not torch.allclose(right, wrong)  # the trap is there


@pytest.mark.parametrize("fault", ["load", "vocabulary", "attach", "idle"])
def test_where_unsloth_fails_transformers_takes_over_unpatched(
    monkeypatch: pytest.MonkeyPatch, folder: Path, patches: Patches, fault: str
) -> None:
    use(monkeypatch, FakeUnsloth(fault))
    solver, notes = ready_solver(settings(folder), CPU)
    assert len(notes) == 1
    assert notes[0].less
    assert notes[0].text.startswith("backend: transformers instead of unsloth: ")
    said = {"load": "negligible GPU", "vocabulary": "tokens", "attach": "Rank", "idle": "gradients"}[fault]
    assert said in notes[0].text
    assert "\n" not in notes[0].text
    assert solver.base.unsloth is None
    assert solver.settings.model.backend == "transformers"
    from transformers.models.llama.modeling_llama import LlamaModel

    assert not hasattr(LlamaModel, "_left_by_unsloth")
    assert patches.undo() == []
    plain, _ = ready_solver(settings(folder, "transformers"), CPU)
    assert answers_of(solver) == answers_of(plain)


def test_a_device_that_cannot_train_answers_with_unsloths_base_model(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use(monkeypatch, FakeUnsloth())

    def no_room(base: Any, wanted: Settings) -> MemoryPlan:
        shape = LlamaShape.of(base.llama.config.to_dict())
        return dataclasses.replace(plan(shape, T4, wanted.ttt, four_bit=True, checkpointing=True), tokens=0)

    monkeypatch.setattr(ready, "memory_plan", no_room)
    solver, notes = ready_solver(settings(folder), CPU)
    assert solver.adapter is None
    assert solver.base.unsloth is not None
    assert [note.less for note in notes] == [True]
    assert "backend" not in notes[0].text


def test_notes_of_an_attempt_with_unsloth_that_failed_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use(monkeypatch, FakeUnsloth("idle"))
    plans: list[str] = []

    def changed(wanted: Settings, _: object) -> tuple[Settings, list[Note]]:
        plans.append(wanted.model.backend)
        return wanted, [Note(f"memory for {wanted.model.backend}", less=True)]

    monkeypatch.setattr(ready, "memory_plan", lambda base, wanted: object())
    monkeypatch.setattr(ready, "fitted", changed)
    monkeypatch.setattr(ready, "TaskSolver", lambda base, wanted, memory: TaskSolver(base, wanted))
    _, notes = ready_solver(settings(folder), CPU)
    assert plans == ["unsloth", "transformers"]
    assert [note.text.partition(":")[0] for note in notes] == ["backend", "memory for transformers"]


def test_a_backend_with_other_positions_is_found(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use(monkeypatch, FakeUnsloth())
    solver, _ = ready_solver(settings(folder), CPU)
    assert check_backend(solver, solver.adapter) < 1e-4
    right = solver.base.llama.model.rotary_emb.forward
    backwards = lambda x, position_ids: tuple(table.flip(1) for table in right(x, position_ids))  # noqa: E731
    monkeypatch.setattr(solver.base.llama.model.rotary_emb, "forward", backwards)
    with pytest.raises(ModelError, match="differ"):
        check_backend(solver, solver.adapter)
    assert solver.adapter is not None
    assert all(not w.any() for name, w in solver.adapter.trainable.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttt__targets": "q_proj,lm_head"}, "lm_head whole"),
        ({"ttt__adapter": "full"}, "LoRA"),
        ({"ttt__scope": "none"}, "LoRA"),
        ({"model__format": "compact"}, "format compact"),
    ],
)
def test_what_unsloth_cannot_do_is_refused_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, folder: Path, changes: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(unsloth_backend, "import_unsloth", lambda: pytest.fail("imported"))
    if "compact" in said:
        changes = {**changes, "model__path": ""}  # the embedded model
    elif "full" in changes.values():
        changes = {**changes, "model__quantize": "none"}
    _, notes = ready_solver(settings(folder, **changes), CPU)
    assert len(notes) == 1
    assert said in notes[0].text


def test_targets_of_the_presets() -> None:
    assert adapter_refusal(Settings.of("llama-3b").ttt) == ""
    assert "lm_head" in adapter_refusal(Settings.of("llama-8b").ttt)


def test_an_import_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", None)
    monkeypatch.setattr(unsloth_backend, "LOCK", folder / "no such folder" / "lock")  # nowhere to write: no lock
    for name in (*unsloth_backend.ENVIRONMENT, "UNSLOTH_COMPILE_LOCATION"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ModelError, match="cannot be imported: ModuleNotFoundError"):
        load_model(settings(folder).model, CPU)


IMPORTER = """
import os, sys, time
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
early = [name for name in ("transformers", "peft", "trl") if name in sys.modules]
told = [os.environ[name] for name in ("UNSLOTH_DISABLE_STATISTICS", "HF_HUB_OFFLINE")]
os.write(log, f"start {{early}} {{told}}\\n".encode())
compiled = os.environ["UNSLOTH_COMPILE_LOCATION"]
time.sleep(0.3)
os.write(log, f"end {{compiled}}\\n".encode())
FastLanguageModel = None
"""


def test_workers_import_one_after_another_before_other_libraries(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "unsloth.py").write_text(IMPORTER.format(log=str(log)))
    code = (
        "from pathlib import Path; from arc_ttt.model import unsloth as u; "
        f"u.LOCK = Path({str(tmp_path / 'lock')!r}); u.import_unsloth()"
    )
    hidden = {"UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DISABLE_STATISTICS", "HF_HUB_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0, 0]
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["start", "end"] * 3
    assert set(lines[::2]) == {"start [] ['1', '1']"}
    assert len(set(lines[1::2])) == 3  # a folder for compiled code each


def test_the_worker_asks_for_unsloth_before_it_imports_transformers() -> None:
    code = (
        "import sys, arc_ttt.worker.ready, arc_ttt.worker; "
        "print([n for n in ('transformers', 'peft', 'trl', 'bitsandbytes') if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_large_adapter_keeps_its_fresh_values_on_the_host_and_comes_back(folder: Path) -> None:
    base = load_model(settings(folder, "transformers").model, CPU)
    large = dataclasses.replace(base, parameters=10**9)
    adapter = Adapter(large, settings(folder).ttt, seed=1)
    before = {name: weight.detach().clone() for name, weight in adapter.trainable.items()}
    for weight in adapter.parameters():
        weight.data.add_(1.0)
    adapter.reset()
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.trainable.items())
