"""The same settings by hand and by a plan, step by step in turn in one process.

    python benchmarks/step_path.py [--pairs 24] [--rounds 6] [--case lora] [--memory]

Both Trainers train the same model on rows of the same length with the same settings, each in a thread of its own; after every
step one hands the baton to the other, so that both see the same moments of the machine. Timed is what lies between taking
the baton and handing it on: fetching the batch, the step, the callbacks, the log. Ten steps of each are a pair, and the first
ten do not count. Which of the two is quicker depends on the thread and on where its memory lies (up to 7 % in one
round, either way), so the pairs are split into rounds with new models, with either in front in turn; the
figure is the mean of the rounds' medians. `--memory` runs each alone in a process of its own and compares the largest resident size that it
has had, libraries included. Results: benchmarks/results/step_path.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import throughput_rows as shared

RESULTS = Path(__file__).parent / "results" / "step_path.json"
BLOCK, BATCH, LENGTH, RATE = 10, 8, 32, 5e-4
CASES = {"lora": "sequence-classification", "full": "sequence-classification", "decoder lora": "causal-lm"}


def rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"input_ids": [draw.randrange(5, 3000) for _ in range(LENGTH)], "labels": i % 2} for i in range(count * BATCH)
    ]


def model_of(case: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    if CASES[case] == "causal-lm":
        return shared._model("causal-lm")
    return AutoModelForSequenceClassification.from_pretrained(shared.minilm(), num_labels=2)


def case_rows(case: str, steps: int) -> list[dict[str, Any]]:
    made = rows(steps)
    return [{**r, "labels": r["input_ids"]} for r in made] if CASES[case] == "causal-lm" else made


def by_hand(case: str, steps: int, folder: str) -> Any:
    import datasets
    from peft import LoraConfig, get_peft_model
    from transformers import (  # fmt: skip
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    lm = CASES[case] == "causal-lm"
    model, tokenizer = model_of(case), AutoTokenizer.from_pretrained(shared.minilm())
    if "lora" in case:
        names = ["q_proj", "k_proj", "v_proj", "o_proj"] if lm else ["query", "key", "value", "attention.output.dense"]
        kind = "CAUSAL_LM" if lm else "SEQ_CLS"
        config = LoraConfig(task_type=kind, r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names, modules_to_save=None if lm else ["classifier", "pooler"])  # fmt: skip
        model = get_peft_model(model, config)
    args = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_steps=10, warmup_steps=0.06, train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
    )  # fmt: skip
    collate = (DataCollatorForTokenClassification if lm else DataCollatorWithPadding)(tokenizer)
    return Trainer(model, args, train_dataset=datasets.Dataset.from_list(case_rows(case, steps)), data_collator=collate)


def by_plan(case: str, steps: int, folder: str) -> Any:
    import tunekit
    from tunekit.methods import Full, Lora

    lora = Lora(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="attention")
    plan = tunekit.Plan(
        model=str(shared.minilm()), task=CASES[case], method=lora if "lora" in case else Full(), max_steps=steps,
        per_device_train_batch_size=BATCH, learning_rate=RATE, output_dir=folder,
    )  # fmt: skip
    # A model that is handed over is kept as it was beside the learning one, for `unload`; one that the plan loads is not.
    model = model_of(case) if CASES[case] == "causal-lm" else None
    rows = case_rows(case, steps)
    return tunekit.trainer(plan, train_dataset=rows, model=model, disable_tqdm=True, save_strategy="no")


SYSTEMS = {"by hand": by_hand, "by plan": by_plan}


class Baton:
    """Lets two threads take turns, and times what each does while it holds the baton."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.turn = names[0]
        self.moved = threading.Condition()
        self.seconds: dict[str, list[float]] = {n: [] for n in names}
        self.began = 0.0

    def take(self, name: str) -> None:
        with self.moved:
            self.moved.wait_for(lambda: self.turn == name)
        self.began = time.perf_counter()

    def give(self, name: str) -> None:
        self.seconds[name].append(time.perf_counter() - self.began)
        with self.moved:
            self.turn = next(n for n in self.names if n != name)
            self.moved.notify_all()


def quieted(trainer: Any) -> Any:
    """Without the line that is printed at each log, which both would write to the same console."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def in_turns(case: str, pairs: int, names: list[str]) -> dict[str, list[float]]:
    """Seconds of each step of both, the first of the names in front."""
    from transformers import TrainerCallback

    steps = BLOCK * (pairs + 1)
    baton = Baton(names)

    class Turns(TrainerCallback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            baton.give(self.name)
            if state.global_step < steps:
                baton.take(self.name)

    with tempfile.TemporaryDirectory() as folder:
        trainers = {n: quieted(SYSTEMS[n](case, steps, f"{folder}/{n}")) for n in names}

        def run(name: str) -> None:
            baton.take(name)
            trainers[name].add_callback(Turns(name))
            trainers[name].train()

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return baton.seconds


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    """Ours over by hand, a pair of ten steps each; the first ten are left out."""
    hand, ours = seconds["by hand"], seconds["by plan"]
    starts = range(BLOCK, len(hand) - BLOCK + 1, BLOCK)
    return [sum(ours[i : i + BLOCK]) / sum(hand[i : i + BLOCK]) for i in starts]


def middle(rounds: list[list[float]]) -> float:
    """The mean of the rounds' medians."""
    return sum(map(shared.median, rounds)) / len(rounds)


def upper_bound(rounds: list[list[float]]) -> float:
    """Upper 95 % bound of that, one-sided, by resampling rounds where there are several, and pairs within each."""
    draw = random.Random(0)
    found = sorted(
        middle([draw.choices(r, k=len(r)) for r in draw.choices(rounds, k=len(rounds))]) for _ in range(4000)
    )
    return found[int(0.95 * len(found))]


def resident(case: str, name: str) -> dict[str, int]:
    """The largest resident size of a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--alone", name, "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(case: str, name: str) -> dict[str, int]:
    import resource

    with tempfile.TemporaryDirectory() as folder:
        quieted(SYSTEMS[name](case, 40, folder)).train()
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def show(found: dict[str, Any]) -> None:
    print(found["machine"])
    for case, one in found["cases"].items():
        if "seconds" in one:
            rounds = [ratios(r) for r in one["seconds"]]
            step = shared.median([t for r in one["seconds"] for t in r["by hand"][BLOCK:]])
            each = " ".join(f"{shared.median(r):.3f}" for r in rounds)
            print(f"{case:14} {sum(map(len, rounds))} pairs of {BLOCK} steps of {1e3 * step:.1f} ms: median {middle(rounds):.4f}, upper 95 % bound {upper_bound(rounds):.4f} (by round {each})")  # fmt: skip
        if "memory" in one:
            hand, ours = ([m[n]["resident"] for m in one["memory"]] for n in SYSTEMS)
            over = shared.median([b / a for a, b in zip(hand, ours, strict=True)])
            print(f"{case:14} memory: {over:.3f} (by hand {shared.median(hand) / 2**20:.0f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--runs", type=int, default=3, help="of each with `--memory`")
    parser.add_argument("--alone", choices=SYSTEMS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    cases = asked.case or list(CASES)
    if asked.alone:
        print(json.dumps(alone(cases[0], asked.alone)))
        return
    found = shared.load(asked.out, {"cases": {}}) | {"machine": shared.machine()}
    for case in cases:
        one = found["cases"].setdefault(case, {})
        if asked.memory:
            one["memory"] = [{n: resident(case, n) for n in SYSTEMS} for _ in range(asked.runs)]
        else:
            names, count = list(SYSTEMS), asked.pairs // asked.rounds
            one["seconds"] = [in_turns(case, count, names[:: -1 if i % 2 else 1]) for i in range(asked.rounds)]
        shared.save(asked.out, found)
    show(found)


if __name__ == "__main__":
    main()
