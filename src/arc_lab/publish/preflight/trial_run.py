"""Run two tasks, which a model must answer, and forecast the whole run."""

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
from arc_lab.publish.preflight.checkup import Checkup, chosen_settings, leads_into_bundle, machine, model_here
from arc_lab.publish.preflight.findings import Finding, Level
from arc_lab.publish.stage import FALLBACK, Stage, perform, set_stage, some_tasks
from arc_lab.simulate.scenarios import Scenario, loaded_from, made_up_tasks
from arc_lab.simulate.simulation import simulate
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import is_embedded
from arc_ttt.deadline import format_duration
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.run.journal import read_journal

HIDDEN_TASKS = 240
"""Tasks of the competition."""

RUN_TASKS = 2
"""Tasks of the trial run."""

RUN_LIMIT_S = 120.0
"""Time limit of a trial run with embedded XS, in seconds."""

MODEL_RUN_LIMIT_S = 590.0
"""Time limit of a trial run with a model of up to MOST_MODEL_BYTES on a CPU, in seconds; its base pass is enough."""

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
    """Which model answers in the trial run.

    Args:
        name: the model, for a person.
        changes: changes to SETTINGS.
        limit_s: time limit of the run, in seconds.
        mounted: the model's folder here, if it has to be mounted.
        left: what to do about the model that SETTINGS name, if it is another.
    """

    name: str
    changes: dict[str, object]
    limit_s: float
    mounted: Path | None = None
    left: str = ""


def answering(checkup: Checkup) -> Answering:
    """The model that SETTINGS name, if it is on this machine and small enough for a CPU; else embedded XS."""
    model = chosen_settings(checkup).model
    if is_embedded(model.path):
        return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S)
    bundled = leads_into_bundle(checkup, model.path, checkup.metadata)
    if bundled and checkup.has_model:
        return Answering(f"the bundle's model in format {model.format}", FEW_VIEWS, MODEL_RUN_LIMIT_S)
    if checkup.model is not None and not bundled and 0 < model_files(checkup.model)[1] <= MOST_MODEL_BYTES:
        name = f"{checkup.model.resolve().name} in format {model.format}"
        return Answering(name, FEW_VIEWS, MODEL_RUN_LIMIT_S, checkup.model)
    left = f"; your model: arc-lab rehearse --model {checkup.model or 'DIR'} [--gpu]"
    return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S, left=left)


def check_run(checkup: Checkup) -> Iterator[Finding]:
    """The scoring rerun of two tasks ends in time, with answers of the model and a valid submission."""
    if checkup.short:
        yield Finding(Level.SKIPPED, "run of 2 tasks", "--short was given")
        return
    checkup.need_bundle()
    chosen = answering(checkup)
    limit_s = chosen.limit_s
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        changes = {**shortened(limit_s), **RUN_SETTINGS, **chosen.changes}
        text = kernel_with((checkup.kernel / "kernel.py").read_text(encoding="utf-8"), changes)
        (base / "kernel.py").write_text(text, encoding="utf-8")
        python, _ = clean_interpreter(base / "python", checkup.image)
        stage = Stage(base / "kaggle", can_isolate())
        cheapest = sorted(some_tasks("training", 400).items(), key=lambda item: len(json.dumps(item[1])))
        mounted = None
        if chosen.mounted is not None:
            mounted = base / "model"  # without other files of the folder
            mounted.mkdir()
            for path in model_files(chosen.mounted)[0]:
                (mounted / path.name).symlink_to(path.resolve())
        set_stage(
            stage.root,
            bundle=checkup.bundle,
            tasks=dict(cheapest[:RUN_TASKS]),
            layout="new",
            kernel=base / "kernel.py",
            model=mounted,
        )
        result = perform(stage, python, limit_s=limit_s, rerun=True)
        events = read_journal(stage.working / "events.jsonl") if (stage.working / "events.jsonl").is_file() else []
    problems = [*result.problems, *(f"{FALLBACK}{line}" for line in result.fallbacks)]
    answered = {event["task_id"] for event in events if event["event"] == "found" and event["kind"] in (BASE, TTT)}
    if not problems and not re.search(r"^arc_ttt \S+ of commit \S+$", result.log, re.MULTILINE):
        problems.append("kernel.py did not run the arc_ttt of the bundle")
    if not problems and len(answered) < RUN_TASKS:
        problems.append(
            f"{chosen.name} answered {len(answered)} of {RUN_TASKS} tasks: run it again with nothing else running"
        )
    yield from (Finding(Level.FAIL, "run of 2 tasks", text) for text in problems)
    if not problems:
        slack = f"slack {result.slack_s:.0f} s of {limit_s:.0f}"
        yield Finding(Level.OK, "run of 2 tasks", f"answered by {chosen.name}, valid submission, {slack}{chosen.left}")


def check_forecast(checkup: Checkup) -> Iterator[Finding]:
    """A simulated run of HIDDEN_TASKS made-up tasks ends in time and trains nearly all of them."""
    asked = machine(checkup)
    if asked is None:
        shape = checkup.metadata.get("machine_shape")
        yield Finding(Level.SKIPPED, "forecast", f"the speed of machine_shape {shape!r} is not known")
        return
    device_type, devices = asked
    settings = chosen_settings(checkup).override([("synthesis.enabled", False)])
    model = Checkpoint.read(model_here(checkup)).size
    tasks = loaded_from(made_up_tasks(HIDDEN_TASKS))
    run = simulate(Scenario(tasks=tasks, settings=settings, model=model, device_type=device_type, devices=devices))
    text = (
        f"{HIDDEN_TASKS} tasks on {devices} x {device_type}: {run.answered:.0%} answered, {run.trained:.0%} "
        f"trained, ends {format_duration(run.limit_s - run.seconds)} before the limit"
    )
    yield Finding(Level.FAIL if run.missed else Level.WARN if run.trained < 0.9 else Level.OK, "forecast", text)
