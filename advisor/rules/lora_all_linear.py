"""LoRA on the attention alone underperforms on decoders."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Schulman et al., LoRA Without Regret, 2025; Dettmers et al., QLoRA, 2023, figure 2; huggingface/peft method_comparison, Llama-3.2-3B"
_LARGE = 10**9


def _judge(q: Question) -> Finding | None:
    targets = getattr(q.plan.method, "target_modules", None)
    model = q.workload.model
    if (
        q.plan.method.family != "lora"
        or model.side != "decoder"
        or model.num_parameters < _LARGE
        or targets != "attention"
    ):
        return None
    return moves(
        "lora-all-linear",
        -1.5,
        "adapts the attention only, which underperforms on decoders even at equal parameters",
        "a 3B decoder at equal parameters: 47.8 with query and value, 49.4 with the feed-forward layers",
        _SOURCE,
        "leave `target_modules` out: every linear layer is adapted",
    )


def _example(targets: str | None, **more: int) -> Question:
    facts = {"num_parameters": 8 * 10**9, **more}
    return example("lora", settings={"target_modules": targets}, task="causal-lm", side="decoder", **facts)  # type: ignore[arg-type]


RULE = Rule(
    slug="lora-all-linear",
    title="On decoders LoRA adapts every linear layer, not the attention alone",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example("attention"),),
    silent=lambda: (_example(None), _example("attention", num_parameters=10**8)),
)
