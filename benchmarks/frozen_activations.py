"""Head-only and top-layer training with the frozen layers' answers kept, beside the same training without.

    python benchmarks/frozen_activations.py --data ../shared/data [--rows 200] [--epochs 10] [--pairs 2] [--only trec]

sst2 and trec; of MiniLM the head alone, the last layer, the last two; of twelve layers of its width with random weights the last one.
Three runs a pair, in turn: a hand-written Trainer whose lower layers want no gradient (Trainer's defaults), the plan with
`frozen_activations: recomputed`, and with `cached`. Timed is `train()` with an evaluation after each epoch, by the processor's clock, and
for `cached` also the one pass that fills the store. Dropout is off, so that all three learn the same thing; the metric is the accuracy on the
validation rows after the last step. `at most` counts layers: of L with k that learn, a row costs L forwards and 2 k of backward without
the store, and 3 k (and L once) with it. Results: benchmarks/results/frozen_activations.json, each run as it ends;
what is there is not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import throughput_rows as shared

RESULTS = Path(__file__).parent / "results" / "frozen_activations.json"
CASES = {"head": (6, 0), "last layer": (6, 1), "last two layers": (6, 2), "last of twelve layers": (12, 1)}
"""Layers of the model, and how many of them learn."""
TEST_ROWS = 100
BATCH, RATE = 16, 1e-3


def method_of(depth: int) -> Any:
    from tunekit.methods import Partial

    return Partial(last_layers=depth) if depth else Partial(last_layers=None, patterns=("classifier",))


def still_model(layers: int, classes: int) -> Any:
    """MiniLM with a head, or more layers of its width with random weights over its embeddings; without dropout."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(shared.minilm(), num_labels=classes, **still)
    if layers == model.config.num_hidden_layers:
        return model
    config = type(model.config).from_dict({**model.config.to_dict(), "num_hidden_layers": layers})
    deeper = AutoModelForSequenceClassification.from_config(config)
    deeper.bert.embeddings.load_state_dict(model.bert.embeddings.state_dict())
    return deeper


def by_hand(layers: int, depth: int, train: Any, test: Any, epochs: int, folder: str) -> dict[str, float]:
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
    model = still_model(layers, 1 + max(r["label"] for r in train))
    learns = ("classifier", "pooler", *(f"layer.{layers - 1 - i}." for i in range(depth)))
    for n, p in model.named_parameters():
        p.requires_grad_(any(part in n for part in learns))
    args = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_strategy="no", eval_strategy="epoch",
    )  # fmt: skip
    trainer = Trainer(
        model, args, train_dataset=made[0], eval_dataset=made[1], data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((torch.tensor(p.predictions).argmax(-1) == torch.tensor(p.label_ids)).float().mean())},
    )  # fmt: skip
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, "accuracy": trainer.evaluate()["eval_accuracy"]}


def by_plan(layers: int, depth: int, train: Any, test: Any, epochs: int, folder: str, kept: str) -> dict[str, float]:
    import tunekit

    plan = tunekit.Plan(
        model=str(shared.minilm()), task="sequence-classification", method=method_of(depth), num_train_epochs=epochs,
        per_device_train_batch_size=BATCH, learning_rate=RATE, warmup=0.0, max_length=128, frozen_activations="recomputed",
        output_dir=folder, max_grad_norm=1.0,
    )  # fmt: skip
    model = still_model(layers, 1 + max(r["label"] for r in train))
    made = tunekit.trainer(
        plan, train_dataset=train, eval_dataset=test, model=model, disable_tqdm=True, eval_strategy="epoch",
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


SYSTEMS = ("by hand", "recomputed", "cached")


def run(system: str, name: str, case: str, asked: argparse.Namespace) -> dict[str, float]:
    train = shared.read(asked.data, name, "train", asked.rows)
    test = shared.read(asked.data, name, "validation", TEST_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        if system == "by hand":
            return by_hand(*CASES[case], train, test, asked.epochs, f"{folder}/run")
        return by_plan(*CASES[case], train, test, asked.epochs, f"{folder}/run", system)


def at_most(case: str, epochs: int) -> float:
    """What fewer layers a row can gain over the same plan without the store; a head itself counts as nothing."""
    layers, learning = CASES[case]
    return (layers + 2 * learning) / (3 * learning + layers / epochs)


def show(found: dict[str, Any], epochs: int) -> None:
    print(f"{found['machine']}; {found['settings']}")
    print(f"{'':28}{'by hand':>9}{'recomputed':>12}{'cached':>9}{'of it fill':>12}{'over hand':>11}{'over plan':>11}{'at most':>9}   accuracy of the three")  # fmt: skip
    for key, by in found["runs"].items():
        whole = min(len(by.get(s, [])) for s in SYSTEMS)
        if not whole:
            continue
        middle = {s: shared.median([r["cpu_seconds"] for r in by[s][:whole]]) for s in SYSTEMS}
        over = {
            s: shared.median([by[s][i]["cpu_seconds"] / by["cached"][i]["cpu_seconds"] for i in range(whole)])
            for s in SYSTEMS
        }
        fill = shared.median([r["fill_seconds"] for r in by["cached"][:whole]])
        scores = " ".join(f"{by[s][0]['accuracy']:.3f}" for s in SYSTEMS)
        most = at_most(key.split(", ")[1], epochs)
        print(f"{key:28}{middle['by hand']:>8.2f}s{middle['recomputed']:>11.2f}s{middle['cached']:>8.2f}s{fill:>11.2f}s{over['by hand']:>10.1f}x{over['recomputed']:>10.1f}x{most:>8.1f}x   {scores}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the rows to run, such as `trec, head`")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    settings = f"{asked.rows} rows, {asked.epochs} epochs, batch {BATCH}, {TEST_ROWS} rows evaluated after each"
    found = shared.load(asked.out, {"machine": shared.machine(), "settings": settings, "runs": {}})
    if found["settings"] != settings:
        raise SystemExit(f"{asked.out} holds runs with {found['settings']}: name another file with --out")
    for turn in range(asked.pairs):
        for key in (f"{name}, {case}" for case in CASES for name in ("sst2", "trec")):
            by = found["runs"].setdefault(key, {})
            for system in SYSTEMS[:: -1 if turn % 2 else 1]:
                done = by.setdefault(system, [])
                if len(done) <= turn and asked.only in key:
                    done.append(run(system, *key.split(", "), asked))
                    shared.save(asked.out, found)
    show(found, asked.epochs)


if __name__ == "__main__":
    main()
