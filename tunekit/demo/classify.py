"""Classifies sentences with what a run saved: `python -m tunekit.demo.classify PLAN ADAPTER`, sentences as JSON on stdin.

It is a program of its own so that the demonstration can show that nothing of the training process is needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tunekit.plan import Plan

BATCH = 64


def classify(plan: Plan, adapter: Path, texts: list[str]) -> list[dict[str, Any]]:
    """The likeliest class of each sentence, with its probability.

    Args:
        plan: The plan of the run; it names the base and the classes.
        adapter: The folder that holds what was learnt, and the tokenizer.
        texts: The sentences.
    """
    import torch

    import tunekit
    from tunekit.pretrained import load_model, load_tokenizer

    assert plan.data is not None, "a plan from advice on rows names them"
    names = plan.data.label_names
    base = load_model(plan, num_labels=len(names), label_names=names, problem_type=plan.problem_type)
    model = tunekit.load(base, adapter, task=plan.task).eval()
    tokenizer = load_tokenizer(str(adapter))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenizer(
            [texts[i] for i in rows], padding=True, truncation=True, max_length=plan.max_length, return_tensors="pt"
        )
        with torch.inference_mode():
            shares = model(**batch).logits.softmax(-1)
        for i, share in zip(rows, shares, strict=True):
            found[i] = {"predicted": names[int(share.argmax())], "probability": round(float(share.max()), 4)}
    return [found[i] for i in range(len(texts))]


def main() -> None:
    """Reads a list of sentences from standard input and writes a list of answers to standard output."""
    plan, adapter = sys.argv[1:]
    texts = json.loads(sys.stdin.read())
    sys.stdout.write(json.dumps(classify(Plan.load(plan), Path(adapter), texts)))


if __name__ == "__main__":
    main()
