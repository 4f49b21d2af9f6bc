"""The output folder: in use, or on a disk too small for the checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    args = subject.args
    saves = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
    if not args.output_dir or not saves:
        return
    folder = Path(args.output_dir)
    old = [p.name for p in folder.glob("checkpoint-*") if p.is_dir()] if folder.is_dir() else []
    if old and subject.begins and not args.resume_from_checkpoint:
        yield warning(
            "output-in-use", f"{folder.name!r} holds {len(old)} checkpoints, such as {old[0]}",
            "new ones are mixed with them, old ones count for `save_total_limit`, and a resumption may take the wrong one",
            "use a new `output_dir`, or resume with `train(resume_from_checkpoint=True)`",
        )  # fmt: skip
    lowest = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    need, room = _checkpoint_bytes(subject), shutil.disk_usage(lowest).free
    kept = 1 + min(args.save_total_limit or 2, 2)
    if need * kept > room:
        yield error(
            "disk-small", f"{kept} checkpoints of {need / 2**30:.1f} GiB with {room / 2**30:.1f} GiB free",
            "the disk fills while one is written", "free room, set `save_total_limit=1`, or `save_only_model=True`",
        )  # fmt: skip


def _checkpoint_bytes(subject: Subject) -> int:
    """Weights that are written, with two moments in float32 of those that learn."""
    adapter = subject.peft_config is not None
    size = 0
    for p in subject.model.parameters():
        size += p.numel() * p.element_size() if p.requires_grad or not adapter else 0
        size += p.numel() * 8 if p.requires_grad and not subject.args.save_only_model else 0
    return size


CHECK = Check(
    slug="folder",
    title="Output folder in use; disk too small for the checkpoints.",
    codes=("output-in-use", "disk-small"),
    look=_look,
)
