"""The advisor's picks against published results: within a point of the best, and what the pick loses.

    python benchmarks/advice_published.py --cases ../shared/evidence/cases.csv
    python benchmarks/advice_published.py --verbose                            names every case that was missed

For each verified case the facts are given by hand (model, task, rows, classes, goal, teacher, adapters at hand), the advice is
restricted to what was measured there, and its first plan is scored. A random pick and "always LoRA" (full fine-tuning where
LoRA was not measured) stand beside it. The second table is a check against rules that only repeat a table: for each case the
rules that rest on the case's own source alone are silenced. Without labelled rows the advice is in words, and those are read.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).parents[1]
WITHIN = 1.0
NAMES: Mapping[str, str] = {
    "full_ft": "full", "lora": "lora", "bitfit": "bitfit", "prefix": "prefix-tuning", "prompt_tuning": "prompt-tuning",
    "ptuning": "p-tuning", "ptuning_v2": "p-tuning-v2", "ia3": "ia3", "top_k_layers": "partial", "pfeiffer": "pfeiffer",
    "houlsby": "houlsby", "parallel_adapter": "parallel-adapter", "adapterfusion": "adapter-fusion", "dora": "dora",
    "rslora": "rslora", "qlora": "qlora", "pissa": "pissa", "loraplus": "lora-plus", "lora_plus": "lora-plus", "kd": "distillation",
    "pet": "prompt-learning", "layernorm": "layernorm-tuning", "ln_tuning": "layernorm-tuning", "adapter": "bottleneck-adapter",
}  # fmt: skip
"""What the cases call a method, and what `advise` calls it."""
IN_WORDS = {"zero_shot_prompt": "zero-shot", "ipet": "self-training"}
"""What the advice says in words where there is no labelled row."""
GOALS = {"no forgetting": "retention", "low memory": "memory", "training speed": "speed", "out-of-domain robustness": "retention",
         "storage": "storage", "file size": "storage", "latency": "latency"}  # fmt: skip
WORDS = {
    "classification-sentiment": ("negative", "positive"), "classification-nli": ("entailment", "neutral", "contradiction"),
    "classification-topic": ("world", "sports", "business", "science"), "classification-boolean-qa": ("no", "yes"),
    "classification-paraphrase": ("different", "paraphrase"), "classification-acceptability": ("unacceptable", "acceptable"),
    "classification-argument": ("none", "against", "for"), "classification-text": ("no", "yes"),
}  # fmt: skip
"""The classes of a kind of task, as a user's rows would name them."""


# ---------------------------------------------------------------------------------------------- models
def llama(width: int, layers: int, heads: int, inner: int, kv: int | None = None, vocabulary: int = 32000) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        num_key_value_heads=kv or heads, vocab_size=vocabulary, max_position_embeddings=4096,
    )  # fmt: skip


def t5(width: int, layers: int, heads: int, inner: int) -> Any:
    from transformers import T5Config

    return T5Config(
        d_model=width, num_layers=layers, num_heads=heads, d_ff=inner, d_kv=64, feed_forward_proj="gated-gelu"
    )


SIZES = {
    "decoder": [(120e6, 768, 12, 12, 3072), (355e6, 1024, 24, 16, 4096), (774e6, 1280, 36, 20, 5120), (1.5e9, 1600, 48, 25, 6400),
                (3e9, 3072, 28, 24, 8192), (6.7e9, 4096, 32, 32, 11008), (8e9, 4096, 32, 32, 14336), (13e9, 5120, 40, 40, 13824),
                (33e9, 6656, 60, 52, 17920), (65e9, 8192, 80, 64, 22016), (175e9, 12288, 96, 96, 32768)],
    "encoder": [(22e6, 384, 6, 12, 1536), (66e6, 768, 6, 12, 3072), (110e6, 768, 12, 12, 3072), (355e6, 1024, 24, 16, 4096),
                (1.5e9, 1536, 48, 24, 6144)],
    "seq2seq": [(80e6, 512, 8, 6, 1024), (250e6, 768, 12, 12, 2048), (780e6, 1024, 24, 16, 2816), (3e9, 2048, 24, 32, 5120),
                (11e9, 4096, 24, 64, 10240)],
}  # fmt: skip
"""(parameters, width, layers, heads, inner width) of usual models, for families that are told by their size alone."""
_SIDES = {
    "seq2seq": r"t5|t0|bart|pegasus|ul2|marian", "encoder": r"bert|electra|xlm|minilm|mpnet|ernie",
    "decoder": r"gpt|llama|opt|mistral|bloom|pythia|falcon|qwen|gemma|phi|vicuna|alpaca|mpt|starcoder|deepseek|yi\b",
}  # fmt: skip


def parameters(text: str) -> float:
    """`355M`, `11B` or `235M-11B` as a number, the largest of a range; 0 where there is none."""
    found = re.findall(r"([\d.]+)\s*([MB])", text)
    return max((float(n) * {"M": 1e6, "B": 1e9}[unit] for n, unit in found), default=0.0)


def model(family: str, size: str) -> Any:
    """A configuration of the published family at the published size; None where it is no text model that we know."""
    import transformers as t

    count, name = parameters(size), family.lower()
    side = next((side for side, pattern in _SIDES.items() if re.search(pattern, name)), "seq2seq" if name == "mixed" else None)  # fmt: skip
    if side is None or not count:
        return None
    _, width, layers, heads, inner = min(SIZES[side], key=lambda s: abs(s[0] - count) / s[0])
    if side == "encoder":
        roberta = re.search("roberta|xlm", name)
        extra = {"vocab_size": 50265, "max_position_embeddings": 514} if roberta else {}
        return (t.RobertaConfig if roberta else t.BertConfig)(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner, **extra
        )
    if side == "seq2seq" and "bart" in name:
        return t.MBartConfig(vocab_size=250027) if "mbart" in name else t.BartConfig()
    if side == "seq2seq":
        return t5(width, layers, heads, inner)
    if "gpt-2" in name or "gpt2" in name or "gpt-3" in name:
        return t.GPT2Config(n_embd=width, n_layer=layers, n_head=heads, n_positions=2048 if count > 2e9 else 1024)
    return llama(
        width, layers, heads, inner, 8 if count in (3e9, 8e9) else None, 128256 if "llama-3" in name else 32000
    )


@lru_cache(maxsize=1)
def teacher() -> str:
    """A folder with the configuration of a 1.5B decoder: a teacher's answers take memory and time, its weights are not asked."""
    from transformers import GPT2Config

    folder = mkdtemp()
    GPT2Config(n_embd=1600, n_layer=48, n_head=25, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def adapters() -> tuple[str, ...]:
    """Two adapters for a base of BERT's size, with made-up values: only their places and sizes are looked at."""
    import transformers as t

    import tunekit
    from tunekit.task import Task

    base = t.BertForSequenceClassification(t.BertConfig())
    method, task = tunekit.methods.BottleneckAdapter(), Task.named("sequence-classification")
    ready = tunekit.prepare(base, method, task)
    folders = []
    for name in ("first", "second"):
        folder = Path(mkdtemp()) / name
        folder.mkdir()
        method.save(ready, folder)
        folders.append(str(folder))
    return tuple(folders)


# ---------------------------------------------------------------------------------------------- questions
def question(case: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a case, as `tunekit.advise` takes them."""
    kind, config = case["task_kind"], model(case["model_family"], case["model_params"])
    kind_of_model = getattr(config, "model_type", "")
    writes = "seq2seq" if kind_of_model in ("t5", "bart", "mbart") else "causal-lm"
    facts: dict[str, Any] = {"num_examples": int(float(case["n_train"] or 50_000))}
    facts["goal"] = next((goal for text, goal in GOALS.items() if text in case["goal"]), "quality")
    facts["hardware"] = "8x8xH100" if parameters(case["model_params"]) > 20e9 else "8xH100"
    facts |= {"teacher": teacher()} if "teacher" in case["goal"] else {}
    facts |= {"adapters": adapters()} if "adapters" in case["goal"] and kind_of_model == "bert" else {}
    facts |= {"unlabelled": 10_000} if "unlabelled" in case["goal"] else {}
    if kind_of_model in ("t5", "gpt2", "llama") or kind.startswith(("generation", "instruction", "continued")):
        return {**facts, "task": writes, "mean_tokens": 200}
    if kind == "extractive-qa":
        return {**facts, "task": "question-answering", "mean_tokens": 200}
    if kind == "multiple-choice":
        return {**facts, "task": "multiple-choice", "mean_tokens": 60}
    if kind.startswith("token-classification"):
        return {**facts, "task": "token-classification", "mean_tokens": 25, "num_labels": 9}
    labels: dict[str, Any] = (
        {"num_labels": 1} if kind.startswith("regression") else {"label_names": WORDS.get(kind, ("no", "yes"))}
    )
    return {**facts, "task": "sequence-classification", "mean_tokens": 40, **labels}


def name_of(entry: Any, measured: Iterable[str]) -> str | None:
    """What the case calls this plan; None where it was not measured there."""
    method, plan = entry.plan.method, entry.plan
    called = entry.slug
    if called == "lora":
        start = str(method.init_lora_weights)
        called = (
            "qlora" if plan.quantization else "dora" if method.use_dora else "rslora" if method.use_rslora
            else "pissa" if start.startswith("pissa") else "lora-plus" if method.loraplus_lr_ratio else "lora"
        )  # fmt: skip
    if called == "bottleneck-adapter":
        called = {"parallel": "parallel-adapter"}.get(method.variant, method.variant)
    return next((name for name in measured if NAMES.get(name) == called), "adapter" if "adapter" in measured and "adapter" in entry.slug else None)  # fmt: skip


def losses(measured: Mapping[str, float], case: Mapping[str, str]) -> dict[str, float]:
    """Points that each method stands behind the best."""
    sign = 1 if case["higher_is_better"] == "1" else -1
    best = max(sign * s for s in measured.values())
    return {name: best - sign * s for name, s in measured.items()}


def picks(case: Mapping[str, str], measured: Mapping[str, float]) -> tuple[str | None, str | None]:
    """The advice's first of what was measured, and the first when the case's own source is not believed."""
    import tunekit
    from tunekit.advisor.order import order

    config = model(case["model_family"], case["model_params"])
    in_words = {name: word for name, word in IN_WORDS.items() if name in measured}
    facts = question(case)
    asked = [NAMES[name] for name in measured if name in NAMES] or ["full"]
    if facts["task"] != "sequence-classification":
        asked = [slug for slug in asked if slug != "prompt-learning"]  # classes asked of a writer are texts to it
    advice = tunekit.advise(config, methods=list(dict.fromkeys(asked)), **facts)
    if in_words and not advice.ranked:
        said = " ".join(f.fix for e in advice.rejected for f in e.findings) + " ".join(f.fix for f in advice.findings)
        pick = next((name for name, word in in_words.items() if word in said), None)
        return pick, pick
    own = own_rules(case["source"])
    entries = [_without(e, own) for e in (*advice.ranked, *advice.rejected)]
    ranked, _, _ = order(advice.workload, entries)
    first = next((n for e in advice.ranked if (n := name_of(e, measured)) is not None), None)
    return first, next((n for e in ranked if (n := name_of(e, measured)) is not None), None)


def _without(entry: Any, slugs: frozenset[str]) -> Any:
    import dataclasses

    return dataclasses.replace(entry, findings=tuple(f for f in entry.findings if f.code not in slugs))


@lru_cache
def own_rules(source: str) -> frozenset[str]:
    """Rules that rest on this source alone; a rule about memory or a goal rests on the prediction."""
    from tunekit.advisor.judge import rules

    author = {"PEFT": "huggingface/peft", "RAFT": "Liu et al., Few-Shot"}.get(
        source.split()[0], f"{source.split()[0]} et al."
    )
    author = "Schick and" if source.startswith("Schick") else author
    return frozenset(
        slug
        for slug, rule in rules().items()
        if all(part.strip().startswith(author) for part in rule.source.split(";"))
    )


def summary(title: str, rows: list[dict[str, Any]], pick: str) -> str:
    n = len(rows)
    within = sum(s[pick] <= WITHIN for s in rows)
    return (
        f"{title}: {within} of {n} within {WITHIN:g} point of the best ({100 * within / n:.0f} %), mean regret "
        f"{sum(s[pick] for s in rows) / n:.2f}; random pick {100 * sum(s['random_within'] for s in rows) / n:.0f} %, "
        f"{sum(s['random'] for s in rows) / n:.2f}; always LoRA {100 * sum(s['always'] <= WITHIN for s in rows) / n:.0f} %, "
        f"{sum(s['always'] for s in rows) / n:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "evidence" / "cases.csv")
    parser.add_argument("--verbose", action="store_true", help="print every case that was missed by more than a point")
    asked = parser.parse_args()
    if not asked.cases.is_file():
        raise SystemExit(f"{asked.cases}: no such file; pass --cases")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from tunekit.advisor.candidates import names

    known = {name for name, ours in NAMES.items() if ours in (*names(), "bottleneck-adapter")} | set(IN_WORDS)
    left_out: Counter[str] = Counter()
    seen: list[dict[str, Any]] = []
    for case in csv.DictReader(asked.cases.open()):
        if case["verified"] != "verified":
            continue
        every = json.loads(case["scores_json"])
        measured = {name: float(score) for name, score in every.items() if name in known}
        if model(case["model_family"], case["model_params"]) is None:
            left_out[f"no text model that is known ({case['model_family']})"] += 1
            continue
        if len(measured) < 2:
            left_out[
                f"fewer than two of its methods can be asked for ({', '.join(sorted(set(every) - set(measured)))})"
            ] += 1
            continue
        behind = losses(measured, case)
        chosen, without = picks(case, measured)
        if chosen is None:
            left_out["every method was refused"] += 1
            continue
        always = next(name for name in ("lora", "full_ft", *behind) if name in behind)
        seen.append({
            "decisive": case["decisive"] == "1", "pick": behind[chosen], "without": behind[without or chosen],
            "random": sum(behind.values()) / len(behind), "always": behind[always],
            "random_within": sum(v <= WITHIN for v in behind.values()) / len(behind),
        })  # fmt: skip
        if asked.verbose and behind[chosen] > WITHIN:
            best = min(behind, key=lambda m: behind[m])
            print(
                f"{case['case_id']} {case['model_family']} {case['dataset']} n={case['n_train']}: {chosen} is {behind[chosen]:.1f} behind {best}"
            )
    decisive = [s for s in seen if s["decisive"]]
    print(summary("all", seen, "pick"))
    print(summary("decisive", decisive, "pick"))
    print("with the rules silenced that rest on the case's own source alone:")
    print(summary("all", seen, "without"))
    print(summary("decisive", decisive, "without"))
    for reason, n in left_out.most_common():
        print(f"left out: {n}: {reason}")


if __name__ == "__main__":
    main()
