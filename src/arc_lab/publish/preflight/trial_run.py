"""A run of two tasks that a model must answer, and a forecast of the whole."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arc_lab.publish.bundle import MOST_MODEL_BYTES, model_files
from arc_lab.publish.interpreter import can_isolate, clean_interpreter
from arc_lab.publish.kernel_file import kernel_with, shortened
from arc_lab.publish.preflight.checkup import Plan, _is_bundle, chosen_settings, machine, model_here
from arc_lab.publish.preflight.findings import FAIL, OK, SKIPPED, WARN, Finding
from arc_lab.publish.stage import Stage, perform, set_stage, some_tasks
from arc_lab.simulate.scenarios import Scenario, loaded_from, made_up_tasks
from arc_lab.simulate.simulation import simulate
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import SIZES
from arc_ttt.deadline import format_duration
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.run.journal import read_journal

HIDDEN_TASKS = 240
RUN_TASKS, RUN_LIMIT_S = 2, 120.0
MODEL_RUN_LIMIT_S = 590.0  # so short that a base pass is answer enough; for a model of up to MOST_MODEL_BYTES on a CPU
RUN_SETTINGS: dict[str, object] = {
    "model.backend": "transformers",
    "ttt.passes": 1,
    "ttt.max_sequences": 16,
    "synthesis.cpu_limits_s": "1",
}
EMBEDDED_XS: dict[str, object] = {"preset": "embedded", "model.path": "", "model.format": "compact"}
FEW_VIEWS: dict[str, object] = {
    "decode.base_views": 2,
    "decode.base_share": 0.5,
    "decode.views": 2,
    "vote.scoring_views": 2,
    "ttt.max_sequences": 4,
}


@dataclass(frozen=True, slots=True)
class Answering:
    """Which model answers in the run of two tasks. changes: to SETTINGS. mounted: its folder here, if it is to be
    mounted. left: what to do about the model that SETTINGS ask for, if it is another."""

    name: str
    changes: dict[str, object]
    limit_s: float
    mounted: Path | None = None
    left: str = ""


def answering(plan: Plan) -> Answering:
    """The model that SETTINGS ask for, where it is here and small enough for a CPU; else embedded XS."""
    model = chosen_settings(plan).model
    if not model.path or model.path in SIZES:
        return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S)
    bundled = _is_bundle(plan, model.path, plan.metadata)
    if bundled and plan.has_model:
        return Answering(f"the bundle's model in format {model.format}", FEW_VIEWS, MODEL_RUN_LIMIT_S)
    if plan.model is not None and not bundled and 0 < model_files(plan.model)[1] <= MOST_MODEL_BYTES:
        name = f"{plan.model.resolve().name} in format {model.format}"
        return Answering(name, FEW_VIEWS, MODEL_RUN_LIMIT_S, plan.model)
    left = f"; your model: python -m arc_lab rehearse --model {plan.model or 'DIR'} [--gpu]"
    return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S, left=left)


def check_run(plan: Plan) -> Iterator[Finding]:
    """Two tasks, as the scoring rerun would do them."""
    if plan.short:
        yield Finding(SKIPPED, "run of 2 tasks", "--short was given")
        return
    plan.need_bundle()
    chosen = answering(plan)
    limit_s = chosen.limit_s
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        changes = {**shortened(limit_s), **RUN_SETTINGS, **chosen.changes}
        text = kernel_with((plan.kernel / "kernel.py").read_text(encoding="utf-8"), changes)
        (base / "kernel.py").write_text(text, encoding="utf-8")
        python, _ = clean_interpreter(base / "python", plan.image)
        stage = Stage(base / "kaggle", can_isolate())
        cheapest = sorted(some_tasks("training", 400).items(), key=lambda item: len(json.dumps(item[1])))
        mounted = None
        if chosen.mounted is not None:
            mounted = base / "model"  # without what else lies in the folder
            mounted.mkdir()
            for path in model_files(chosen.mounted)[0]:
                (mounted / path.name).symlink_to(path.resolve())
        set_stage(
            stage.root,
            bundle=plan.bundle,
            tasks=dict(cheapest[:RUN_TASKS]),
            layout="new",
            kernel=base / "kernel.py",
            model=mounted,
        )
        result = perform(stage, python, limit_s=limit_s, rerun=True)
        events = read_journal(stage.working / "events.jsonl") if (stage.working / "events.jsonl").is_file() else []
    problems = [*result.problems, *(line for line in result.log.splitlines() if line.startswith("FALLBACK"))]
    looked = {event["task_id"] for event in events if event["event"] == "found" and event["kind"] in (BASE, TTT)}
    if not problems and not re.search(r"^arc_ttt \S+ of commit \S+$", result.log, re.MULTILINE):
        problems.append("kernel.py did not run the arc_ttt of the bundle")
    if not problems and len(looked) < RUN_TASKS:
        problems.append(
            f"{chosen.name} answered {len(looked)} of {RUN_TASKS} tasks: run it again with nothing else running"
        )
    yield from (Finding(FAIL, "run of 2 tasks", text) for text in problems)
    if not problems:
        slack = f"slack {result.slack_s:.0f} s of {limit_s:.0f}"
        yield Finding(OK, "run of 2 tasks", f"answered by {chosen.name}, valid submission, {slack}{chosen.left}")


def check_forecast(plan: Plan) -> Iterator[Finding]:
    """The real scheduler in virtual time over as many made-up tasks as the competition has."""
    device_type, devices = machine(plan)
    settings = chosen_settings(plan).override([("synthesis.enabled", False)])
    model = Checkpoint.read(model_here(plan)).size
    tasks = loaded_from(made_up_tasks(HIDDEN_TASKS))
    outcome = simulate(Scenario(tasks=tasks, settings=settings, model=model, device_type=device_type, devices=devices))
    text = (
        f"{HIDDEN_TASKS} tasks on {devices} x {device_type}: {outcome.answered:.0%} answered, {outcome.trained:.0%} "
        f"trained, ends {format_duration(outcome.limit_s - outcome.seconds)} before the limit"
    )
    yield Finding(FAIL if outcome.missed else WARN if outcome.trained < 0.9 else OK, "forecast", text)
