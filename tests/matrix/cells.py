"""Every cell there is: each method on each architecture with each task that transformers has an auto class for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import zoo
from tunekit.contracts import Method
from tunekit.finding import Finding
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.task import TASKS, Task

FUSION = "adapter-fusion"
METHODS = {**zoo.methods(), FUSION: AdapterFusion()}
"""Every method by name. What AdapterFusion fuses is saved when a cell is tried, since it belongs to the base."""


REASONS = {
    "architecture-no-checkpointing": "transformers has no activation checkpointing for the architecture",
    "bitfit-no-bias": "the architecture has no bias to train",
    "own-attention": "its attention does not go through transformers' attention interface, so no prefix can be joined to it",
    "attention-kernel": "its attention goes through the interface with a kernel that takes no prefix",
    "partial-shared-layers": "its layers are one, used several times, so that the last ones cannot learn alone",
    "adapter-sites": "no sublayer whose output is added to a residual stream can be found in its layers",
    "adapter-location": "its layers have no sublayer of the kind that the adapter goes behind, such as where the two run side by side",
    "prompt-no-base": "it has no pretrained base below its head, so that the prompt would be in its answers",
    "layernorm-tuning-no-norm": "it has no normalisation with weights",
}
"""Every reason for which a method is refused on an architecture, by the code of the refusal. The list is closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A method on an architecture with a task; checkpointing off and on are two cells that are tried together."""

    method: str
    """Its name in `METHODS`."""
    architecture: str
    task: str

    @property
    def key(self) -> str:
        return f"{self.method} {self.architecture} {self.task}"

    @property
    def settings(self) -> Method:
        return METHODS[self.method]


PAIRS = [(a, t.name) for a in zoo.ARCHITECTURES for t in TASKS if zoo.has_auto_class(a, t)]


def every_cell() -> Iterator[Cell]:
    for method in METHODS:
        for architecture, task in PAIRS:
            yield Cell(method=method, architecture=architecture, task=task)


def covering_cells() -> list[Cell]:
    """Few cells that hold every method on three architectures, every architecture and every task."""
    chosen = []
    for i, method in enumerate(METHODS):
        for j in range(3):
            architecture, task = PAIRS[(7 * i + 19 * j) % len(PAIRS)]
            chosen.append(Cell(method=method, architecture=architecture, task=task))
    return chosen


def refusal(cell: Cell, checkpoints: bool = False) -> Finding | None:
    """Why the cell cannot work, told from the configuration alone."""
    from tunekit.advisor.observe.model import model_facts

    facts = model_facts(zoo.config(cell.architecture, cell.task))
    settings = METHODS["bottleneck-adapter"] if cell.method == FUSION else cell.settings
    refused = settings.supports(facts, Task.named(cell.task))
    if refused is None and checkpoints and not facts.can_checkpoint:
        return CANNOT_CHECKPOINT
    return refused


CANNOT_CHECKPOINT = Finding(
    code="architecture-no-checkpointing",
    severity="error",
    seen="activation checkpointing",
    why="transformers has none for this architecture",
    fix="leave `activation_checkpointing` off",
)
