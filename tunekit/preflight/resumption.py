"""A resumption with other processes, another stage of ZeRO, other rows or another method than the checkpoint's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject

_OWN = ("peft_type", "r", "target_modules", "num_virtual_tokens", "modules_to_save", "use_dora")
"""Settings of an adapter that decide which tensors there are."""


def _look(subject: Subject) -> Iterator[Finding]:
    folder = subject.resumes_from
    if folder is None or not folder.is_dir():
        return
    yield from _world(subject, folder)
    yield from _stage(subject, folder)
    yield from _data(subject, folder)
    yield from _method(subject, folder)


def _world(subject: Subject, folder: Path) -> Iterator[Finding]:
    """The random states say how many processes there were, and our manifest too."""
    states = len([*folder.glob("rng_state_*.pth")]) or int((folder / "rng_state.pth").is_file())
    then = _json(folder / "tunekit-manifest.json").get("num_processes") or states
    now = subject.args.world_size
    if then and then != now:
        yield warning(
            "resume-world", f"{folder.name} was saved by {then} process{'es' if then > 1 else ''}, and {now} run now",
            "every step then takes other rows, and the random numbers start anew: the run does not go on where it stopped",
            f"start {then}, or keep rows x processes x accumulation of a step and accept another order",
        )  # fmt: skip


def _stage(subject: Subject, folder: Path) -> Iterator[Finding]:
    shards = [*folder.glob("global_step*/*optim_states.pt")]
    plugin = getattr(subject.args, "deepspeed_plugin", None)
    now = getattr(plugin, "zero_stage", None)
    then = (3 if [*folder.glob("global_step*/zero_pp_rank_*_model_states.pt")] else None) if shards else None
    if (
        bool(shards) != (now is not None)
        or (then is not None and then != now)
        or (shards and then is None and now == 3)
    ):
        name = f"ZeRO-{then}" if then else "DeepSpeed" if shards else "no sharding"
        yield error(
            "resume-stage", f"{folder.name} was saved with {name}, and the run uses {f'ZeRO-{now}' if now is not None else 'no sharding'}",
            "the optimizer's state is laid out otherwise and cannot be read", "resume with the settings of then, or start anew from the weights",
        )  # fmt: skip


def _data(subject: Subject, folder: Path) -> Iterator[Finding]:
    """By the digest in a record beside the checkpoint; else by how many steps an epoch had."""
    then = _json(folder.parent / "record.json").get("data", {})
    if isinstance(then, dict) and then.get("fingerprint") and subject.fingerprint:
        if then["fingerprint"] != subject.fingerprint:
            yield _other_rows(folder, f"fingerprint {then['fingerprint']} then, {subject.fingerprint} now")
        return
    state, args = _json(folder / "trainer_state.json"), subject.args
    epoch, step = state.get("epoch"), state.get("global_step")
    if not subject.num_train or not isinstance(epoch, int | float) or not isinstance(step, int) or epoch <= 0:
        return
    batch = args.per_device_train_batch_size * max(1, args.world_size)
    batches = -(-subject.num_train // batch)
    now = max(1, -(-batches // args.gradient_accumulation_steps))
    was = step / epoch
    # The Trainer's epoch is a quotient of batches: an epoch whose last step is not full is counted a little off.
    if abs(was - now) > max(1.0, 0.02 * now) + args.gradient_accumulation_steps / 2:
        yield _other_rows(folder, f"{was:.0f} steps an epoch then, {now} now")


def _other_rows(folder: Path, seen: str) -> Finding:
    return warning(
        "resume-data", f"{folder.name} was trained on other rows, or in other batches ({seen})",
        "the position in the data means nothing: rows are repeated and others never seen",
        "resume with the rows and batch size of then, or start anew from the weights",
    )  # fmt: skip


def _method(subject: Subject, folder: Path) -> Iterator[Finding]:
    from tunekit.structure import unwrapped

    saved, ours, config = (
        _json(folder / "adapter_config.json"),
        _json(folder / "tunekit.json").get("method"),
        subject.peft_config,
    )
    method = getattr(getattr(unwrapped(subject.model), "_tunekit", None), "method", None)
    whole = (folder / "config.json").is_file() and not saved and not ours
    alone = config is None and not getattr(method, "own_format", False)
    if (saved or ours or whole) and whole != alone:
        yield _other_method(f"{folder.name} holds {_kind(whole)}, and the model is {_kind(alone)}")
        return
    then, now, names = saved, config.to_dict() if config is not None else {}, _OWN
    if isinstance(ours, dict) and method is not None:
        then, now = ours, method.to_dict()
        names = tuple(ours)
    differs = [k for k in names if k in then and k in now and _plain(then[k]) != _plain(now[k])]
    if differs:
        k = differs[0]
        yield _other_method(
            f"{folder.name} was saved with `{k}` {_plain(then[k])!r}, and the model has {_plain(now[k])!r}"
        )


def _kind(whole: bool) -> str:
    return "a whole model" if whole else "an adapter"


def _other_method(seen: str) -> Finding:
    return error(
        "resume-method", seen, "the saved tensors do not fit, or fit in part and in silence",
        "resume with the method of then, or train into a new output folder",
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """Sets as sorted lists, enumerations by their value."""
    value = getattr(value, "value", value)
    return sorted(map(str, value)) if isinstance(value, list | set | tuple) else value


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def checkpoint_of(args: Any, step: int = 0) -> Path | None:
    """The checkpoint that a run resumes from: the one that is named, or the one of its step."""
    named = args.resume_from_checkpoint
    folder = Path(args.output_dir or ".")
    if isinstance(named, str) and named.lower() not in ("true", "false"):
        return Path(named)
    if step:
        found = folder / f"checkpoint-{step}"
        return found if found.is_dir() else None
    if not named or str(named).lower() == "false" or not folder.is_dir():
        return None
    numbered = [(int(m[1]), p) for p in folder.iterdir() if (m := re.match(r"^checkpoint-(\d+)$", p.name))]
    return max(numbered)[1] if numbered else None


CHECK = Check(
    slug="resumption",
    title="Resuming with other processes, another stage, other rows or another method.",
    codes=("resume-world", "resume-stage", "resume-data", "resume-method"),
    look=_look,
)
