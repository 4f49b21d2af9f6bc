"""What an estimate is asked about: everything but the shape of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunekit.contracts import learnt_form
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts

if TYPE_CHECKING:
    from tunekit.advisor.simulate.batches import Batches
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.advisor.simulate.loop import Loop, Step
    from tunekit.advisor.simulate.record import Recorded, Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A plan on a device, whose memory or time is asked for."""

    plan: Plan
    hardware: Hardware
    data: DataFacts | None
    model: ModelFacts
    loop: Loop = "trainer"
    accumulates: bool | None = None
    """Whether gradients are summed up over batches; None: as the plan says."""

    @property
    def cuda(self) -> bool:
        """Whether the device has an allocator and libraries of its own."""
        return self.hardware.device == "cuda"

    @property
    def launched(self) -> bool:
        """Whether it is a process of `tunekit launch` on the CPU, which gives freed blocks back to the system."""
        return not self.cuda and self.plan.num_processes > 1

    def batches(self) -> Batches:
        """The shapes of the run's batches."""
        from tunekit.advisor.simulate.batches import batches

        return batches(self.plan, self.model, self.data, self.loop)

    def recorded(self, shape: Shape, loop: Loop | None = None) -> Recorded:
        """One step with a batch of a shape; `loop`: another one than the question's."""
        from tunekit.advisor.simulate.peft_runs import as_peft
        from tunekit.advisor.simulate.record import record

        asked = self if loop is None else replace(self, loop=loop)
        method = as_peft(self.plan.method) if asked.loop.startswith("peft") else self.plan.method
        return record(self.subject(), method, self.plan.learning_objective, shape, asked.step())

    def filling(self, shape: Shape, layers: int) -> Timeline:
        """A batch of the pass that fills the store of what the frozen layers say."""
        from tunekit.advisor.simulate.record import record_filling

        step = replace(self, loop="trainer-filling").step()
        return record_filling(self.subject(), layers, shape, replace(step, supplied=False, checkpoints=False))

    def subject(self) -> Subject:
        """The model, as far as it decides shapes."""
        from tunekit.advisor.simulate.per_rank import zero_half
        from tunekit.advisor.simulate.record import Subject

        plan, data = self.plan, self.data
        return Subject(
            config_json=self.model.config_json,
            task=learnt_form(plan.objective, Task.named(plan.task), self.model.side),
            num_labels=data.num_labels if data else None,
            problem_type=plan.problem_type or (data.problem_type if data else None),
            dtype=zero_half(plan) or plan.dtype,
            attn_implementation=plan.attn_implementation,
            quantization=plan.quantization,
        )

    def step(self) -> Step:
        """How a step is taken."""
        from tunekit.advisor.simulate.loop import Step
        from tunekit.advisor.simulate.per_rank import zero_half

        plan = self.plan
        return Step(
            loop=self.loop,
            device=self.hardware.device,
            optim=plan.optim,
            clips=plan.max_grad_norm > 0,
            accumulates=plan.gradient_accumulation_steps > 1 if self.accumulates is None else self.accumulates,
            mixed_precision=None if zero_half(plan) else plan.mixed_precision,
            checkpoints=plan.activation_checkpointing,
            supplied=plan.frozen_activations == "cached" and self.loop.startswith("trainer"),
        )
