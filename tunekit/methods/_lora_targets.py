"""Which layers a LoRA sits on: chosen by structure or by name, checked before anything is touched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, error, nearest
from tunekit.structure import attention_names, expert_names, features, is_linear, linear_names

if TYPE_CHECKING:
    from torch import nn

    from tunekit.methods.lora import Lora


def targets(model: nn.Module, wanted: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Dotted names of the modules that `target_modules` means in this model, in the order of the tree.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
        >>> targets(model, "attention")
        ('transformer.h.0.attn.c_attn', 'transformer.h.0.attn.c_proj')
        >>> targets(model, ("c_fc",))
        ('transformer.h.0.mlp.c_fc',)
    """
    if wanted in (None, "all-linear"):
        return linear_names(model)
    if wanted == "attention":
        return attention_names(model)
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(wanted, str):
        pattern = _compiled(wanted)
        return tuple(n for n in names if pattern and pattern.fullmatch(n))
    return tuple(n for n in names if ends_in(n, wanted or ()))


def ends_in(name: str, ends: Iterable[str]) -> bool:
    """PEFT's rule for a list of targets: the whole name, or its last parts."""
    return any(name == e or name.endswith(f".{e}") for e in ends)


def lies_in(name: str, saved: Iterable[str]) -> bool:
    """PEFT's rule for what is trained whole: a module of one of these names, or one inside it."""
    return any(f".{s}." in f".{name}." for s in saved)


def outside(names: Sequence[str], saved: Sequence[str]) -> tuple[str, ...]:
    """Those of the targets that are not trained whole anyway, which is what PEFT adapts of them."""
    return tuple(n for n in names if not lies_in(n, saved))


def in_head(
    slug: str, wanted: str | tuple[str, ...] | None, names: Sequence[str], saved: Sequence[str]
) -> list[Finding]:
    """Targets that are found nowhere but inside modules which are trained whole."""
    why, found = "the task's head and `modules_to_save` are trained whole", []
    for entry in wanted if isinstance(wanted, tuple) else (wanted,) if names else ():
        hit = [n for n in names if not isinstance(wanted, tuple) or ends_in(n, [str(entry)])]
        if hit and not outside(hit, saved):
            found.append(error(f"{slug}-target-head", f"`target_modules` matches {hit[0]}", why, "leave it out"))
    return found


def own_modules(config: Any) -> tuple[str, ...]:
    """`modules_to_save` of a PEFT configuration without the heads that its task classes add by themselves."""
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    kind = str(getattr(config.task_type, "value", config.task_type))
    added = SEQ_CLS_HEAD_NAMES if kind in ("SEQ_CLS", "TOKEN_CLS") else ()
    return tuple(n for n in config.modules_to_save or () if n not in added)


def shortened(model: nn.Module, names: Sequence[str], saved: Sequence[str]) -> list[str]:
    """The same targets as a short list of last parts, where these match nothing else outside the saved modules.

    A folder then reads `["query", "value"]` and not two names for every layer.
    """
    ends = sorted({n.rsplit(".", 1)[-1] for n in names})
    excluded = [re.compile(rf"(^|.*\.){re.escape(s)}($|\..*)") for s in saved]
    hit = {n for n, _ in model.named_modules() if ends_in(n, ends) and not any(p.match(n) for p in excluded)}
    return ends if hit == set(names) else list(names)


def parameters(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Names of the fused expert weights that `target_parameters` means."""
    return [n for n in expert_names(model) if ends_in(n, wanted)]


def is_transposed(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the targets store their weight as (in, out), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(model.get_submodule(n), Conv1D) for n in names)


def faults(model: nn.Module, lora: Lora, heads: Sequence[str], names: Sequence[str]) -> list[Finding]:
    """Everything about the targets that cannot work on this model."""
    saved = [*heads, *lora.modules_to_save]
    adapted = [n for n in outside(names, saved) if is_linear(model.get_submodule(n))]
    return [
        *_missing(model, lora, names),
        *in_head("lora", lora.target_modules, names, saved),
        *_kinds(model, lora, names),
        *_ranks(model, lora, adapted),
    ]


def _missing(model: nn.Module, lora: Lora, names: Sequence[str]) -> list[Finding]:
    """Names and patterns that match nothing."""
    wanted = lora.target_modules
    known = sorted({n.rsplit(".", 1)[-1] for n in linear_names(model)})
    unmatched = [w for w in wanted if not any(ends_in(n, [w]) for n in names)] if isinstance(wanted, tuple) else []
    if isinstance(wanted, str) and not names:
        unmatched = [wanted]
    found = [
        error(
            "lora-target-missing", f"`target_modules` {w!r}", "no module of this model is called so", nearest(w, known)
        )
        for w in unmatched
    ]
    if not names and not unmatched:
        found.append(
            error(
                "lora-target-missing",
                "`target_modules`",
                "this model has no linear layer to adapt",
                "name modules by hand",
            )
        )
    modules = [n for n, _ in model.named_modules()]
    for w in lora.modules_to_save:
        if not any(ends_in(n, [w]) for n in modules):
            found.append(
                error(
                    "lora-module-missing",
                    f"`modules_to_save` {w!r}",
                    "no module of this model is called so",
                    "check the name",
                )
            )
    experts = expert_names(model)
    for w in lora.target_parameters:
        if not any(ends_in(n, [w]) for n in experts):
            found.append(
                error(
                    "lora-target-missing",
                    f"`target_parameters` {w!r}",
                    "no fused expert weight is called so",
                    nearest(w, sorted({_tail(n) for n in experts})),
                )
            )
    for w in {**lora.rank_pattern, **lora.alpha_pattern}:
        if not any(_pattern_hits(w, n) for n in (*names, *parameters(model, lora.target_parameters))):
            found.append(
                error(
                    "lora-pattern",
                    f"`rank_pattern` or `alpha_pattern` {w!r}",
                    "it matches no adapted layer",
                    nearest(w, known),
                )
            )
    return found


def _kinds(model: nn.Module, lora: Lora, names: Sequence[str]) -> list[Finding]:
    """Targets of a kind that has no weight matrix to change, or that an initialisation cannot start from."""
    from torch import nn

    found = []
    for n in names:
        m = model.get_submodule(n)
        if not (is_linear(m) or isinstance(m, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d)):
            found.append(
                error(
                    "lora-target-kind",
                    f"`target_modules` matches {n}",
                    f"a {type(m).__name__} is no linear layer or embedding",
                    "name the layers inside it",
                )
            )
    if lora.init_lora_weights == "olora" and is_transposed(model, names):
        found.append(
            error(
                "lora-olora-transposed",
                "`init_lora_weights: olora`",
                "PEFT's OLoRA does not know weights stored as (in, out), as this model's are",
                "use `pissa`",
            )
        )
    return found[:3]


def _ranks(model: nn.Module, lora: Lora, names: Sequence[str]) -> list[Finding]:
    """Ranks above what the layer's own matrix can have."""
    by_pattern = lora.rank_pattern.items()
    return too_high("lora", model, {n: next((r for k, r in by_pattern if _pattern_hits(k, n)), lora.r) for n in names})


def too_high(slug: str, model: nn.Module, ranks: Mapping[str, int], field: str = "r") -> list[Finding]:
    """One finding about the ranks, by name of the layer, that are above what the layer's own matrix can have."""
    widths = {n: min(features(model.get_submodule(n))) for n in ranks}
    lost = [n for n, rank in ranks.items() if rank > widths[n]]
    if not lost:
        return []
    most: dict[str, int] = {}
    for n in lost:
        tail = n.rsplit(".", 1)[-1]
        most[tail] = min(most.get(tail, widths[n]), widths[n])
    seen = f"rank {ranks[lost[0]]} on {', '.join(most)}, such as {lost[0]}"
    why = f"the rank of the layer itself is at most {widths[lost[0]]}"
    pattern = f", or `rank_pattern={most!r}`" if field == "r" else ""
    return [error(f"{slug}-rank-layer", seen, why, f"set `{field}` to at most {min(most.values())}{pattern}")]


def _pattern_hits(pattern: str, name: str) -> bool:
    """PEFT's rule for `rank_pattern` and `alpha_pattern`."""
    compiled = _compiled(rf"(.*\.)?({pattern})$")
    return compiled is not None and compiled.match(name) is not None


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])
