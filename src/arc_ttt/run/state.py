"""What a run knows and has decided so far: predictions, plan, findings, and the account of what happened."""

from __future__ import annotations

from pathlib import Path

from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.errors import ArcError
from arc_ttt.protocol.jobs import SYNTHESIS
from arc_ttt.run.findings import Findings
from arc_ttt.run.report import Ledger, RunResult
from arc_ttt.run.spec import RunSpec
from arc_ttt.schedule.cost import CostModel
from arc_ttt.schedule.plan import Plan, Policy
from arc_ttt.schedule.searches import SearchQueue
from arc_ttt.settings import Settings


class RunState:
    """Knowledge of a run. Touches no process and no file but the model's config.

    Args:
        spec: the inputs of the run.
        devices: slots of devices.
        cost: predictions, if there are any already.
    """

    def __init__(self, spec: RunSpec, devices: list[int], cost: CostModel | None = None) -> None:
        self.spec, self.settings = spec, spec.settings
        self.deadlines = spec.deadlines
        self.tasks = {task.task_id: task for task in spec.loaded.tasks}
        self.cost = cost or self._make_cost()
        self.plan = self._make_plan(len(devices))
        self.findings = Findings(spec.loaded)
        self.joint_path = ""
        """The file of the joint adapter, once it is trained."""
        problems = {problem.task_id: str(problem) for problem in spec.loaded.problems}
        self.result = RunResult(
            task_ids=tuple(i for i in spec.loaded.test_counts if i in self.tasks or i in problems),
            problems=problems,
            results=self.findings.results,
            limit_s=self.settings.run.limit_s,
            reserve_s=self.settings.run.reserve,
            workers=len(devices),
            ledger=Ledger(devices, spec.start_s),
        )

    @property
    def joint_file(self) -> Path:
        """Where the joint adapter goes."""
        return self.spec.out / "joint.safetensors"

    def use(self, settings: Settings) -> None:
        """Go on with another model: predictions and policy begin anew, what was found and spent stays."""
        self.settings = settings
        self.cost = self._make_cost()
        self.plan.set_policy(Policy.of(settings))
        self.joint_path = ""

    def replan(self, devices: list[int]) -> None:
        """Let the plan know what the devices that are left can still do.

        Where searches share the devices' cores, what searches have taken is part of the whole too.
        """
        left_s = max(0.0, self.deadlines.stop.remaining())
        usable_s = sum(left_s / self.cost.drift(slot) for slot in devices)
        spent = self.plan.spent_s.items()
        spent_s = sum(seconds for kind, seconds in spent if kind != SYNTHESIS or self.spec.cores)
        self.plan.replan(spent_s + usable_s)

    def _make_cost(self) -> CostModel:
        try:
            size = Checkpoint.of_path(self.settings.model.path, gpu=self.spec.device != "cpu").size
        except ArcError:
            size = ModelSize()  # the workers will say what is wrong with it
        return CostModel(self.settings, size, self.spec.device)

    def _make_plan(self, devices: int) -> Plan:
        synthesis, cores = self.settings.synthesis, self.spec.cores
        searches = SearchQueue(
            len(synthesis.cpu_limits_s) if self.spec.searchers else 0,
            lambda number: self.cost.predict_program(number),
            synthesis.share if cores else 1.0,
        )
        return Plan(
            self.spec.loaded.tasks,
            lambda task, kind, share: self.cost.predict(task, kind, share),
            max(1.0, self.deadlines.stop.remaining()) * max(1, devices),
            Policy.of(self.settings),
            searches,
            device_share=1 - synthesis.share if cores and self.spec.searchers else 1.0,
        )
