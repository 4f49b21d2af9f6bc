"""For the goal `retention`: strong updates forget what the model could do before."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = (
    "huggingface/peft method_comparison, Llama-3.2-3B (rise of the loss on general text); Biderman et al., LoRA Learns "
    "Less and Forgets Less, 2024; Lester et al., The Power of Scale, 2021, table 1"
)
_SOFT = ("prompt-tuning", "p-tuning")
_HUGE = 10 * 10**9
_ELSEWHERE = (
    "an 11B model taught one kind of questions and asked six others: 66.8, 79.1, 60.7, 88.8, 67.7, 67.1 with a prompt, "
    "54.3, 77.9, 59.8, 88.4, 68.9, 68.9 in full"
)


def _judge(q: Question) -> Finding | None:
    if q.workload.goal != "retention":
        return None
    method, rate = q.plan.method, q.plan.learning_rate
    if method.slug in _SOFT and q.workload.model.num_parameters >= _HUGE:
        return moves(
            "goal-retention",
            4.0,
            "leaves a model of this size as it is, which keeps what it can do elsewhere",
            _ELSEWHERE,
            _SOURCE,
        )
    if method.family == "full" and rate > 2e-5:
        return _against(-3.0, f"changes every weight at a learning rate of {rate:g}")
    if getattr(method, "use_rslora", False) and getattr(method, "r", 0) >= 64:
        return _against(-4.0, "rank-stabilised scaling at a high rank updates strongly")
    if method.family in ("rescaling", "prompts") and rate > 1e-3:
        return _against(-4.0, f"updates strongly at a learning rate of {rate:g}")
    if method.family == "lora" and rate <= 5e-4:
        return moves("goal-retention", 0.5, "forgets little at this learning rate", _WHY, _SOURCE)
    return None


_WHY = "rise of the loss on general text: full at 1e-5 0.030, LoRA at 1e-4 0.032 to 0.050, rank-stabilised 0.111, prefix 0.198, IA3 at 5e-3 0.314"


def _against(points: float, seen: str) -> Finding:
    return moves(
        "goal-retention",
        points,
        seen,
        _WHY,
        _SOURCE,
        "lower `learning_rate`: forgetting follows it more than the method",
    )


RULE = Rule(
    slug="goal-retention",
    title="When the goal is retention, gentle updates are preferred; the learning rate decides more than the method",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("full", goal="retention", learning_rate=5e-5),
        example("lora", goal="retention", settings={"r": 64, "use_rslora": True}),
        example("lora", goal="retention", learning_rate=2e-4),
        *where_installed(
            "prompt-tuning",
            lambda: (example("prompt-tuning", goal="retention", side="seq2seq", num_parameters=11 * 10**9),),
        ),
    ),
    silent=lambda: (
        example("full", goal="retention", learning_rate=1e-5),
        example("full", goal="quality", learning_rate=5e-5),
    ),
)
