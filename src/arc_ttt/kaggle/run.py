"""The whole of a run on Kaggle: mounts in, submission out, never an exception."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arc_ttt.bootstrap import mounts as bootstrap
from arc_ttt.checkpoints.folders import SIZES, model_folder, parameter_count, read_config
from arc_ttt.checkpoints.memory_plan import NO_TRAINING, SMALL_PARAMETERS
from arc_ttt.deadline import REAL_CLOCK, format_duration
from arc_ttt.errors import ModelError, SettingsError, SubmissionError, TaskFileError
from arc_ttt.fleet.launch import count_gpus
from arc_ttt.machine import free_memory
from arc_ttt.run.coordinator import start_run
from arc_ttt.run.report import RunResult, Status, report_lines, run_report
from arc_ttt.run.signals import on_signals
from arc_ttt.run.submission import Submission, check_submission, write_atomically
from arc_ttt.schedule.cost import TTT, work
from arc_ttt.settings import TRANSDUCTIVE, Settings
from arc_ttt.tasks.grids import LoadedTasks, load_tasks, read_json

PRESETS = {"architects": "llama-1b-3b", "marc": "llama-8b", "barc": "llama-8b"}  # of a format, by its first model
LIMIT_S = 11.5 * 3600  # where SETTINGS name none that can be used; Kaggle ends a run after 12 hours
LONG_S = 600.0  # a run of this length has time to train something
COMMIT_PASSES = 2  # trainings of a task in the public commit run, to save quota
RECORD = "setup.json"
START_AGAIN = 75  # the exit status for a failure that may pass
LESS = (bootstrap.NO_UNSLOTH, NO_TRAINING)  # in a note of a worker: it had to do with less than was asked for
PACKAGES_SHARE = 0.2  # of the limit, at most MOST_PACKAGES_S: for installing and trying out packages
MOST_PACKAGES_S = 1200.0
HEADROOM = 1.25  # memory for adapters and activations, as a factor of the weights


class _Signalled(BaseException):
    """SIGTERM or SIGINT came while there was nothing to save and nobody to look at a flag."""


@dataclass(slots=True)
class Setup:
    """What the run found and decided, line by line; `fallbacks` are those that gave it less than was asked for."""

    notes: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)
        print(line, flush=True)

    def fall_back(self, line: str) -> None:
        self.fallbacks.append(line)
        print(f"FALLBACK: {line}", flush=True)

    def write(self, path: Path, settings: Settings) -> None:
        """Leave a record beside the submission. It names packages and folders, and no value of the environment."""
        with contextlib.suppress(Exception):  # only a record; other people's packages may be odd
            found = set[tuple[str, str]]()
            with contextlib.suppress(Exception):
                for item in importlib.metadata.distributions():
                    found.add((item.metadata["Name"], item.version))
            names = sorted(found, key=lambda item: str(item).lower())
            record = {
                "build": build_stamp(),
                "python": platform.python_version(),
                "glibc": platform.libc_ver()[1],
                "notes": self.notes,
                "fallbacks": self.fallbacks,
                "settings": json.loads(settings.to_json()),
                "packages": {name: version for name, version in names if name},
            }
            write_atomically(path, json.dumps(record, indent=1) + "\n")


def build_stamp() -> dict[str, str]:
    """Version and commit that the project's wheel was built from; empty in a source tree."""
    try:
        stamp = json.loads((Path(__file__).parents[1] / "build.json").read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in stamp.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def kaggle_run(
    root: Path,
    chosen: Mapping[str, Any],
    commit_tasks: int,
    start_s: float,
    signals: list[int] | None = None,
    *,
    strict: bool = False,
) -> int:
    """The whole of a Kaggle run. Leaves a submission if any can be written; never raises.

    root: /kaggle, or where a rehearsal has its mounts. chosen: settings by dotted name, and `preset`. commit_tasks:
    how many tasks, the cheapest ones, the public commit run works on; the scoring rerun takes all. signals: SIGTERM
    and SIGINT that have come already; they end the run, with its submission, as soon as it can end. strict: the commit
    run returns 1 if it could not do what `chosen` asks for. The scoring rerun returns 0, for an error would lose the
    day; only to kernel.py's guard, which starts it again, it returns START_AGAIN after an error.
    """
    out = root / "working"
    setup, failed = Setup(), False
    try:
        _kaggle_run(root, out, dict(chosen), commit_tasks, start_s, signals if signals is not None else [], setup)
    except _Signalled as error:
        print(f"ended by signal {error}; the first submission stands", flush=True)
        return 0
    except Exception as error:  # the last line of defence, and the only place that catches everything
        traceback.print_exc()
        setup.fall_back(f"the run failed: {type(error).__name__}: {error}")
        failed = True
        if not (out / "submission.json").exists():
            with contextlib.suppress(OSError):
                write_atomically(out / "submission.json", "{}\n")
    if failed and bootstrap.is_rerun() and bootstrap.starts():
        return START_AGAIN
    if bootstrap.is_rerun() or not strict or not setup.fallbacks:
        return 0
    told = "; ".join(setup.fallbacks)
    print(f"this commit run is not what was asked for, and ends as an error (COMMIT_STRICT): {told}", flush=True)
    return 1


def _kaggle_run(
    root: Path,
    out: Path,
    chosen: dict[str, Any],
    commit_tasks: int,
    start_s: float,
    signals: list[int],
    setup: Setup,
) -> None:
    if stamp := build_stamp():
        setup.note(f"arc_ttt {stamp.get('version', '')} of commit {stamp.get('commit', '')}")
    mounts = bootstrap.find_mounts(root)
    loaded = _load_mounted(mounts, setup)
    if not _write_first(out / "submission.json", loaded, setup):
        return
    scratch = bootstrap.scratch_folder(root)
    if not scratch.is_relative_to(root / "temp"):
        setup.note(f"{root / 'temp'} cannot be written: scratch files go to {scratch}")
    bootstrap.set_environment(scratch)
    settings, chosen = _settings(chosen, setup)
    left_s = start_s + settings.run.limit_s - REAL_CLOCK.now()  # of a run that was started again less than the whole
    seconds = min(MOST_PACKAGES_S, PACKAGES_SHARE * max(0.0, left_s))
    unsloth = settings.model.backend == "unsloth"
    if signals:
        _end(signals[0])
    with on_signals(_end):
        packages = bootstrap.prepare_packages(mounts, scratch, unsloth=unsloth, seconds=seconds)
    for line in (*mounts.problems, *packages.notes):
        setup.note(line)
    for line in packages.fallbacks:
        (setup.note if line.startswith(bootstrap.NO_4_BIT) and _is_embedded(settings) else setup.fall_back)(line)
    embedded = Settings.of(_embedded()).override((name, value) for name, value in chosen.items() if _of_run(name))
    if settings.model.path in ("", "embedded-M"):  # what has failed once would fail again
        longest = Settings.of("embedded").ttt.max_sequence_tokens  # as long as XS has seen
        embedded = embedded.override([("model.path", "embedded-XS"), ("ttt.max_sequence_tokens", longest)])
    if not packages.four_bit:
        embedded = embedded.override([("model.quantize", "none")])
    settings = _usable(settings, embedded, mounts, packages, setup)
    if _is_large(settings):  # tensors of many sizes; small models record their steps instead
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if settings.run.reserve_raised:
        setup.note(settings.run.reserve_raised)
    asked = dict(loaded.test_counts)
    if not bootstrap.is_rerun():
        few = sorted(loaded.tasks, key=lambda task: work(task, TTT, settings))[:commit_tasks]
        loaded = LoadedTasks(tuple(few), (), loaded.test_counts)
        passes = min(COMMIT_PASSES, settings.ttt.passes)
        settings = settings.override([("ttt.passes", passes)])
        embedded = embedded.override([("ttt.passes", min(passes, embedded.ttt.passes))])
        setup.note(f"commit run: {len(few)} of {len(asked)} tasks")
    if settings.ttt.transductive:
        setup.note(f"ttt.scope={settings.ttt.scope}: {TRANSDUCTIVE}")
    setup.write(out / RECORD, settings)
    shown = start_s

    def show(status: Status) -> None:
        nonlocal shown
        if REAL_CLOCK.now() - shown >= 60:
            shown = REAL_CLOCK.now()
            print(status.line(), flush=True)

    result = start_run(
        loaded,
        settings,
        out,
        start_s=start_s,
        on_status=show,
        fallback=embedded,
        signals=signals,
        adopt=bootstrap.starts() > 1,
    )
    adapted = sum(1 for kind, _ in result.results if kind == TTT)
    report = run_report(result)
    print("\n".join([f"{adapted} tasks adapted", *report_lines(report)]), flush=True)
    with contextlib.suppress(OSError):
        write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
    _look_back(out, asked, result, settings, setup)
    setup.write(out / RECORD, settings)


def _end(number: int) -> None:
    """End the run at once on a signal that comes while something is waited for that nobody could tell to stop."""
    raise _Signalled(number)


def _settings(chosen: dict[str, Any], setup: Setup) -> tuple[Settings, dict[str, Any]]:
    """The settings chosen, or of wrong ones only the limit; and what they were made from, without the preset."""
    try:
        preset = str(chosen.pop("preset", "embedded"))
        if preset == "embedded" and (other := PRESETS.get(str(chosen.get("model.format", "")))):
            setup.fall_back(
                f"SETTINGS: preset embedded trains no model of format {chosen['model.format']}; {other} does"
            )
            preset = other
        preset = _embedded() if preset == "embedded" else preset
        return Settings.of(preset).override(chosen.items()), chosen
    except SettingsError as error:
        setup.fall_back(f"SETTINGS: {error}; the embedded model and its defaults instead")
    limits = {name: value for name, value in chosen.items() if name == "run.limit_s"}
    try:
        return Settings.of(_embedded()).override(limits.items()), limits
    except SettingsError as error:
        setup.fall_back(f"SETTINGS: {error}; {format_duration(LIMIT_S)} instead")
    limits = {"run.limit_s": LIMIT_S}
    return Settings.of(_embedded()).override(limits.items()), limits


def _embedded() -> str:
    """The preset of the embedded model that suits the machine."""
    return "embedded-gpu" if count_gpus() else "embedded"


def _is_embedded(settings: Settings) -> bool:
    """Whether the model is one of ours, whose 4-bit weights are expanded anyway, to the same values."""
    return not settings.model.path or settings.model.path in SIZES


def _is_large(settings: Settings) -> bool:
    """Whether the model is too large for its steps to be recorded as CUDA graphs."""
    try:
        config = read_config(model_folder(settings.model.path, gpu=count_gpus() > 0))
        return parameter_count(config) >= SMALL_PARAMETERS
    except (ModelError, KeyError, TypeError, ValueError):
        return False


def _usable(
    settings: Settings, embedded: Settings, mounts: bootstrap.Mounts, packages: bootstrap.Packages, setup: Setup
) -> Settings:
    """The settings with what this machine has: the model where it is mounted, 16-bit weights where 4-bit ones do not
    work and memory allows, transformers where unsloth does not work; `embedded` where the model cannot be used."""
    changes: list[tuple[str, Any]] = []
    if settings.model.backend == "unsloth" and not packages.unsloth:
        changes.append(("model.backend", "transformers"))
    try:
        folder = model_folder(settings.model.path, gpu=count_gpus() > 0)
        if settings.model.path:
            found, other = bootstrap.find_model(settings.model.path, mounts) or (folder, "")
            if found != folder:
                setup.note(f"model: {settings.model.path} is mounted as {found}")
            if other:
                setup.fall_back(other)
            folder = found
            changes.append(("model.path", str(folder)))
        config = read_config(folder)
        if not packages.four_bit and settings.model.quantize != "none":
            _check_memory(config, settings)
            setup.note("the model's weights are held in 16 bits (32 on a CPU)")
            changes.append(("model.quantize", "none"))
    except ModelError as error:
        setup.fall_back(f"{error}; using the embedded model instead")
        return embedded
    return settings.override(changes)


def _check_memory(config: dict[str, Any], settings: Settings) -> None:
    """Raises ModelError if the weights do not fit without 4 bits: on a GPU in 16, else for each process in 32."""
    on_gpu = bootstrap.gpu_memory_bytes() if count_gpus() else 0
    held = on_gpu or (free_memory() or 0) // (settings.run.workers or 2)
    needed = parameter_count(config) * (2 if on_gpu else 4) * HEADROOM
    if held and needed > held:
        raise ModelError(f"without 4-bit weights the model needs {needed / 2**30:.1f} GiB of {held / 2**30:.1f}")


def _of_run(name: str) -> bool:
    """Whether a setting is about the run and not about a particular model."""
    return name.partition(".")[0] in ("run", "synthesis", "vote") or name == "ttt.passes"


def _load_mounted(mounts: bootstrap.Mounts, setup: Setup) -> LoadedTasks:
    """Tasks of the competition's file. If it cannot be read, the ids of the sample submission still get an answer."""
    try:
        if mounts.challenges is None:
            raise TaskFileError(f"no {bootstrap.CHALLENGES} among the inputs")
        loaded = load_tasks(mounts.challenges)
        setup.note(f"{len(loaded.test_counts)} tasks of {mounts.challenges}, {len(loaded.problems)} of them unusable")
        if mounts.others:
            left = ", ".join(map(str, mounts.others))
            told = f"there is more than one {bootstrap.CHALLENGES}: {mounts.challenges} is used, not {left}"
            kinds = ["competitions" in path.parts for path in (mounts.challenges, *mounts.others)]
            (setup.note if kinds[0] and not any(kinds[1:]) else setup.fall_back)(told)
        for problem in loaded.problems[:20]:
            setup.note(f"  {problem}")
        return loaded
    except TaskFileError as error:
        setup.fall_back(str(error))
    counts: dict[str, int] = {}
    if mounts.sample is not None:
        with contextlib.suppress(TaskFileError):
            document, _ = read_json(mounts.sample)
            if isinstance(document, dict):
                counts = {i: max(1, len(a)) if isinstance(a, list) else 1 for i, a in document.items()}
    return LoadedTasks((), (), counts)


def _write_first(path: Path, loaded: LoadedTasks, setup: Setup) -> bool:
    """Write a complete submission before anything else; on a disk with little room one of the smallest answers. One
    that a killed run of the same tasks has left stays.

    Returns whether there is one. Without it there is nothing that a run could be for.
    """
    submission = Submission(path, loaded)
    if bootstrap.starts() > 1 and loaded.test_counts and submission.adopt():
        setup.note("submission.json is complete, by the run that was ended")
        return True
    try:
        submission.write()
        if loaded.test_counts:
            setup.note("submission.json is complete")
        else:
            setup.fall_back("no task is known; submission.json is empty")
        return True
    except OSError as error:
        why = error.strerror or str(error)
    answer = {"attempt_1": [[0]], "attempt_2": [[0]]}
    smallest = {task_id: [answer] * count for task_id, count in loaded.test_counts.items()}
    try:
        write_atomically(path, json.dumps(smallest, separators=(",", ":")))
        setup.fall_back(f"{path.parent}: {why}; submission.json holds only the smallest answers so far")
        return True
    except OSError as error:
        setup.fall_back(f"no submission can be written into {path.parent}: {error.strerror or error}")
        return False


def _look_back(out: Path, asked: Mapping[str, int], result: RunResult, settings: Settings, setup: Setup) -> None:
    """Whether the run ended with the model it began with, had tasks trained, and left a valid file."""
    trains = asked and settings.ttt.scope != "none" and settings.run.limit_s >= LONG_S
    if trains and not result.train_tokens and not result.resumed:
        setup.fall_back("no task was trained; logs/worker-0.log says why")
    if result.fell_back:
        setup.fall_back(f"the model could not be loaded: {result.fell_back}; the embedded model answered")
    if result.fatal:
        setup.fall_back(result.fatal)
    if result.lost_devices:
        setup.fall_back(f"device {', '.join(map(str, result.lost_devices))} was given up; logs/ says why")
    for note in result.notes:
        (setup.fall_back if any(less in note for less in LESS) else setup.note)(note)
    if not asked:
        return
    try:
        check_submission(json.loads((out / "submission.json").read_text(encoding="utf-8")), asked)
        setup.note("submission.json is valid")
    except (OSError, ValueError, SubmissionError) as error:
        setup.fall_back(f"submission.json is not valid: {error}")
