"""What learns: nothing, a head that is frozen or not saved, targets that match nothing, half precision."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    learning = [(n, p) for n, p in subject.model.named_parameters() if p.requires_grad]
    if not learning:
        yield error(
            "trainable-none", "no parameter asks for a gradient", "backward fails or nothing is learnt",
            "`requires_grad_(True)` on what shall learn, or attach an adapter",
        )  # fmt: skip
        return
    yield from _half(subject, learning)
    yield from _head(subject)
    yield from _unsaved(subject, [n for n, _ in learning])
    yield from _targets(subject)


def _half(subject: Subject, learning: list) -> Iterator[Finding]:
    half = [n for n, p in learning if str(p.dtype) == "torch.float16"]
    if half:
        scaled = " (`fp16=True` refuses to unscale such gradients)" if subject.args.fp16 else ""
        yield error(
            "trainable-fp16", f"{len(half)} trainable parameters are float16, such as `{half[0]}`",
            f"small updates round to nothing and large ones overflow{scaled}",
            "load in float32 (or bfloat16) and let `fp16=True` or `bf16=True` cast the computation",
        )  # fmt: skip


def _heads(subject: Subject) -> tuple[str, ...]:
    """The parameters of the head of a classifier: those outside the base."""
    from tunekit.structure import base_name

    if not subject.classifies:
        return ()
    base = base_name(subject.model)
    names = [n for n, _ in subject.task_model.named_parameters()]
    return tuple(n for n in names if not n.startswith(f"{base}.")) if base else ()


def _head(subject: Subject) -> Iterator[Finding]:
    learning = {n for n, p in subject.task_model.named_parameters() if p.requires_grad}
    heads = [n for n in _heads(subject) if not re.search(r"lora_|\.original_module\.", n)]
    if heads and not any(n in learning for n in heads):
        yield warning(
            "head-frozen", f"no parameter of the head learns (`{heads[0]}`)",
            "a new head is random, and stays so", "for PEFT name its `task_type` or `modules_to_save`; else `requires_grad_(True)`",
        )  # fmt: skip


def _unsaved(subject: Subject, learning: list[str]) -> Iterator[Finding]:
    """PEFT writes its adapter and `modules_to_save`; what else learns is lost."""
    if subject.peft_config is None:
        return
    from peft import get_peft_model_state_dict

    from tunekit.structure import unwrapped

    model = unwrapped(subject.model)
    adapter = model.active_adapter if isinstance(model.active_adapter, str) else "default"
    by_name = dict(model.named_parameters())
    written = {v.data_ptr() for v in get_peft_model_state_dict(model, adapter_name=adapter).values()}
    prompt = getattr(subject.peft_config, "is_prompt_learning", False)
    lost = [n for n in learning if n in by_name and by_name[n].data_ptr() not in written]
    lost = [n for n in lost if not (prompt and "prompt_encoder" in n)]
    if lost:
        yield error(
            "trainable-unsaved", f"{len(lost)} parameters learn and PEFT does not save them, such as `{lost[0]}`",
            "they are lost when the model is loaded again", "name their module in `modules_to_save`",
        )  # fmt: skip


def _targets(subject: Subject) -> Iterator[Finding]:
    config = subject.peft_config
    targets = getattr(config, "target_modules", None)
    if not targets or isinstance(targets, str):
        return
    names = [n for n, _ in subject.task_model.named_modules()]
    idle = sorted(t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names))
    if idle:
        yield error(
            "targets-unmatched", f"target {', '.join(f'`{t}`' for t in idle)} matches no module",
            "PEFT says nothing as long as another target matches", "compare with `model.named_modules()`",
        )  # fmt: skip


CHECK = Check(
    slug="trainable",
    title="Nothing learns; the head is frozen or not saved; targets match nothing; float16 learns.",
    codes=("trainable-none", "trainable-fp16", "head-frozen", "trainable-unsaved", "targets-unmatched"),
    look=_look,
)
