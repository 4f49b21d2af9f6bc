"""Reads a base model and its tokenizer from a folder or a hub id, with the head the task needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.texts import knows_words
from tunekit.errors import MissingError, TunekitError, UnreadableError, UnsupportedError
from tunekit.finding import error
from tunekit.plan import Plan
from tunekit.quantization import quantization_config
from tunekit.structure import side_of
from tunekit.task import Task
from tunekit.workload import Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        MissingError: `tokenizer-missing`, where the folder or repository has none.
    """
    from transformers import AutoTokenizer

    check_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        why = (
            ""
            if knows_words(tokenizer)
            else "no files of a tokenizer lie there: one made of its class alone knows no words"
        )
    except Exception as e:  # the libraries that read tokenizers have no family of errors
        why = _short(e)
    if why:
        fix = "save the tokenizer beside the model, or name a folder that has one"
        raise MissingError(error("tokenizer-missing", f"model {model!r}", why, fix))
    return tokenizer


def read_side(model: str, revision: str | None = None) -> Side:
    """Whether a folder or hub id is an encoder, a decoder or both, from its configuration."""
    from transformers import AutoConfig

    check_folder(model)
    return side_of(AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False))


def form_of(plan: Plan) -> Task:
    """The form in which a plan's model learns its task: the task itself, or a language model's for prompts."""
    task = Task.named(plan.task)
    return task if plan.objective is None else plan.objective.learnt_as(task, read_side(plan.model, plan.revision))


def load_model(
    plan: Plan,
    *,
    form: Task | None = None,
    num_labels: int | None = None,
    label_names: tuple[str, ...] = (),
    problem_type: str | None = None,
    pad_token_id: int | None = None,
) -> PreTrainedModel:
    """The plan's base with pretrained weights and the task's head; a new head is drawn with the plan's seed.

    Args:
        plan: Names the model, its dtype, quantisation and attention kernel.
        form: The form in which the plan's task is learnt, where the objective has one of its own.
        num_labels: Classes, tags or regression targets, for tasks with a head over labels.
        label_names: Their names in the order of their ids.
        problem_type: For sequence classification.
        pad_token_id: For decoders that classify at the last real token.

    Raises:
        MissingError: `model-missing` or `model-unreachable`.
        UnreadableError: `model-unreadable`, for damaged weights.
        UnsupportedError: `task-architecture`, where transformers has no such head for this architecture;
            `model-head-missing`, where a language model's own head is not among the weights; `model-shape`, where other
            weights than a new head's do not fit the configuration.
    """
    import torch
    import transformers

    check_folder(plan.model)
    task = Task.named(plan.task)
    head: dict[str, Any] = {}
    if num_labels is not None and task.name in ("sequence-classification", "token-classification"):
        head["num_labels"] = num_labels
        if label_names:
            head |= {"id2label": dict(enumerate(label_names)), "label2id": {n: i for i, n in enumerate(label_names)}}
    if task.name == "question-answering":
        head["num_labels"] = 2  # a start and an end, whatever the checkpoint was last used for
    if problem_type is not None:
        head["problem_type"] = problem_type
    transformers.set_seed(plan.seed)
    try:
        model, info = getattr(transformers, (form or task).auto_class).from_pretrained(
            plan.model,
            revision=plan.revision,
            dtype=getattr(torch, plan.dtype),
            attn_implementation=plan.attn_implementation,
            quantization_config=_quantized(plan, form or task),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **head,
        )
    except TunekitError:
        raise
    except Exception as e:
        raise _explain(plan, form or task, e) from None
    _check_loading(plan, form or task, model, info)
    if pad_token_id is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
    return model


def _quantized(plan: Plan, task: Task) -> Any:
    """How the base is quantised; what the task adds stays whole, inside the base too (BERT's pooler): it is random and must learn.

    transformers leaves out the output layer and the last module only, and no longer these where others are named.
    """
    config = quantization_config(plan)
    if config is None:
        return None
    import torch
    import transformers
    from transformers.quantizers.base import get_keys_to_not_convert

    from tunekit.structure import head_modules

    base = transformers.AutoConfig.from_pretrained(plan.model, revision=plan.revision, trust_remote_code=False)
    with torch.device("meta"):
        model = getattr(transformers, task.auto_class).from_config(base)
    config.llm_int8_skip_modules = sorted({*get_keys_to_not_convert(model), *head_modules(model, task)})
    return config


def check_folder(model: str) -> None:
    """Refuses what looks like a path and is none, so that a typing error is not sent to a hub.

    Raises:
        MissingError: `model-missing`.
    """
    looks_local = model.startswith((".", "/", "~", "\\")) or model.count("/") > 1
    if looks_local and not Path(model).expanduser().is_dir():
        raise MissingError(
            error(
                "model-missing",
                f"model folder {model!r}",
                "no such folder",
                "check the path, or give a hub id such as `owner/name`",
            )
        )


def _check_loading(plan: Plan, task: Task, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """A head may be new; anything else that was missing or of another shape means that the folder is not this model."""
    from tunekit.structure import base_name, head_modules

    heads, base = head_modules(model, task), base_name(model)
    strange = [
        name
        for name in (
            k if isinstance(k, str) else k[0] for k in (*info.get("missing_keys", ()), *info.get("mismatched_keys", ()))
        )
        if not any(name == h or name.startswith(f"{h}.") for h in heads) and not name.startswith("lm_head")
    ]
    outside = [name for name in strange if base and not name.startswith(f"{base}.")]
    if strange and outside == strange:
        raise UnsupportedError(
            error(
                "model-head-missing", f"model {plan.model!r} as {task}", f"its weights have no {outside[0]}{' ...' if len(outside) > 1 else ''}: it was saved without its language-model head",
                "name a checkpoint that has it; a new one would have to be pretrained",
            )
        )  # fmt: skip
    if strange:
        raise UnsupportedError(
            error(
                "model-shape", f"model {plan.model!r}", f"its weights lack or do not fit {', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}",
                "name a checkpoint whose weights belong to its config.json",
            )
        )  # fmt: skip


def _explain(plan: Plan, task: Task, e: Exception) -> TunekitError:
    """What went wrong while loading, in one message."""
    text = _short(e)
    if isinstance(e, ValueError) and "Unrecognized configuration class" in str(e):
        return UnsupportedError(
            error(
                "task-architecture",
                f"task {task} with model {plan.model!r}",
                f"transformers has no {task.auto_class} for it",
                "choose another task or model; `tunekit advise` lists the model's tasks",
            )
        )
    if Path(plan.model).is_dir():
        return UnreadableError(
            error(
                "model-unreadable",
                f"model folder {plan.model!r}",
                text,
                "the folder needs config.json and model.safetensors, both whole",
            )
        )
    if isinstance(e, OSError):
        return MissingError(
            error(
                "model-unreachable",
                f"model {plan.model!r}",
                text,
                "give a local folder, or check the id and the network",
            )
        )
    return UnreadableError(
        error(
            "model-unreadable",
            f"model {plan.model!r}",
            text,
            "check that this transformers version knows the architecture",
        )
    )


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[:240] or type(e).__name__
