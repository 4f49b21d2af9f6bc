"""Prompts beside the ordinary head: asked without any label, and trained on 16 rows a class, three seeds.

    python benchmarks/prompt_models.py --data ../shared/data       first: two small language models (minutes)
    python benchmarks/prompt_learning.py --data ../shared/data     both models, sst2, trec and banking77

`zero-shot`: every template alone (their mean and the best), their ensemble, and the ensemble calibrated without content and by
200 training rows without labels (batch calibration). Templates and words were chosen by a look at 240 training rows.
`prompt`: all weights learn through the templates; `head`: all weights and a new head learn from the same rows, for as many
steps; the prompt at one learning rate, the head at two, so that it is not held back by the choice. `demonstrations`: one row of each class
is shown before every row, nothing is trained. `self-training`: one generation and 200 unlabelled rows. Label words are chosen by hand;
`searched`: found from the same 16 rows a class. Scores are the accuracy on 500 rows of the official test files. Prints tables and
writes benchmarks/results/prompt_learning.csv; runs that are there already are not repeated.
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
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prompt_learning.csv"
FIELDS = ("model", "dataset", "what", "seed", "learning_rate", "accuracy", "cpu_seconds")
PER_CLASS, TEST_ROWS, LENGTH, UNLABELLED = 16, 500, 64, 200
STEPS = {"sst2": 32, "trec": 60, "banking77": 80}
RATES = {"prompt": (2e-4,), "head": (5e-5, 2e-4)}
SEEDS = (0, 1, 2)
TEMPLATES = {
    "sst2": ("{text} it was {mask}", "{text} the film is {mask}"),
    "trec": ("{text} this is about a {mask}", "{text} the answer is a {mask}"),
    "banking77": ("{text} i want to ask about the {mask}", "{text} my {mask}"),
}
"""Without a full stop at the end, so that a decoder reads the same."""
WORDS = {
    "sst2": {"negative": ("bad", "terrible", "dull"), "positive": ("good", "great", "wonderful")},
    "trec": {
        "ABBR": ("abbreviation",), "DESC": ("description", "reason"), "ENTY": ("thing", "animal"), "HUM": ("person", "name"),
        "LOC": ("place", "city"), "NUM": ("number", "date"),
    },
    "banking77": {
        "exchange_rate": ("exchange",), "request_refund": ("refund",), "passcode_forgotten": ("password",), "age_limit": ("age",),
        "lost_or_stolen_phone": ("phone",), "country_support": ("country",), "change_pin": ("pin",), "verify_my_identity": ("identity",),
    },
}  # fmt: skip


def rows(data: Path, dataset: str, split: str) -> list[dict[str, str]]:
    """A split in a seeded order, each row with the name of its class; of banking77 the eight intents with a word of their own."""
    lines = (data / dataset / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [
        {"text": r["text"], "label": r["label_name"]}
        for r in map(json.loads, lines)
        if r["label_name"] in WORDS[dataset]
    ]
    random.Random(7).shuffle(found)
    return found


def few(every: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """So many rows of each class."""
    draw, by_class = random.Random(seed), defaultdict(list)
    for row in every:
        by_class[row["label"]].append(row)
    chosen = [row for name in sorted(by_class) for row in draw.sample(by_class[name], PER_CLASS)]
    draw.shuffle(chosen)
    return chosen


def plan_of(kind: str, dataset: str, objective: Any, rate: float, seed: int, folder: str) -> Any:
    """All weights, constant rate after a short warm-up; the objective None is the ordinary head."""
    import tunekit

    return tunekit.Plan(
        model=str(ROOT / "benchmarks" / "out" / f"prompt-{kind}"), task="sequence-classification", method=tunekit.methods.Full(),
        objective=objective, learning_rate=rate, max_steps=STEPS[dataset], per_device_train_batch_size=8, warmup=0.1, seed=seed, max_length=LENGTH,
        output_dir=f"{folder}/{kind}-{dataset}-{seed}-{rate}-{'head' if objective is None else 'prompt'}", weight_decay=0.01,
        per_device_eval_batch_size=32,
    )  # fmt: skip


def trained(plan: Any, train: Any, test: Any) -> float:
    """Accuracy after the last step."""
    import tunekit

    quiet = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}
    made = tunekit.trainer(plan, train_dataset=train, eval_dataset=test, **quiet)
    made.train()
    return float(made.evaluate()["eval_accuracy"])


class Bench:
    """The runs of one data folder, those that are done kept."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.done = self.known()

    def known(self) -> list[dict[str, str]]:
        """What is measured so far, by this process or another."""
        return list(csv.DictReader(RESULTS.open(encoding="utf-8"))) if RESULTS.is_file() else []

    def run(self, kind: str, dataset: str, what: str, seed: int, rate: float, measure: Any) -> None:
        key = {"model": kind, "dataset": dataset, "what": what, "seed": str(seed), "learning_rate": str(rate)}
        self.done = self.known()
        if any(all(r[k] == v for k, v in key.items()) for r in self.done):
            return
        start = time.process_time()
        score = measure()
        row = {**key, "accuracy": f"{score:.4f}", "cpu_seconds": f"{time.process_time() - start:.0f}"}
        print(*row.values(), flush=True)
        self.done = [*self.known(), row]
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(self.done, key=lambda r: tuple(r[k] for k in FIELDS[:5])))

    # ------------------------------------------------------------------ without training
    def asked(self, kind: str, dataset: str) -> None:
        """Zero-shot, calibrated, and with demonstrations."""
        import tunekit

        objective = objective_of(dataset)
        test = rows(self.data, dataset, "test")[:TEST_ROWS]
        held: list[Any] = []

        def model() -> Any:
            if not held:
                held.extend(load(kind))
            return held

        def score(obj: Any, **settings: Any) -> float:
            said = tunekit.prompt_scores(
                *model(), obj, test, max_length=settings.pop("max_length", LENGTH), batch_size=32, **settings
            )
            names = list(obj.verbalizer)
            return sum(names[int(i)] == r["label"] for i, r in zip(said.argmax(-1), test, strict=True)) / len(test)

        for i, template in enumerate(TEMPLATES[dataset]):
            self.run(
                kind,
                dataset,
                f"zero-shot template {i + 1}",
                0,
                0.0,
                lambda t=template: score(objective_of(dataset, (t,))),
            )
        self.run(kind, dataset, "zero-shot ensemble", 0, 0.0, lambda: score(objective))
        self.run(
            kind, dataset, "zero-shot calibrated", 0, 0.0, lambda: score(tunekit.calibrate_prompt(*model(), objective))
        )
        unlabelled = [r["text"] for r in rows(self.data, dataset, "train")[:UNLABELLED]]
        self.run(
            kind, dataset, "zero-shot calibrated by rows", 0, 0.0,
            lambda: score(tunekit.calibrate_prompt(*model(), objective, content_free=unlabelled, max_length=LENGTH)),
        )  # fmt: skip
        for seed in SEEDS:
            shown = few(rows(self.data, dataset, "train"), seed)
            one = objective_of(dataset, TEMPLATES[dataset][:1], demonstrations=1, seed=seed)
            self.run(
                kind, dataset, "demonstrations", seed, 0.0, lambda o=one, s=shown: score(o, examples=s, max_length=256)
            )

    # ------------------------------------------------------------------ with 16 rows a class
    def learnt(self, kind: str, dataset: str, seed: int, folder: str) -> None:
        """Prompt and head from the same rows."""
        every, test = rows(self.data, dataset, "train"), rows(self.data, dataset, "test")[:TEST_ROWS]
        train = few(every, seed)
        for what, objective in (("prompt", objective_of(dataset)), ("head", None)):
            for rate in RATES[what]:
                plan = plan_of(kind, dataset, objective, rate, seed, folder)
                self.run(kind, dataset, what, seed, rate, lambda p=plan: trained(p, train, test))

    def searched(self, kind: str, dataset: str, seed: int, folder: str) -> None:
        """Label words from the rows themselves."""
        import tunekit

        train, test = few(rows(self.data, dataset, "train"), seed), rows(self.data, dataset, "test")[:TEST_ROWS]
        rate = self.best(kind, dataset, "prompt")

        def measure() -> float:
            words = tunekit.search_label_words(*load(kind), TEMPLATES[dataset][:1], train, words=3, max_length=LENGTH)
            print(dataset, seed, words, flush=True)
            return trained(plan_of(kind, dataset, objective_of(dataset, words=words), rate, seed, folder), train, test)

        self.run(kind, dataset, "searched", seed, rate, measure)

    def self_trained(self, kind: str, dataset: str, seed: int, folder: str) -> None:
        """One generation of single templates, and 200 rows without labels."""
        import tunekit

        every, test = rows(self.data, dataset, "train"), rows(self.data, dataset, "test")[:TEST_ROWS]
        train, more = few(every, seed), random.Random(seed + 100).sample(every, UNLABELLED)
        rate = self.best(kind, dataset, "prompt")
        plan = plan_of(kind, dataset, objective_of(dataset), rate, seed, f"{folder}/self")

        def measure() -> float:
            quiet = {
                "save_strategy": "no",
                "eval_strategy": "no",
                "load_best_model_at_end": False,
                "disable_tqdm": True,
            }
            last = tunekit.self_train(plan, train, more, eval_dataset=test, **quiet)
            return float(last.evaluate()["eval_accuracy"])

        self.run(kind, dataset, "self-training", seed, rate, measure)

    def best(self, kind: str, dataset: str, what: str) -> float:
        """The learning rate with the best mean."""
        return max(RATES[what], key=lambda rate: mean(self.scores(kind, dataset, what, rate)))

    def scores(self, kind: str, dataset: str, what: str, rate: float = 0.0) -> list[float]:
        wanted = {"model": kind, "dataset": dataset, "what": what, "learning_rate": str(rate)}
        return [float(r["accuracy"]) for r in self.done if all(r[k] == v for k, v in wanted.items())]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def objective_of(dataset: str, templates: Any = None, words: Any = None, **settings: Any) -> Any:
    import tunekit

    return tunekit.objectives.PromptLearning(
        templates=templates or TEMPLATES[dataset], verbalizer=words or WORDS[dataset], **settings
    )


def load(kind: str) -> tuple[Any, Any]:
    """A model of the first script, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    folder = ROOT / "benchmarks" / "out" / f"prompt-{kind}"
    auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
    return auto.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def table(bench: Bench, kind: str, dataset: str, test: list[dict[str, str]]) -> None:
    """Means and the range of what was found."""
    counts = defaultdict(int)
    for row in test:
        counts[row["label"]] += 1
    print(
        f"\n{kind}, {dataset}: chance {1 / len(counts):.3f}, most frequent class {max(counts.values()) / len(test):.3f}"
    )
    lines = {r["what"] for r in bench.done if r["model"] == kind and r["dataset"] == dataset}
    for what in sorted(lines):
        rates = sorted({float(r["learning_rate"]) for r in bench.done if r["what"] == what and r["dataset"] == dataset and r["model"] == kind})  # fmt: skip
        for rate in rates:
            found = bench.scores(kind, dataset, what, rate)
            shown = f" at {rate:g}" if rate else ""
            print(
                f"  {what + shown:32} {mean(found):.3f}   {min(found):.3f} to {max(found):.3f}   {len(found)} run{'s' if len(found) > 1 else ''}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", nargs="+", default=["masked", "causal"], choices=["masked", "causal"])
    parser.add_argument("--datasets", nargs="+", default=list(TEMPLATES), choices=list(TEMPLATES))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    bench = Bench(args.data)
    with TemporaryDirectory() as folder:
        for kind in args.models:
            for dataset in args.datasets:
                bench.asked(kind, dataset)
                for seed in SEEDS:
                    bench.learnt(kind, dataset, seed, folder)
        for seed in SEEDS if {"masked"} <= {*args.models} and "sst2" in args.datasets else ():
            bench.searched("masked", "sst2", seed, folder)
            bench.self_trained("masked", "sst2", seed, folder)
    for kind in args.models:
        for dataset in args.datasets:
            table(bench, kind, dataset, rows(args.data, dataset, "test")[:TEST_ROWS])


if __name__ == "__main__":
    main()
