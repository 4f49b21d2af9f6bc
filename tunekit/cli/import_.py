"""`tunekit import`: another tool's training file as a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    file: Annotated[Path, typer.Argument(help="A training file of LLaMA-Factory or Axolotl (YAML or JSON).")],
    output: Annotated[Path, typer.Option(help="Where the plan goes.")] = Path("plan.yaml"),
    tool: Annotated[str | None, typer.Option("--from", help="llama-factory or axolotl; told by its keys.")] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that will share the work.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a plan of that name.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Make a plan of a training file of another tool, and say what could not be carried over.

    [dim]Example:[/dim] tunekit import llama3_lora_sft.yaml --output plan.yaml
    """
    import tunekit
    from tunekit.interchange.importing import check_tool

    found = tunekit.import_plan(file, cast(Any, check_tool(tool)), num_processes)
    saved = found.plan.save(output, overwrite=overwrite)
    data = {
        "kind": "tunekit-import",
        "tool": found.tool,
        "plan": found.plan.to_dict(),
        "saved": str(saved),
        "findings": [f.to_dict() for f in found.findings],
    }
    return Answer(data=data, text=lambda: _text(found, saved))


def _text(found: Any, saved: Path) -> str:
    left = [f for f in found.findings if f.code == "import-left-out"]
    lines = [f"wrote {saved} from a file of {found.tool}"]
    if left:
        lines += ["", "not carried over"]
    lines += [_said(f) for f in left]
    if assumed := [f for f in found.findings if f.code == "import-assumed"]:
        lines += ["", "said in another way", *map(_said, assumed)]
    if ignored := [f for f in found.findings if f.code == "import-ignored"]:
        lines += ["", *(f"left out, since {f.why}: {f.seen}" for f in ignored)]
    if found.plan.data is None:
        lines += ["", "the plan names no rows yet: set `data: {path: ...}`"]
    lines += ["", f"look at it with `tunekit check {saved}`, train it with `tunekit train {saved}`"]
    return flowed("\n".join(lines))


def _said(finding: Any) -> str:
    fix = f"; {finding.fix}" if finding.fix else ""
    return f"- {finding.seen}: {finding.why}{fix}"
