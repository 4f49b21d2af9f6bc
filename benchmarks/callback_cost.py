"""What all callbacks together cost: pairs of runs, with and without, one after the other in one process.

python benchmarks/callback_cost.py --pairs 5        adds five pairs to the results and prints what there is
python benchmarks/callback_cost.py --table          only prints

A pair is two runs of the same steps of a BERT of MiniLM's shape (6 layers, 384 wide) on four rows of 32 tokens; which comes first
alternates. `steps` is the time from the first to the last step, as a callback of neither sees it; `fit` the whole of
`train()`, in which what is checked before the first step counts; `_cpu` is the process's own time. Beside it the time inside each callback's
events, by a run that measures it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "callback_cost.json"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
STEPS, BATCH, LENGTH, LAYERS = 30, 4, 32, 6


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


def train(callbacks: list[Any], timed: Counter[str] | None = None) -> dict[str, float]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[tuple[float, float]] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                self.marks = [now()]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS:
                self.marks.append(now())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=10, save_strategy="no", report_to="none",
            use_cpu=True, disable_tqdm=True, learning_rate=1e-4,
        )  # fmt: skip
        for callback in callbacks if timed is not None else ():
            measure(callback, timed)
        # The clock first in the list, so that a step ends before the callbacks see its end, and the next one includes them.
        trainer = Trainer(model(), args, train_dataset=rows(), callbacks=[clock, *callbacks])
        torch.manual_seed(1)
        began = now()
        trainer.train()
        ended = now()
    spans = {"steps": clock.marks, "fit": [began, ended]}
    return {
        f"{name}{unit}": span[1][i] - span[0][i] for name, span in spans.items() for i, unit in enumerate(("", "_cpu"))
    }


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
        ratios = sorted(p["with"][what] / p["without"][what] - 1 for p in pairs)
        total = sum(p["with"][what] for p in pairs) / sum(p["without"][what] for p in pairs) - 1
        lines.append(f"{what:9}  median {statistics.median(ratios):+.2%}, of all together {total:+.2%}, quartiles {ratios[len(ratios) // 4]:+.2%} to {ratios[3 * len(ratios) // 4]:+.2%}")  # fmt: skip
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
        train(everything())  # warms up both
        timed: Counter[str] = Counter()
        train(everything(), timed)
        results["events"] = dict(timed)
        for _ in range(asked.pairs):
            order = ("with", "without") if len(results["pairs"]) % 2 else ("without", "with")
            results["pairs"].append({name: train(everything() if name == "with" else []) for name in order})
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results), file=sys.stdout)


if __name__ == "__main__":
    main()
