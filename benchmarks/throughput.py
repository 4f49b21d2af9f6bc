"""Training with a plan's defaults beside what a user would otherwise start, on the same rows, models and numbers of examples.

    python benchmarks/throughput.py [--data ../shared/data] [--other ENVIRONMENT/bin/python] [--minutes 25] [--only TEXT]
    python benchmarks/throughput.py --table

Seven datasets, each with full fine-tuning, LoRA and the last layer alone (one stack: its frozen layers' answers kept); MiniLM for
the encoders' tasks, small models with random weights and a vocabulary of the rows' own for the others. In turn, in one process:

- `plan`: `tunekit.trainer` with a plan's defaults; for causal-lm also `plan, chunked`, which is what `advise` proposes
- `by hand`: a plain Trainer (and PEFT) with the plan's settings: rows grouped by length
- `defaults`: the same with transformers' own defaults: random order, padding to the longest of a batch
- `trl`, `trl, packed`: SFTTrainer with its packing (one sequence of as many tokens as eight rows have) and without, in 32 bits and
  without checkpointing; `trl, its defaults`: in 16 bits with checkpointing, which a CPU pays dearly for, so only with `--trl-defaults`
- `adapters`: AdapterHub's in its own environment, for a bottleneck adapter

Compared is the processor's time of all steps, from the first one's beginning to the last one's end (one thread; others on the machine
count for little), and the loss on rows
not trained on after the same number of examples, by one function for all. Before a dataset's first run two steps are trained that
do not count. Tokens are counted as the collators make them, so that the gain by less padding stands apart from the rest; `of ceiling` is the
gain over the defaults by that of a batch without padding. Every run is written to benchmarks/results/throughput.json as it ends; runs that
are there are not repeated. `--only` may be given several times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import throughput_rows as shared
from throughput_adapters import Counted, clock

RESULTS = Path(__file__).parent / "results" / "throughput.json"
BATCH, EPOCHS_OF_PARTIAL, TEST_ROWS = 8, 4, 48
EXAMPLES = {
    "instructions_1100": 320, "gsm8k": 160, "banking77": 240, "sst2": 240, "wnut17": 240, "scitldr": 160, "dialogsum": 160,
}  # fmt: skip
"""Rows that a run sees in all: grouping by length needs more than a few batches."""
RATES = {"full": 1e-4, "lora": 1e-3, "partial": 1e-3, "bottleneck-adapter": 1e-3}
DATASETS = ("instructions_1100", "gsm8k", "banking77", "sst2", "scitldr", "wnut17", "dialogsum")


# ---------------------------------------------------------------------- what is compared
def method_of(name: str, task: str) -> Any:
    from tunekit import methods

    match name:
        case "full":
            return methods.Full()
        case "lora":
            return methods.Lora(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="attention")
        case "bottleneck-adapter":
            return methods.BottleneckAdapter()
    return methods.Partial(last_layers=1)


def plan_of(name: str, method: str, folder: Path, out: str) -> Any:
    import tunekit

    task = shared.TASKS[name]
    keeps = method == "partial" and task != "seq2seq"
    return tunekit.Plan(
        model=str(folder), task=task, method=method_of(method, task), max_length=shared.LONGEST[task], output_dir=out,
        per_device_train_batch_size=BATCH, learning_rate=RATES[method], num_train_epochs=epochs(method),
        frozen_activations="cached" if keeps else "recomputed",
    )  # fmt: skip


def epochs(method: str) -> int:
    return EPOCHS_OF_PARTIAL if method == "partial" else 1


def systems(name: str, method: str, other: str | None, halved: bool) -> list[str]:
    if method == "bottleneck-adapter":
        return ["plan", *(["adapters"] if other else [])]
    found = ["plan", "by hand", "defaults"]
    if shared.TASKS[name] == "causal-lm":
        found += ["plan, chunked", "trl", "trl, packed"] if method != "partial" else ["trl"]
        found += ["trl, its defaults"] if halved else []
    return found


class Row:
    """One dataset with one method: its rows, made once, and a Trainer of each system."""

    def __init__(self, name: str, method: str, data: Path, models: Path) -> None:
        self.name, self.method, self.task = name, method, shared.TASKS[name]
        count = EXAMPLES[name] // epochs(method)
        self.train = shared.read(data, name, "train", count)
        self.test = shared.read(data, name, "validation", TEST_ROWS)
        if self.task == "sequence-classification":
            kept = sorted({r["label"] for r in self.train})
            place = {label: i for i, label in enumerate(kept)}
            self.train = [{**r, "label": place[r["label"]]} for r in self.train]
            self.test = [{**r, "label": place[r["label"]]} for r in self.test if r["label"] in place]
        if self.task == "token-classification":
            seen = {t for r in self.train for t in r["tags"]}
            self.test = [r for r in self.test if set(r["tags"]) <= seen]
        self.folder = shared.model_folder(models, name, self.train)

    @cached_property
    def plain(self) -> Any:
        """A plan's Trainer that is never trained: rows as tokenised for the plan, a collator, names of what learns."""
        with tempfile.TemporaryDirectory() as out:
            return self.by_plan(f"{out}/rows", frozen_activations="recomputed")

    def by_plan(self, out: str, **changes: Any) -> Any:
        import tunekit

        plan = plan_of(self.name, self.method, self.folder, out).replace(**changes)
        return tunekit.trainer(
            plan, train_dataset=self.train, eval_dataset=self.test, disable_tqdm=True, save_strategy="no", eval_strategy="no",
            load_best_model_at_end=False,
        )  # fmt: skip

    def by_trainer(self, out: str, **settings: Any) -> Any:
        """A plain script: the rows as tokenised for the plan, so that only the training differs."""
        import transformers as t

        args = t.TrainingArguments(out, **self._arguments(), **settings)
        collate = _padding(self.plain.data_collator)
        return t.Trainer(self._model(), args, train_dataset=self.plain.train_dataset, data_collator=collate)

    def by_trl(self, out: str, packed: bool, **settings: Any) -> Any:
        import datasets
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        arguments = self._arguments()
        if packed:
            arguments |= {"packing": True, "max_length": self.eight_rows(), "per_device_train_batch_size": 1}
        config = SFTConfig(out, **{"max_length": shared.LONGEST[self.task], **arguments, **settings})
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        rows = datasets.Dataset.from_list(self.train)
        return SFTTrainer(self._model(), config, train_dataset=rows, processing_class=tokenizer)

    def eight_rows(self) -> int:
        """Tokens that a batch has without padding."""
        return int(sum(len(r["input_ids"]) for r in self.plain.train_dataset) / len(self.train) * BATCH)

    def _arguments(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": BATCH, "learning_rate": RATES[self.method], "num_train_epochs": epochs(self.method),
            "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        }  # fmt: skip

    def _model(self) -> Any:
        """The base as a script would load it, with PEFT's LoRA or its lower layers frozen by hand."""
        import torch
        import transformers as t
        from peft import LoraConfig, get_peft_model

        from tunekit.task import Task

        made = self.plain
        torch.manual_seed(42)
        auto, config = getattr(t, Task.named(self.task).auto_class), made.model.config
        extra = {} if self.task in ("causal-lm", "seq2seq") else {"num_labels": config.num_labels}
        model = auto.from_pretrained(self.folder, **extra)
        if self.method == "lora":
            held = [n for n, m in made.model.named_modules() if "lora_A" in m._modules]
            names = sorted({".".join(n.split(".")[-2:]) for n in held})
            kind = {"causal-lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "sequence-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}  # fmt: skip
            head = ["classifier"] if extra else None
            return get_peft_model(model, LoraConfig(task_type=kind[self.task], r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names, modules_to_save=head))  # fmt: skip
        if self.method == "partial":
            learns = {n for n, p in made.model.named_parameters() if p.requires_grad}
            for n, p in model.named_parameters():
                p.requires_grad_(n in learns)
        return model

    def make(self, system: str, out: str) -> Any:
        match system:
            case "plan":
                return self.by_plan(out)
            case "plan, chunked":
                return self.by_plan(out, loss_kernel="chunked")
            case "by hand":
                return self.by_trainer(out, train_sampling_strategy="group_by_length")
            case "defaults":
                return self.by_trainer(out)
            case "trl, its defaults":
                return self.by_trl(out, packed=False)
        return self.by_trl(out, system == "trl, packed", bf16=False, gradient_checkpointing=False)


def _padding(collate: Any) -> Any:
    """The task's collator without what a plan puts around it."""
    return getattr(collate, "func", collate)


# ---------------------------------------------------------------------- one run
def run(row: Row, system: str) -> dict[str, float]:
    from transformers import PrinterCallback

    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spent = time.process_time()
        trainer = row.make(system, f"{out}/run")
        made = time.process_time() - spent
        fill = _fill_seconds(row, out) if system == "plan" and row.method == "partial" else 0.0
        trainer.remove_callback(PrinterCallback)
        counted = trainer.data_collator = Counted(trainer.data_collator, 0)
        seen = clock(trainer)
        trainer.train()
        spent, wall = (end - begin for begin, end in zip(seen[0], seen[-1], strict=True))
        loss = loss_of(row, trainer.model)
    return {
        "cpu_seconds": spent + fill, "wall_seconds": wall + fill, "made_seconds": made, "steps": trainer.state.global_step,
        "tokens": counted.tokens, "real_tokens": counted.real, "loss": loss,
    }  # fmt: skip


def warm_up(row: Row) -> None:
    """Two steps each of a plan and of a plain Trainer, so that no system pays for what a process does once."""
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trainer in (row.by_plan(f"{out}/plan", max_steps=2, frozen_activations="recomputed"), row.by_trainer(f"{out}/plain", max_steps=2)):  # fmt: skip
            trainer.train()


def _fill_seconds(row: Row, out: str) -> float:
    """What making the plan's Trainer takes longer because the frozen layers are asked then."""
    if row.task == "seq2seq":
        return 0.0
    from tunekit.activation_cache import keep_frozen_activations

    trainer = row.by_plan(f"{out}/fill", frozen_activations="recomputed")
    began = time.process_time()
    keep_frozen_activations(trainer)
    return time.process_time() - began


def loss_of(row: Row, model: Any) -> float:
    """The mean loss over the supervised items of the test rows."""
    import torch

    from tunekit.objectives.supervised import num_supervised

    made = row.plain
    model.eval()
    total = items = 0.0
    for at in range(0, len(made.eval_dataset), BATCH):
        batch = made.data_collator([made.eval_dataset[i] for i in range(at, min(at + BATCH, len(made.eval_dataset)))])
        with torch.no_grad():
            count = float(num_supervised(model, batch["labels"]))
            total += float(model(**batch)["loss"]) * count
            items += count
    return total / items


def by_adapters(row: Row, other: str) -> dict[str, float]:
    """A run in the environment that has AdapterHub's adapters."""
    with tempfile.TemporaryDirectory() as out:
        asked = {"train": row.train, "model": str(row.folder), "out": out, "batch": BATCH, "rate": RATES[row.method], "classes": 1 + max(r["label"] for r in row.train)}  # fmt: skip
        (Path(out) / "asked.json").write_text(json.dumps(asked))
        done = subprocess.run(
            [other, "-W", "ignore", str(Path(__file__).with_name("throughput_adapters.py")), f"{out}/asked.json"],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"adapters in {other} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- all of them
def show(found: dict[str, Any]) -> None:
    print(found["machine"])
    print(
        f"{'':42}{'CPU s':>8}{'x over':>8}{'padding':>9}{'rest':>7}{'ceiling':>9}{'of ceiling':>12}{'steps':>7}{'runs':>6}{'loss':>9}"
    )
    for key, by in found["runs"].items():
        if "plan" not in by or len(by) < 2:
            continue
        ours = {s: _middle(r) for s, r in by.items() if "refused" not in r[0]}
        plain = ours.get("defaults")
        for system, m in ours.items():
            less = m["tokens"] / ours["plan"]["tokens"]
            over = _over(by[system], by["plan"])
            ceiling = plain["tokens"] / plain["real_tokens"] if plain else 0.0
            of = f"{_over(by['defaults'], by[system]) / ceiling:.2f}" if plain else ""
            line = f"{key + ': ' + system:42}{m['cpu_seconds']:>8.2f}{over:>8.2f}{less:>9.2f}{over / less:>7.2f}{ceiling or 1.0:>9.2f}{of:>12}{m['steps']:>7.0f}{len(by[system]):>6}"  # fmt: skip
            print(line + (f"{m['loss']:>9.4f}" if "loss" in m else ""))


def _over(runs: list[dict[str, float]], base: list[dict[str, float]]) -> float:
    """The middle ratio of runs of the same turn."""
    return shared.median([a["cpu_seconds"] / b["cpu_seconds"] for a, b in zip(runs, base, strict=False)])


def _middle(runs: list[dict[str, float]]) -> dict[str, float]:
    return {k: shared.median([r[k] for r in runs]) for k in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--other", help="the Python of an environment with AdapterHub's adapters 1.3")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", help="part of the names of the rows to run, such as `sst2, lora`")
    parser.add_argument(
        "--trl-defaults", action="store_true", help="with TRL in 16 bits and checkpointing: ten times as slow"
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found = shared.load(asked.out, {"machine": "", "runs": {}})
    if not asked.table:
        found["machine"] = shared.machine()
        all_runs(found, asked)
    show(found)


def all_runs(found: dict[str, Any], asked: argparse.Namespace) -> None:
    """What is missing, until the time is up; the order within a row turns round with each repeat."""
    from tunekit.errors import TunekitError

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as models:
        for turn in range(asked.repeats):
            for name, method in rows(asked.only or [""]):
                key, row = f"{name}, {method}", None
                by = found["runs"].setdefault(key, {})
                for system in systems(name, method, asked.other, asked.trl_defaults)[:: -1 if turn % 2 else 1]:
                    done = by.setdefault(system, [])
                    if len(done) > turn or (done and "refused" in done[0]):
                        continue
                    if time.monotonic() - began > 60 * asked.minutes:
                        print("time is up: start it again for the rest")
                        return
                    if row is None:
                        row = Row(name, method, asked.data, Path(models))
                        warm_up(row)
                    try:
                        done.append(by_adapters(row, asked.other) if system == "adapters" else run(row, system))
                    except TunekitError as e:
                        done.append({"refused": str(e)[:200]})
                    print(f"{key}: {system} {done[-1]}", flush=True)
                    shared.save(asked.out, found)


def rows(only: list[str]) -> list[tuple[str, str]]:
    """Datasets and methods whose names hold one of the texts."""
    methods = {n: ["full", "lora", "partial", *(["bottleneck-adapter"] if shared.TASKS[n] == "sequence-classification" else [])] for n in DATASETS}  # fmt: skip
    return [(n, m) for n in DATASETS for m in methods[n] if any(text in f"{n}, {m}" for text in only)]


if __name__ == "__main__":
    main()
