"""A teacher: read from a folder or a hub id, or handed over; frozen, in eval mode, and of the student's labels and words."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.errors import MissingError, UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.objectives._live import task_of, unwrapped
from tunekit.quantization import quantized_as
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

VOCABULARY_TASKS = ("causal-lm", "seq2seq")


def freeze(teacher: nn.Module) -> nn.Module:
    """The teacher, never to learn: without gradients and dropout."""
    return teacher.requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a teacher is read from, and how."""

    name: str
    revision: str | None = None
    adapter: str | None = None
    """A folder that tunekit, PEFT or AdapterHub saved, attached to the teacher."""
    quantization: str | None = None
    dtype: torch.dtype
    device: torch.device
    eager: bool = False
    """Whether its attention must say what it attended to."""


def read_teacher(source: Source, task: Task, student: Any) -> nn.Module:
    """The teacher with the task's head, whole (never divided by the student's ZeRO-3) and frozen.

    Args:
        source: Where from.
        task: Whose auto class it is.
        student: The student's configuration: an adapter's head has its classes.

    Raises:
        MissingError: `distillation-teacher-missing`.
        UnsupportedError: `distillation-teacher-head`, where its weights lack a part, such as the head;
            `distillation-teacher-adapter`, where the adapter does not fit.
    """
    import transformers

    from tunekit.sharding import whole_weights

    more: dict[str, Any] = {"attn_implementation": "eager"} if source.eager else {}
    if source.quantization is not None:
        more["quantization_config"] = quantized_as(source.quantization, str(source.dtype).removeprefix("torch."), "teacher_quantization")  # fmt: skip
        more["device_map"] = {"": source.device}
    if source.adapter is not None and task.name in ("sequence-classification", "token-classification"):
        more |= {"id2label": dict(student.id2label), "label2id": dict(student.label2id)}
    auto = getattr(transformers, task.auto_class)
    with whole_weights():
        try:
            teacher, info = auto.from_pretrained(
                source.name, revision=source.revision, dtype=source.dtype, trust_remote_code=False, output_loading_info=True, **more
            )  # fmt: skip
        except (OSError, ValueError) as e:
            why, fix = _short(e), f"name a folder or a hub id that `{task.auto_class}` can load"
            raise MissingError(error("distillation-teacher-missing", f"teacher {source.name!r}", why, fix)) from None
        teacher = teacher if source.quantization is not None else teacher.to(source.device)
        missing = sorted(info.get("missing_keys", ()))
        if source.adapter is not None:
            teacher, missing = _with_adapter(teacher, source.adapter, task), []
    if missing:
        raise UnsupportedError(
            error(
                "distillation-teacher-head", f"teacher {source.name!r}", f"it has no weights for {', '.join(missing[:3])}, so it would teach noise",
                f"fine-tune it for {task} first, for example with `tunekit train`, and name that folder",
            )
        )  # fmt: skip
    return freeze(teacher)


def _with_adapter(teacher: nn.Module, folder: str, task: Task) -> nn.Module:
    from tunekit.attach import load
    from tunekit.errors import TunekitError

    try:
        return load(teacher, folder, task=task).to(next(teacher.parameters()).device)
    except (TunekitError, RuntimeError) as e:
        fix = "name the folder that training saved, and its base as `teacher`"
        seen = f"adapter {folder!r} on the teacher"
        raise UnsupportedError(error("distillation-teacher-adapter", seen, _short(e), fix)) from None


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[:240]


def weightless_teacher(
    name: str | None, revision: str | None, given: nn.Module | None, task: Task, eager: bool = False
) -> nn.Module:
    """The teacher on the meta device, for the simulator; nothing of its weights is read."""
    import torch
    import transformers

    inner = None if given is None else unwrapped(given)
    config = copy.deepcopy(inner.config) if inner is not None else _config(str(name), revision)
    if task.name == "sequence-classification" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    with torch.device("meta"):
        auto = getattr(transformers, task.auto_class)
        made = auto.from_config(
            config, dtype=getattr(inner, "dtype", None) or getattr(config, "dtype", None), **({"attn_implementation": "eager"} if eager else {})
        )  # fmt: skip
    return freeze(made)


def _config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)


def check_pair(student: nn.Module, teacher: nn.Module) -> None:
    """Refuses a teacher that answers another question than the student.

    Raises:
        UnsupportedError: `distillation-teacher-task`, `distillation-classes`.
    """
    task, taught = task_of(student), task_of(teacher)
    faults = []
    if task is not taught:
        faults.append(
            error("distillation-teacher-task", f"a teacher of {taught} for a student of {task}", "they answer different questions", f"name a teacher fine-tuned for {task}")
        )  # fmt: skip
    elif task.name in ("sequence-classification", "token-classification"):
        faults += class_faults(*(classes_of(unwrapped(m).config) for m in (student, teacher)))
    raise_all(faults, UnsupportedError)


def classes_of(config: Any) -> tuple[str, ...]:
    """The names of the classes in the order of their ids."""
    return tuple(str(config.id2label[i]) for i in sorted(config.id2label))


def class_faults(ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[Finding]:
    """Another number of classes, or the same names in another order."""
    fix = "fine-tune the teacher on rows with the same labels, `data.label_names` in the same order"
    if len(ours) != len(theirs):
        seen = f"a teacher with {len(theirs)} classes for a student with {len(ours)}"
        return [error("distillation-classes", seen, "each class of the one must be a class of the other", fix)]
    named = all(not str(name).startswith("LABEL_") for name in (*ours, *theirs))
    if named and ours != theirs:
        seen = f"teacher's classes {', '.join(map(str, theirs[:5]))} and student's {', '.join(map(str, ours[:5]))}"
        return [error("distillation-classes", seen, "they must be the same in the same order", fix)]
    return []


def check_words(sizes: tuple[int, int], tokenizer: Any, taught: Any) -> None:
    """Refuses a teacher that reads token ids as other words. Vocabularies padded to different sizes are fine.

    Args:
        sizes: Of the student's and the teacher's vocabulary, either padded beyond the tokenizer's.
        tokenizer: The student's.
        taught: The teacher's, or None where it has none beside it; then the sizes must be equal.

    Raises:
        UnsupportedError: `distillation-vocabulary`.
    """
    fix = "name a teacher with the student's tokenizer (the same family), or train on texts that it wrote: they have no ids"
    if taught is None:
        faults = (
            []
            if sizes[0] == sizes[1]
            else [f"vocabularies of {sizes[0]:,} and {sizes[1]:,}, and no tokenizer beside the teacher"]
        )
    else:
        a, b = tokenizer.get_vocab(), taught.get_vocab()
        differ = sum(b.get(word) != i for word, i in a.items() if i < min(sizes)) + sum(w not in a for w in b)
        faults = [f"a teacher whose tokenizer differs in {differ:,} of {len(a):,} words"] if differ else []
        if not differ and min(sizes) <= max(a.values(), default=0):
            faults = [f"a vocabulary of {min(sizes):,} with a tokenizer of {len(a):,} words"]
    raise_all([error("distillation-vocabulary", seen, "the same id would mean different words", fix) for seen in faults], UnsupportedError)  # fmt: skip


def words_of(model: nn.Module) -> int:
    """How many words a model's vocabulary has, padding included."""
    return int(unwrapped(model).get_input_embeddings().weight.shape[0])


def tokenizer_beside(teacher: nn.Module) -> Any:
    """The tokenizer in the folder or repository that a teacher was read from; None where there is none."""
    from transformers import AutoTokenizer

    name = getattr(unwrapped(teacher), "name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False) if name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
