"""What the end of a job changes: the account of its task, the plan, and the predictions."""

from __future__ import annotations

from arc_ttt.protocol.jobs import BASE, JOINT, SYNTHESIS, TTT, CallBack, Job, Outcome
from arc_ttt.protocol.messages import Done
from arc_ttt.run.state import RunState
from arc_ttt.schedule.cost import Took


def conclude(state: RunState, job: Job, done: Done, *, superseded: bool = False) -> bool:
    """Let what is known about a pass, its plan included, follow its end.

    superseded: the pass was called back because a program is taken for right.

    Returns:
        Whether a program for the job's task is taken for right now.
    """
    if job.kind == JOINT:
        state.plan.done(job, failed=False, agreement=0.0)
        if done.outcome == Outcome.FINISHED:
            state.joint_path = str(state.joint_file)
        return False
    superseded = superseded and done.outcome == Outcome.CUT
    end_pass(state, job, done, superseded=superseded)
    if job.kind == SYNTHESIS:
        if done.outcome == Outcome.FINISHED:
            state.cost.observe_program(job.number, done.seconds)
        sure = state.findings.sure(job.task_id)
        state.plan.program_done(job, sure=sure)
        return sure
    if done.degraded:
        state.result.degraded.append(job.task_id)
    trained = state.settings.ttt.scope not in ("per-task", "joint") or done.steps > 0
    failed = done.outcome in (Outcome.FAILED, Outcome.DIVERGED) or (done.outcome == Outcome.FINISHED and not trained)
    state.plan.done(job, failed=failed, agreement=state.findings.agreement(job.task_id))
    return False


def end_pass(state: RunState, job: Job, done: Done, *, superseded: bool = False) -> None:
    """Note how a pass over a task ended."""
    result = state.findings.of(job.kind, job.task_id)
    state.result.ended[job.kind] += not result.outcome
    result.seconds += done.seconds
    result.steps += done.steps
    result.out_of_memory |= done.out_of_memory
    if result.outcome != Outcome.FINISHED:  # what one pass has finished stays so when a later one is cut
        result.outcome, result.reason = done.outcome, CallBack.SUPERSEDED if superseded else done.reason
    if superseded:
        return
    if done.outcome == Outcome.CUT:
        state.result.cut.append(job.task_id)
    elif done.outcome != Outcome.FINISHED and job.kind != SYNTHESIS:
        state.result.degraded.append(job.task_id)


def learn(state: RunState, slot: int, job: Job, done: Done) -> bool:
    """Let predictions follow a job that ended. Returns whether they have changed enough to plan anew."""
    state.result.train_tokens += done.train_tokens
    if job.kind not in (BASE, TTT):
        return False
    state.result.train_s += done.train_s
    task = state.tasks[job.task_id]
    took = Took(done.seconds - done.compile_s, done.train_s, done.train_tokens, done.steps)
    if job.kind == TTT and (done.out_of_memory or (done.steps > 0 and not done.shortened)):
        state.cost.observe_memory(task, fitted=not done.out_of_memory)
    if done.outcome == Outcome.FINISHED:
        predicted_s = job.predicted_s * state.cost.drift(slot)
        state.result.ratios.setdefault(job.kind, []).append(took.seconds / max(1e-3, predicted_s))
        state.cost.observe(task, job.kind, slot, job.share, took)
    elif done.outcome == Outcome.CUT and job.kind == TTT:
        state.cost.observe_cut(task, slot, took)
    else:
        return False
    return state.cost.settled
