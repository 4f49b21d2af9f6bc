"""What all callbacks together cost: pairs of runs, with and without, whose steps alternate.

python benchmarks/callback_cost.py --pairs 20       adds twenty pairs to the results and prints what there is
python benchmarks/callback_cost.py --table          only prints

A pair is two runs of the same steps of a BERT of MiniLM's shape (6 layers, 384 wide) on four rows of 32 tokens, in two
threads of which one works at a time: a step of one, a step of the other, so that a machine whose speed wanders slows both
alike. The main thread, which is some 1 % quicker, belongs to the run with callbacks in half of the pairs. `steps` is the time of all steps but the first, from the beginning of one to the beginning of the next; `fit` the
whole of `train()`, in which what is checked before the first step counts; `_cpu` is the process's own time. Beside it the
time inside each callback's events, by a run that measures it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "callback_cost.json"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
STEPS, BATCH, LENGTH, LAYERS = 80, 4, 32, 6
OTHER = {"with": "without", "without": "with"}


def model() -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=384, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=1536, vocab_size=2000
        )
    )


def rows() -> list[dict[str, Any]]:
    import random

    draw = random.Random(0)
    return [
        {"input_ids": [draw.randrange(5, 2000) for _ in range(LENGTH)], "labels": i % 2} for i in range(STEPS * BATCH)
    ]


class Turns:
    """Two threads, one of which works at a time; what each takes while it does, stretch by stretch."""

    def __init__(self, first: str, second: str) -> None:
        self.turn, self.others = first, {first: second, second: first}
        self.changed = threading.Condition()
        self.stretches: dict[str, list[tuple[float, float]]] = {first: [], second: []}
        self.began: tuple[float, float] = (0.0, 0.0)

    def take(self, who: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == who)
        self.began = now()

    def give(self, who: str, *, ended: bool = False) -> None:
        at = now()
        self.stretches[who].append((at[0] - self.began[0], at[1] - self.began[1]))
        with self.changed:
            other = self.others[who]
            if ended:
                self.others[other] = other
            self.turn = other
            self.changed.notify_all()


def train(callbacks: list[Any], who: str, turns: Turns | None = None, timed: Counter[str] | None = None) -> None:
    """One run; it hands over to the other at the beginning of every step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class HandOver(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if turns is not None:
                turns.give(who)
                turns.take(who)

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=10, save_strategy="no", report_to="none",
            use_cpu=True, disable_tqdm=True, learning_rate=1e-4,
        )  # fmt: skip
        for callback in callbacks if timed is not None else ():
            measure(callback, timed)
        # First in the list, so that a stretch holds all events of its own step.
        trainer = Trainer(model(), args, train_dataset=rows(), callbacks=[HandOver(), *callbacks])
        if turns is not None:
            turns.take(who)
        trainer.train()
        if turns is not None:
            turns.give(who, ended=True)


def pair(first: str, main: str) -> dict[str, Any]:
    """Both runs, steps in turns, one of them in the main thread: memory is quicker there, whoever it is."""
    turns = Turns(first, OTHER[first])
    callbacks = {"with": everything(), "without": []}
    beside = threading.Thread(target=train, args=(callbacks[OTHER[main]], OTHER[main], turns), daemon=True)
    beside.start()
    train(callbacks[main], main, turns)
    beside.join()
    return {"main": main, **{who: spans(stretches) for who, stretches in turns.stretches.items()}}


def spans(stretches: list[tuple[float, float]]) -> dict[str, float]:
    assert len(stretches) == STEPS + 1, len(stretches)
    names = (("steps", stretches[2:]), ("fit", stretches))
    return {f"{name}{unit}": sum(s[i] for s in of) for name, of in names for i, unit in enumerate(("", "_cpu"))}


def now() -> tuple[float, float]:
    """The clock, and this process's own time, which others on the machine do not lengthen."""
    return time.perf_counter(), time.process_time()


def measure(callback: Any, timed: Counter[str] | None) -> None:
    """Adds up the time inside a callback's events, by callback and event."""
    assert timed is not None
    for name in [n for n in dir(type(callback)) if n.startswith("on_") and n in _defined(type(callback))]:
        real = getattr(callback, name)

        def event(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return _real(*args, **kwargs)
            finally:
                timed[f"{callback.slug} {_name}"] += time.perf_counter() - began

        vars(callback)[name] = event


def _defined(cls: type) -> set[str]:
    from transformers import TrainerCallback

    return {n for c in cls.__mro__ if c is not TrainerCallback for n in vars(c)} - {"on_init_end"}


def everything() -> list[Any]:
    from tunekit.discovery import everything as found

    return [cls() for cls in found("callback").values()]


def report(results: dict[str, Any]) -> str:
    pairs = results["pairs"]
    lines = [f"{len(pairs)} pairs of {STEPS} steps; without: median {statistics.median(p['without']['steps'] for p in pairs) / (STEPS - 1) * 1e3:.1f} ms a step"]  # fmt: skip
    for what in ("steps", "steps_cpu", "fit", "fit_cpu"):
        groups = [
            sorted(p["with"][what] / p["without"][what] - 1 for p in pairs if p["main"] == main)
            for main in OTHER if any(p["main"] == main for p in pairs)
        ]  # fmt: skip
        middle = statistics.mean(statistics.median(g) for g in groups)
        each = ", ".join(f"{len(g)} pairs {statistics.median(g):+.2%} ({g[len(g) // 4]:+.2%} to {g[3 * len(g) // 4]:+.2%})" for g in groups)  # fmt: skip
        lines.append(
            f"{what:9}  {middle:+.2%}: medians (quartiles) with the callbacks in the main thread, beside it: {each}"
        )
    each = {
        k: v for k, v in results["events"].items() if "on_step" in k or "on_pre" in k or "on_opt" in k or "substep" in k
    }
    once = {k: v for k, v in results["events"].items() if k not in each}
    lines.append(f"inside events of a step: {sum(each.values()) / STEPS * 1e6:.0f} microseconds a step")
    lines += [
        f"  {k:34} {v / STEPS * 1e6:8.1f} microseconds a step" for k, v in sorted(each.items(), key=lambda x: -x[1])[:5]
    ]
    lines.append(f"once a run, or at a log: {sum(once.values()) * 1e3:.0f} ms")
    lines += [f"  {k:34} {v * 1e3:8.1f} ms" for k, v in sorted(once.items(), key=lambda x: -x[1])[:6]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"pairs": [], "events": {}}
    if not asked.table:
        train(everything(), "with")  # warms up both
        timed: Counter[str] = Counter()
        train(everything(), "with", timed=timed)
        results["events"] = dict(timed)
        for _ in range(asked.pairs):
            mains = [p["main"] for p in results["pairs"]]
            main = "with" if mains.count("with") <= mains.count("without") else "without"
            results["pairs"].append(pair("with" if len(mains) % 2 else "without", main))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results), file=sys.stdout)


if __name__ == "__main__":
    main()
