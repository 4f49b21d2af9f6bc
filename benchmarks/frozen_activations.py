"""Head-only and top-layer training with the frozen layers' answers kept, beside the same training without.

    python benchmarks/frozen_activations.py --data ../shared/data [--rows 400] [--epochs 5] [--pairs 3]

MiniLM on sst2 and trec; the head alone, the last layer, the last two. Three runs a pair, in turn: a hand-written Trainer
whose lower layers want no gradient (Trainer's defaults), the plan with `frozen_activations: recomputed`, and with `cached`. Timed is
`train()` by the processor's clock, and for `cached` also the one pass that fills the store. Dropout is off, so that all three learn the same thing; the
metric is the accuracy on the validation rows after the last step. Results: benchmarks/results/frozen_activations.json, added to.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import throughput_rows as shared

RESULTS = Path(__file__).parent / "results" / "frozen_activations.json"
DEPTHS = {"head": 0, "last layer": 1, "last two layers": 2}
BATCH, RATE = 16, 1e-3


def method_of(depth: int) -> Any:
    from tunekit.methods import Partial

    return Partial(last_layers=depth) if depth else Partial(last_layers=None, patterns=("classifier",))


def still_model(name: str, classes: int) -> Any:
    """MiniLM with a head, without dropout."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        shared.minilm(), num_labels=classes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def by_hand(name: str, depth: int, train: Any, test: Any, epochs: int, folder: str) -> dict[str, float]:
    import datasets
    import torch
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(shared.minilm())
    made = [
        datasets.Dataset.from_list(rows).map(
            lambda b: tokenizer(b["text"], truncation=True, max_length=128), batched=True
        )
        for rows in (train, test)
    ]
    model = still_model(name, 1 + max(r["label"] for r in train))
    learns = ("classifier", "pooler", *(f"layer.{5 - i}." for i in range(depth)))
    for n, p in model.named_parameters():
        p.requires_grad_(any(part in n for part in learns))
    args = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model, args, train_dataset=made[0], eval_dataset=made[1], data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((torch.tensor(p.predictions).argmax(-1) == torch.tensor(p.label_ids)).float().mean())},
    )  # fmt: skip
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, "accuracy": trainer.evaluate()["eval_accuracy"]}


def by_plan(name: str, depth: int, train: Any, test: Any, epochs: int, folder: str, kept: str) -> dict[str, float]:
    import tunekit

    plan = tunekit.Plan(
        model=str(shared.minilm()), task="sequence-classification", method=method_of(depth), num_train_epochs=epochs,
        per_device_train_batch_size=BATCH, learning_rate=RATE, warmup=0.0, max_length=128, frozen_activations="recomputed",
        output_dir=folder, max_grad_norm=1.0,
    )  # fmt: skip
    model = still_model(name, 1 + max(r["label"] for r in train))
    made = tunekit.trainer(
        plan, train_dataset=train, eval_dataset=test, model=model, disable_tqdm=True, eval_strategy="no",
        load_best_model_at_end=False, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    began, cpu = time.perf_counter(), time.process_time()
    if kept == "cached":
        from tunekit.activation_cache import keep_frozen_activations

        keep_frozen_activations(made)
    filled = time.process_time() - cpu
    made.train()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, "fill_seconds": filled, "accuracy": made.evaluate()["eval_accuracy"]}


def pair(name: str, depth: int, asked: argparse.Namespace, turn: int) -> dict[str, dict[str, float]]:
    train = shared.read(asked.data, name, "train", asked.rows)
    test = shared.read(asked.data, name, "validation", 200)
    runs = {
        "by hand": lambda f: by_hand(name, depth, train, test, asked.epochs, f),
        "recomputed": lambda f: by_plan(name, depth, train, test, asked.epochs, f, "recomputed"),
        "cached": lambda f: by_plan(name, depth, train, test, asked.epochs, f, "cached"),
    }
    found = {}
    for what in sorted(runs, reverse=bool(turn % 2)):
        with tempfile.TemporaryDirectory() as folder:
            found[what] = runs[what](f"{folder}/run")
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}; {found['settings']}")
    print(f"{'':26}{'by hand':>9}{'recomputed':>12}{'cached':>9}{'of it fill':>12}{'over hand':>11}{'over plan':>11}   accuracy of the three")  # fmt: skip
    for key, pairs in ((k, p) for k, p in found["pairs"].items() if p):
        middle = {w: shared.median([p[w]["cpu_seconds"] for p in pairs]) for w in ("by hand", "recomputed", "cached")}
        over = {w: shared.median([p[w]["cpu_seconds"] / p["cached"]["cpu_seconds"] for p in pairs]) for w in middle}
        fill = shared.median([p["cached"]["fill_seconds"] for p in pairs])
        scores = " ".join(f"{pairs[-1][w]['accuracy']:.4f}" for w in middle)
        print(f"{key:26}{middle['by hand']:>8.2f}s{middle['recomputed']:>11.2f}s{middle['cached']:>8.2f}s{fill:>11.2f}s{over['by hand']:>10.1f}x{over['recomputed']:>10.1f}x   {scores}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    settings = f"{asked.rows} rows, {asked.epochs} epochs, batch {BATCH}"
    found = shared.load(asked.out, {"machine": shared.machine(), "settings": settings, "pairs": {}})
    for turn in range(asked.pairs):
        for name in ("sst2", "trec"):
            for what, depth in DEPTHS.items():
                done = found["pairs"].setdefault(f"{name}, {what}", [])
                if len(done) <= turn:
                    done.append(pair(name, depth, asked, turn))
                    shared.save(asked.out, found)
    show(found)


if __name__ == "__main__":
    main()
