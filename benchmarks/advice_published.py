"""The advisor's picks against published results: within a point of the best, and what the pick loses.

    python benchmarks/advice_published.py --cases ../shared/evidence/cases.csv

For each verified case the facts are given by hand (model, task, rows, classes, goal), the advice is restricted to the methods
that were measured there, and its first plan is scored. A random pick and "always LoRA" (full fine-tuning where LoRA was not
measured) stand beside it. Cases that need what tunekit cannot be asked for are counted and named.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).parents[1]
HARDWARE = "8xH100"
WITHIN = 1.0
SLUGS: Mapping[str, str] = {
    "full_ft": "full", "lora": "lora", "bitfit": "bitfit", "prefix": "prefix-tuning", "prompt_tuning": "prompt-tuning",
    "ptuning": "p-tuning", "ptuning_v2": "p-tuning-v2", "ia3": "ia3", "top_k_layers": "partial", "pfeiffer": "bottleneck-adapter",
    "houlsby": "bottleneck-adapter", "parallel_adapter": "bottleneck-adapter", "dora": "lora", "rslora": "lora", "qlora": "lora",
}  # fmt: skip
"""What the cases call a method, and whose slug that is."""
GOALS = {"no forgetting": "retention", "low memory": "memory", "training speed": "speed"}
LABELS = {
    "SST2": 2,
    "MNLI": 3,
    "AG": 4,
    "AGNews": 4,
    "Yahoo": 10,
    "Yelp": 5,
    "TREC": 6,
    "STS-B": 1,
    "STSB": 1,
    "CB": 3,
    "SICK": 3,
    "SNLI": 3,
}


def llama(width: int, layers: int, heads: int, inner: int, kv: int | None = None, vocabulary: int = 32000) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        num_key_value_heads=kv or heads, vocab_size=vocabulary, max_position_embeddings=4096,
    )  # fmt: skip


def model(family: str, parameters: str) -> Any:
    """The configuration of a published checkpoint, from its model card; None where it is no text model that we know."""
    import transformers as t

    def t5(width: int, layers: int, heads: int, inner: int) -> Any:
        return t.T5Config(
            d_model=width, num_layers=layers, num_heads=heads, d_ff=inner, d_kv=64, feed_forward_proj="gated-gelu"
        )

    wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    known: dict[tuple[str, str], Any] = {
        ("BERT-base", "110M"): lambda: t.BertConfig(),
        ("BERT-large", "335M"): lambda: t.BertConfig(**wide),
        ("RoBERTa-base", "125M"): lambda: t.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
        ("RoBERTa-large", "355M"): lambda: t.RobertaConfig(vocab_size=50265, max_position_embeddings=514, **wide),
        ("GPT-2 (teacher 1.5B)", "120M"): lambda: t.GPT2Config(),
        ("GPT-2-medium", "355M"): lambda: t.GPT2Config(n_embd=1024, n_layer=24, n_head=16),
        ("GPT-3", "175B"): lambda: t.GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048),
        ("LLaMA-2", "7B"): lambda: llama(4096, 32, 32, 11008),
        ("LLaMA", "7B"): lambda: llama(4096, 32, 32, 11008),
        ("LLaMA", "13B"): lambda: llama(5120, 40, 40, 13824),
        ("Mistral", "7B"): lambda: llama(4096, 32, 32, 14336, 8),
        ("Llama-3.2", "3B"): lambda: llama(3072, 28, 24, 8192, 8, 128256),
        ("BART-large", "406M"): lambda: t.BartConfig(),
        ("mBART-large", "610M"): lambda: t.MBartConfig(vocab_size=250027),
        ("T5", "80M"): lambda: t5(512, 8, 6, 1024),
        ("T5", "250M"): lambda: t5(768, 12, 12, 2048),
        ("T5", "780M"): lambda: t5(1024, 24, 16, 2816),
        ("T5", "3B"): lambda: t5(2048, 24, 32, 5120),
        ("T5", "11B"): lambda: t5(4096, 24, 64, 10240),
        ("T5-XXL (LM-adapted)", "11B"): lambda: t5(4096, 24, 64, 10240),
    }
    return known[family, parameters]() if (family, parameters) in known else None


def question(case: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a case, as `tunekit.advise` takes them."""
    kind, config = case["task_kind"], model(case["model_family"], case["model_params"])
    side = getattr(config, "model_type", "")
    writes = "seq2seq" if side in ("t5", "bart", "mbart") else "causal-lm"
    classes = next((n for name, n in LABELS.items() if case["dataset"].upper().startswith(name.upper())), 2)
    facts: dict[str, Any] = {"num_examples": int(case["n_train"] or 10_000), "goal": GOALS.get(case["goal"], "quality")}
    if side in ("t5", "gpt2", "llama") or kind.startswith(("generation", "instruction", "continued")):
        return {**facts, "task": writes, "mean_tokens": 200}
    if kind == "extractive-qa":
        return {**facts, "task": "question-answering", "mean_tokens": 200}
    if kind == "multiple-choice":
        return {**facts, "task": "multiple-choice", "mean_tokens": 60}
    if kind == "token-classification-ner":
        return {**facts, "task": "token-classification", "mean_tokens": 25, "num_labels": 9}
    labels = {"num_labels": 1 if kind.startswith("regression") else classes}
    return {**facts, "task": "sequence-classification", "mean_tokens": 40, **labels}


def name_of(plan: Any, measured: Mapping[str, float]) -> str | None:
    """What the case calls this plan; None where it was not measured there."""
    method = plan.method
    called = {
        "lora": "qlora" if plan.quantization else "dora" if method.slug == "lora" and method.use_dora
        else "rslora" if method.slug == "lora" and method.use_rslora else "lora",
        "bottleneck-adapter": {"parallel": "parallel_adapter"}.get(getattr(method, "variant", ""), getattr(method, "variant", "")),
    }.get(method.slug) or next(name for name, slug in SLUGS.items() if slug == method.slug)  # fmt: skip
    if called in measured:
        return called
    # Another setting of the same method was measured: it stands for it.
    return next((name for name in measured if SLUGS.get(name) == method.slug), None)


def losses(measured: Mapping[str, float], case: Mapping[str, str]) -> dict[str, float]:
    """Points that each method stands behind the best."""
    sign = 1 if case["higher_is_better"] == "1" else -1
    best = max(sign * s for s in measured.values())
    return {name: best - sign * s for name, s in measured.items()}


def pick(case: Mapping[str, str], measured: Mapping[str, float]) -> str | None:
    import tunekit

    config = model(case["model_family"], case["model_params"])
    methods = list(dict.fromkeys(SLUGS[name] for name in measured))
    advice = tunekit.advise(config, hardware=HARDWARE, methods=methods, **question(case))
    names = (name_of(entry.plan, measured) for entry in advice.ranked)
    return next((name for name in names if name is not None), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "evidence" / "cases.csv")
    parser.add_argument("--verbose", action="store_true", help="print every case that was missed by more than a point")
    asked = parser.parse_args()
    if not asked.cases.is_file():
        raise SystemExit(f"{asked.cases}: no such file; pass --cases")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    cases = [c for c in csv.DictReader(asked.cases.open()) if c["verified"] == "verified"]
    left_out: Counter[str] = Counter()
    seen: list[dict[str, Any]] = []
    for case in cases:
        every = json.loads(case["scores_json"])
        measured = {name: float(score) for name, score in every.items() if name in SLUGS}
        if model(case["model_family"], case["model_params"]) is None:
            left_out["no text model that tunekit knows"] += 1
            continue
        if len(measured) < 2 or len({SLUGS[name] for name in measured}) < 2:
            left_out[
                "fewer than two of its methods can be asked for (" + ", ".join(sorted(set(every) - set(measured))) + ")"
            ] += 1
            continue
        behind = losses(measured, case)
        chosen = pick(case, measured)
        if chosen is None:
            left_out["every method was refused"] += 1
            continue
        always = next(name for name in ("lora", "full_ft", *behind) if name in behind)
        seen.append({
            "case": case["case_id"], "decisive": case["decisive"] == "1", "pick": chosen, "behind": behind[chosen],
            "random": sum(behind.values()) / len(behind), "always": behind[always],
            "random_within": sum(v <= WITHIN for v in behind.values()) / len(behind),
        })  # fmt: skip
        if asked.verbose and behind[chosen] > WITHIN:
            best = min(behind, key=lambda m: behind[m])
            print(
                f"{case['case_id']} {case['model_family']} {case['dataset']} n={case['n_train']}: {chosen} is {behind[chosen]:.1f} behind {best}"
            )
    for title, rows in (("all", seen), ("decisive", [s for s in seen if s["decisive"]])):
        n = len(rows)
        within = sum(s["behind"] <= WITHIN for s in rows)
        print(
            f"{title}: {within} of {n} within {WITHIN:g} point of the best ({100 * within / n:.0f} %), mean regret "
            f"{sum(s['behind'] for s in rows) / n:.2f}; random pick {100 * sum(s['random_within'] for s in rows) / n:.0f} %, "
            f"{sum(s['random'] for s in rows) / n:.2f}; always LoRA {100 * sum(s['always'] <= WITHIN for s in rows) / n:.0f} %, "
            f"{sum(s['always'] for s in rows) / n:.2f}"
        )
    for reason, n in left_out.most_common():
        print(f"left out: {n}: {reason}")


if __name__ == "__main__":
    main()
