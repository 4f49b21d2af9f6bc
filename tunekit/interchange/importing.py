"""Another tool's training file as a plan, with what could not be carried over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunekit.errors import InvalidError
from tunekit.finding import Finding, error, nearest
from tunekit.interchange import axolotl, llama_factory
from tunekit.interchange.given import Given
from tunekit.plan import Plan
from tunekit.plan_file import read_file

Tool = Literal["llama-factory", "axolotl"]

_READERS: Mapping[str, Callable[[Given, Path], dict[str, Any]]] = {
    "llama-factory": llama_factory.plan_values,
    "axolotl": axolotl.plan_values,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A plan read from another tool's file."""

    plan: Plan
    tool: str
    """Whose file it was."""
    findings: tuple[Finding, ...]
    """What could not be carried over (`import-left-out`), what is said in another way (`import-assumed`), and what has no
    bearing on what is learnt (`import-ignored`)."""


def import_plan(path: str | Path, tool: Tool | None = None, num_processes: int = 1) -> Imported:
    """The plan that a training file of LLaMA-Factory or Axolotl describes. Nothing in the file is executed or loaded.

    Args:
        path: The YAML (or JSON) file.
        tool: Whose it is; None: told by its keys.
        num_processes: How many processes will share the work; those files leave that to their launchers.

    Raises:
        MissingError: `plan-file-missing`.
        UnreadableError: `plan-file-unreadable`.
        InvalidError: `import-tool`, `import-stage` (preference tuning, reward models, pretraining ...), `import-model`,
            `import-method`, and what a plan itself refuses.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "lora.yaml")
        >>> _ = file.write_text("base_model: gpt2\\nadapter: lora\\nlora_r: 8\\nmicro_batch_size: 2\\nsequence_len: 512")
        >>> found = import_plan(file)
        >>> found.tool, found.plan.method.r, found.plan.max_length
        ('axolotl', 8, 512)
    """
    path = Path(path)
    values = read_file(path)
    if not isinstance(values, Mapping):
        raise InvalidError(
            error("import-tool", f"{path}", "it holds no settings", "name a training file of LLaMA-Factory or Axolotl")
        )
    kind = check_tool(tool) or _told_by(values, path)
    given = Given(values)
    wanted = _READERS[kind](given, path.parent)
    wanted = _shared_by(wanted, given, num_processes)
    return Imported(plan=Plan.from_dict(wanted), tool=kind, findings=tuple(given.closing()))


def check_tool(name: str | None) -> str | None:
    """A tool's name as it was typed.

    Raises:
        InvalidError: `import-tool`.
    """
    if name is not None and name not in _READERS:
        raise InvalidError(
            error("import-tool", f"tool {name!r}", "its files are not known", nearest(name, list(_READERS)))
        )
    return name


def _told_by(values: Mapping[str, Any], path: Path) -> Tool:
    if "model_name_or_path" in values and {"stage", "finetuning_type", "template"} & set(values):
        return "llama-factory"
    if "base_model" in values:
        return "axolotl"
    why = "it has neither `base_model` (Axolotl) nor `model_name_or_path` with `stage` (LLaMA-Factory)"
    raise InvalidError(
        error("import-tool", f"{path}", why, "say whose it is: `--from llama-factory` or `--from axolotl`")
    )


def _shared_by(values: dict[str, Any], given: Given, num_processes: int) -> dict[str, Any]:
    """The values with the processes that share the work; sharding asks for several."""
    sharding = values.pop("sharding", None)
    if num_processes > 1:
        return {**values, "num_processes": num_processes, "sharding": sharding or "ddp"}
    if sharding is not None:
        values.pop("offload", None)
        given.lost(
            f"sharding by {sharding}", "one process has nobody to share with, and the file does not say how many there will be",
            "import again with `--num-processes 8`, or set `num_processes` and `sharding`",
        )  # fmt: skip
    return values
