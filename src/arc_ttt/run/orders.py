"""A job of the plan becomes an order to a worker."""

from __future__ import annotations

from arc_ttt.deadline import Deadline
from arc_ttt.protocol.jobs import JOINT, SYNTHESIS, TTT, Effort, Job
from arc_ttt.protocol.orders import AnswerOrder, JointOrder, Order, SearchOrder
from arc_ttt.run.state import RunState
from arc_ttt.schedule.shapes import views_of

SHARED_PART = 0.5
"""Part of the time left that the stage over all tasks gets if every task answers with its adapter."""
JOINT_PART = 0.2
"""Part of the time left that this stage gets if its adapter is only where each task's own training begins."""


def order_of(state: RunState, job: Job, slot: int, number: int) -> Order:
    """The order for `job` to the worker in `slot`, with the number that its messages will repeat."""
    work, stop = state.deadlines.work, state.deadlines.stop
    now_s = work.clock.now()
    if job.kind == JOINT:
        part = SHARED_PART if state.settings.ttt.scope == "shared" else JOINT_PART
        until = Deadline(now_s + part * max(0.0, stop.remaining()), work.clock)
        return JointOrder(id=number, tasks=list(state.tasks.values()), deadline=until, path=str(state.joint_file))
    task = state.tasks[job.task_id]
    if job.kind == SYNTHESIS:
        limit_s = state.settings.synthesis.cpu_limit_s(job.number)
        return SearchOrder(id=number, task=task, deadline=work, cpu_limit_s=limit_s)
    until = Deadline(min(work.at_s, now_s + state.cost.cap(job.predicted_s, slot)), work.clock)
    if job.kind != TTT:
        return AnswerOrder(id=number, kind=job.kind, task=task, deadline=until)
    return AnswerOrder(
        id=number,
        kind=job.kind,
        task=task,
        deadline=until,
        effort=Effort(
            job.number,
            job.share,
            views=views_of(TTT, job.share, state.settings),
            longest=state.cost.longest(),
            decode_s=state.cost.decoding(task, job.share) * state.cost.drift(slot),
        ),
        programs=state.findings.programs_for(job.task_id),
        joint=state.joint_path,
    )
