"""What is ranked as fitting passes `tunekit.check` and starts; the more there is, the more fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, GPT2Config, T5Config

import tunekit
from tunekit.advice import Advice

LABELLED = [{"text": f"{'good fine' if i % 2 else 'bad poor'} film {i}", "label": i % 2} for i in range(24)]
TAGGED = [{"tokens": ["good", "film", "!"], "tags": ["O", "B", "O"] if i % 2 else ["B", "O", "O"]} for i in range(24)]
WRITTEN = [{"text": f"a good film of the year {i}"} for i in range(24)]
PAIRED = [{"source": f"a good film {i}", "target": "fine"} for i in range(24)]


@pytest.mark.parametrize(
    ("model", "task", "rows"),
    [
        ("tiny_encoder", "sequence-classification", LABELLED),
        ("tiny_decoder", "causal-lm", WRITTEN),
        pytest.param("tiny_encoder", "token-classification", TAGGED, marks=pytest.mark.slow),
        pytest.param("tiny_decoder", "sequence-classification", LABELLED, marks=pytest.mark.slow),
        pytest.param("tiny_seq2seq", "seq2seq", PAIRED, marks=pytest.mark.slow),
    ],
)
def test_every_ranked_plan_passes_the_check_and_starts(
    model: str, task: str, rows: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    advice = tunekit.advise(request.getfixturevalue(model), rows, task=task, hardware="cpu")
    assert len(advice.ranked) >= 5
    for i, entry in enumerate(advice.ranked):
        plan = entry.plan.replace(output_dir=str(tmp_path / str(i)), max_steps=1)
        made = tunekit.trainer(plan, train_dataset=rows, save_strategy="no", report_to="none")
        faults = [f for f in tunekit.check(made) if f.severity == "error"]
        assert not faults, f"{entry.plan.method.slug}: {faults}"
        assert made.train().global_step == 1, entry.plan.method.slug


CONFIGS: dict[str, Any] = {
    "causal-lm": lambda layers, width: GPT2Config(n_embd=width, n_layer=layers, n_head=2, vocab_size=500, bos_token_id=1, eos_token_id=1),
    "sequence-classification": lambda layers, width: BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width, vocab_size=500
    ),
    "seq2seq": lambda layers, width: T5Config(
        d_model=width, d_kv=16, d_ff=2 * width, num_layers=layers, num_heads=2, vocab_size=500
    ),
}  # fmt: skip
QUESTIONS = {
    "task": st.sampled_from(sorted(CONFIGS)),
    "layers": st.integers(1, 4),
    "width": st.sampled_from([32, 64, 128]),
    "rows": st.integers(1, 10**6),
    "tokens": st.integers(2, 200),
}


def asked(task: str, layers: int, width: int, rows: int, tokens: int, gib: float, **more: Any) -> Advice:
    labels = {"num_labels": 3} if task == "sequence-classification" else {}
    return tunekit.advise(
        CONFIGS[task](layers, width), task=task, num_examples=rows, mean_tokens=tokens, hardware=f"{gib}GB",
        methods=["full", "lora", "bitfit"] if task != "seq2seq" else ["full", "lora"], **labels, **more,
    )  # fmt: skip


def slugs(advice: Advice) -> set[str]:
    return {e.slug for e in advice.ranked}


@settings(max_examples=2)
@given(**QUESTIONS, gib=st.sampled_from([0.5, 0.6, 0.75, 1.0]))
def test_more_memory_never_removes_a_plan_that_fitted(gib: float, **question: Any) -> None:
    few, many = asked(**question, gib=gib), asked(**question, gib=2 * gib)
    assert slugs(few) <= slugs(many)
    for entry in (*few.ranked, *many.ranked):
        assert entry.memory is not None
        assert entry.duration is not None
        assert entry.memory.interval[1] <= (few if entry in few.ranked else many).workload.hardware.memory_bytes


@settings(max_examples=2)
@given(**QUESTIONS, gib=st.sampled_from([0.5, 0.6, 0.75, 1.0]))
def test_more_memory_never_makes_the_quickest_plan_slower(gib: float, **question: Any) -> None:
    few, many = asked(**question, gib=gib, goal="speed"), asked(**question, gib=2 * gib, goal="speed")
    quickest = [
        min((e.duration.total_seconds for e in a.ranked if e.duration), default=float("inf")) for a in (few, many)
    ]
    assert quickest[1] <= quickest[0] * (1 + 1e-9)


@settings(max_examples=2)
@given(**{**QUESTIONS, "rows": st.integers(1, 10**5)}, more=st.sampled_from([2, 10]))
def test_more_rows_never_remove_full_fine_tuning(more: int, **question: Any) -> None:
    few, many = asked(**question, gib=2), asked(**{**question, "rows": more * question["rows"]}, gib=2)
    assert ("full" in slugs(few)) <= ("full" in slugs(many))
