"""`arc-lab benchmark`: measure how fast this machine trains and decodes with a model, and what share of its peak.

It uses one device and one process. Other load on the machine shows in the figures.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from arc_lab.command_line import add_json, add_set, json_document, make_parser, print_table, reports_errors
from arc_lab.data.datasets import load_dataset
from arc_lab.evaluate.speed import best_of, flops_per_token, matmul_peak
from arc_ttt.adapt.batches import shuffled_steps
from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.adapt.training import train
from arc_ttt.deadline import Deadline
from arc_ttt.decode.greedy import greedy
from arc_ttt.decode.prompts import PromptBatch, answer_limits, fit_prompt
from arc_ttt.model.load import load_model
from arc_ttt.settings import Settings, parse_overrides
from arc_ttt.tasks.grids import Task
from arc_ttt.tasks.views import sample_views, task_rng, turns_sides
from arc_ttt.worker.solver import TaskSolver

BENCH_TASKS = ("67a3c6ac", "3c9b0459", "a416b8f3")
"""Training tasks that are measured; their sequences have about 240, 100 and 140 tokens."""

EXAMPLES = ("arc-lab benchmark --threads 2", "arc-lab benchmark --set model.path=embedded-M --json")


@reports_errors("benchmark")
def main(argv: Sequence[str]) -> int:
    """Run the benchmark command."""
    parser = make_parser("benchmark", __doc__, examples=EXAMPLES)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="numeric threads on a CPU")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="training steps measured on each task")
    add_set(parser, "any setting; may be repeated")
    add_json(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with json_document(options.json) as document:
        settings = Settings().override([*parse_overrides(options.set), ("ttt.stop_loss", 0.0)])
        start_s = time.perf_counter()
        base = load_model(settings.model, device)
        load_s = time.perf_counter() - start_s
        peak = matmul_peak(device, base.dtype)
        tasks = {task.task_id: task for task in load_dataset("training").loaded.tasks}
        solver = TaskSolver(base, settings)
        rows = [measure(solver, settings, tasks[task_id], options.steps, peak) for task_id in BENCH_TASKS]
        threads = f"{options.threads} threads, loaded in {load_s:.1f} s"
        print(f"{base.parameters:,} parameters, {base.dtype}, {device}, {threads}")
        print(f"matmul peak of this machine with these threads: {peak / 1e9:.0f} GFLOP/s")
        print_table("Speed in tokens a second", COLUMNS, [_cells(row) for row in rows])
        document |= {"peak_gflops": round(peak / 1e9, 1), "load_s": round(load_s, 2), "rows": rows}
        document |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    return 0


COLUMNS = ("task", "length", "train", "GFLOP/s", "of peak", "read", "write")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table; columns as in COLUMNS."""
    train = f"{row['train_tokens_s']:.0f}", f"{row['train_flops'] / 1e9:.1f}", f"{row['share_of_peak']:.0%}"
    return row["task"], f"{row['length']:.0f}", *train, f"{row['read_tokens_s']:.0f}", f"{row['written_tokens_s']:.0f}"


def measure(solver: TaskSolver, settings: Settings, task: Task, steps: int, peak: float) -> dict[str, Any]:
    """Training and decoding speed on one task. Padding does not count as tokens.

    Args:
        solver: holds the model.
        settings: of training and decoding.
        task: the task.
        steps: number of training steps.
        peak: best rate of the device's matrix products, in FLOP/s.
    """
    base = solver.base
    sequences = ttt_sequences(task, base.form, settings.ttt, task_rng(0, task.task_id, "sequences"))
    batches = shuffled_steps(
        sequences, epochs=1, batch_sequences=settings.ttt.batch_sequences, rng=task_rng(0, task.task_id, "order")
    )[:steps]
    length = sum(len(s) for s in sequences) / len(sequences)
    assert solver.adapter is not None
    solver.adapter.reset()
    train(base, solver.adapter.parameters(), batches[:1], settings.ttt, Deadline.never(), recorded=solver.recorded)
    report = train(base, solver.adapter.parameters(), batches, settings.ttt, Deadline.never(), recorded=solver.recorded)
    views = sample_views(settings.decode.views, len(task.train), task_rng(0, task.task_id, "views"))
    prompts = [fit_prompt(base, task, 0, view, settings.model.max_tokens) for view in views]
    rows_columns = answer_limits(task, 0)
    limits = [rows_columns[::-1] if turns_sides(view.dihedral) else rows_columns for view in views]
    decoder = solver.answerer.decoder()
    read_s = best_of(lambda: PromptBatch(decoder, prompts), base.device, 2)
    batch = PromptBatch(decoder, prompts, limits)
    start_s = time.perf_counter()
    answers = greedy(batch, Deadline.never())
    write_s = time.perf_counter() - start_s
    written = sum(len(base.form.answer_ids(prompts[a.row], a.grid)[0]) for a in answers if a.grid is not None)
    speed = report.tokens / report.seconds
    tokens = sum(len(s) for s in sequences)
    seen = sum(len(s) ** 2 for s in sequences) / tokens  # length of the sequence of a token, mean over tokens
    flops = speed * flops_per_token(base, seen, sum(int(s.loss_mask[1:].sum()) for s in sequences) / tokens)
    return {
        "task": task.task_id,
        "length": round(length, 1),
        "train_tokens_s": round(speed, 1),
        "train_flops": round(flops),
        "share_of_peak": round(flops / peak, 4),
        "read_tokens_s": round(sum(len(prompt) for prompt in prompts) / read_s, 1),
        "written_tokens_s": round(written / write_s, 1),
    }
