"""The advised plan on this GPU against a sweep of its neighbours: tokens a second, MFU, peak memory.

    python benchmarks/gpu_throughput.py [--device cpu --tiny] [--minutes 8] [--only TEXT] [--out FILE]

For each of a few questions (model, task, method, row length) `tunekit.advise` is asked for this machine, and the plan it puts
first is run, then the same plan with one setting changed: half, twice, four times the rows of a step, checkpointing, precision, the
attention kernel, the form of the optimizer, the loss kernel. Rows are of the full length, weights random. What a user would want to know stands
in the last line of each question: how much faster the best neighbour that fits is than what was advised. MFU is the floating-point
operations of forward and backward, counted by torch, over the time of a step and the card's peak in that precision. Each row is added to the CSV as
it comes. On the CPU (`--device cpu --tiny`) tiny models run every code path; the figures mean nothing.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gpu_memory
import gpu_runs
import torch
from gpu_runs import CLS, LM, S2S, Run

from tunekit import methods
from tunekit.workload import Hardware

QUESTIONS = {
    "llama full": ("llama", LM, methods.Full(), 512),
    "llama lora": ("llama", LM, methods.Lora(r=16), 1024),
    "llama-wide-vocabulary lora": ("llama-wide-vocabulary", LM, methods.Lora(r=16), 512),
    "bert full": ("bert", CLS, methods.Full(), 128),
    "bert partial": ("bert", CLS, methods.Partial(), 128),
    "t5 lora": ("t5", S2S, methods.Lora(r=16), 256),
}
FIELDS = ("question", "device", "torch", "change", "status", "rows", "step_seconds", "tokens_per_second", "mfu", "reserved_bytes")  # fmt: skip
SETTINGS = ("dtype", "mixed_precision", "quantization", "activation_checkpointing", "attn_implementation", "optim", "loss_kernel", "gradient_accumulation_steps")  # fmt: skip


def advised(name: str, machine: Hardware, tiny: bool) -> Run:
    """The plan that is put first for the question, as a run."""
    import tunekit
    from tunekit.advisor.weightless import read_config

    model, task, method, length = QUESTIONS[name]
    length = 24 if tiny else length
    plain = Run(model=model, task=task, method=method, length=length)
    config = read_config(gpu_runs.config_of(plain, tiny))
    labels = {"num_labels": 3} if task == CLS else {}
    advice = tunekit.advise(
        config, task=task, num_examples=10_000, mean_tokens=length, max_length=length, hardware=machine, methods=[method.slug], **labels
    )  # fmt: skip
    entry = next(e for e in advice.ranked if e.plan.objective is None)
    settings = {k: getattr(entry.plan, k) for k in SETTINGS}
    rows = min(entry.plan.per_device_train_batch_size, 2) if tiny else entry.plan.per_device_train_batch_size
    return Run(model=model, task=task, method=entry.plan.method, rows=rows, length=length, plan=settings)


def neighbours(run: Run, device: str) -> Iterator[tuple[str, Run]]:
    """(what is changed, the run); first the advised one itself."""
    yield "advised", run
    rows, plan = run.rows, dict(run.plan)
    for factor in (0.5, 2, 4):
        if rows * factor >= 1:
            yield f"rows x {factor:g}", _with(run, {}, rows=int(rows * factor))
    changes: list[Mapping[str, Any]] = [
        {"activation_checkpointing": not plan["activation_checkpointing"]},
        {"optim": "adamw_torch" if plan["optim"] != "adamw_torch" else "adamw_torch_fused"},
        {"attn_implementation": "eager"},
        {"gradient_accumulation_steps": 1 if plan["gradient_accumulation_steps"] > 1 else 2},
    ]
    if device == "cuda":
        changes.append({"dtype": "float32", "mixed_precision": "bf16"} if plan["mixed_precision"] is None else {"dtype": "bfloat16", "mixed_precision": None})  # fmt: skip
    if run.task == LM:
        changes.append({"loss_kernel": "plain" if plan["loss_kernel"] != "plain" else "chunked"})
    for change in changes:
        if plan["quantization"] is None or "dtype" not in change:
            yield ", ".join(f"{k}: {v}" for k, v in change.items()), _with(run, change)


def _with(run: Run, change: Mapping[str, Any], **own: Any) -> Run:
    return Run(**{**vars(run), "plan": {**run.plan, **change}, **own})


def measured(run: Run, device: str, tiny: bool, peak_flops: float | None) -> dict[str, Any]:
    """Seconds of a step, tokens a second, MFU and memory."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gpu_runs._wait(device)
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            gpu_runs._wait(device)
            seconds.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        peak = gpu_runs._Peak(device)
        trainer = gpu_runs._trainer(run, device, tiny, 3 if tiny else 8, Path(folder))
        trainer.add_callback(Clock())
        trainer.train()
        _, reserved = peak.bytes()
        batch = trainer._prepare_inputs(gpu_runs._collate([trainer.train_dataset[i] for i in range(run.rows)]))
        with FlopCounterMode(display=False) as counted, trainer.compute_loss_context_manager():
            trainer.model(**batch)["loss"].backward()
        del trainer
    gc.collect()
    step = statistics.median(seconds[1:])
    batches = run.plan["gradient_accumulation_steps"]
    tokens = run.rows * run.length * batches
    rate = batches * counted.get_total_flops() / step
    return {
        "step_seconds": step, "tokens_per_second": tokens / step, "mfu": rate / peak_flops if peak_flops else "",
        "reserved_bytes": reserved,
    }  # fmt: skip


def peak_flops(machine: Hardware, run: Run) -> float | None:
    """What the card's maker says of it in the run's precision; None where that is not known."""
    from tunekit.advisor.simulate.speed import card

    facts = card(machine.name) if machine.device == "cuda" else None
    kind = {"bf16": "bfloat16", "fp16": "float16"}.get(run.plan["mixed_precision"] or "", run.plan["dtype"])
    return facts["peak_tflops"][kind] * 1e12 if facts else None


def all_rows(asked: Any) -> list[dict[str, str]]:
    """Every run that the file does not have yet, until the time is up."""
    machine, began = gpu_runs.here(asked.device), time.perf_counter()
    mine = {"device": machine.name, "torch": torch.__version__}
    for name in (n for n in QUESTIONS if asked.only in n):
        run = advised(name, machine, asked.tiny)
        for change, one in neighbours(run, asked.device):
            done = {(r["question"], r["change"], r["device"], r["torch"]) for r in gpu_runs.read_rows(asked.out)}
            if (name, change, *mine.values()) in done:
                continue
            if time.perf_counter() - began > 60 * asked.minutes:
                print("time is up: start it again for the rest")
                return [r for r in gpu_runs.read_rows(asked.out) if mine.items() <= r.items()]
            row = {"question": name, **mine, "change": change, "rows": one.rows, "status": "ok"}
            try:
                row |= measured(one, asked.device, asked.tiny, peak_flops(machine, one))
            except torch.OutOfMemoryError:
                row["status"] = "out of memory"
            except Exception as e:  # what this machine or the plan cannot do must not end the sweep
                row["status"] = " ".join(f"{type(e).__name__}: {e}".split())[:120].replace(",", ";")
            if asked.device == "cuda":
                torch.cuda.empty_cache()
            print(f"{row['status']:<14.40}{name}: {change}", flush=True)
            gpu_runs.append_row(asked.out, row, FIELDS)
    return [r for r in gpu_runs.read_rows(asked.out) if mine.items() <= r.items()]


def show(rows: list[dict[str, str]]) -> None:
    """The table, and how far from the best of its neighbours each advised plan is."""
    for name in dict.fromkeys(r["question"] for r in rows):
        mine = [r for r in rows if r["question"] == name]
        print(f"\n{name:<60}{'rows':>6}{'tokens/s':>12}{'MFU':>7}{'GiB':>8}")
        for r in mine:
            if r["status"] != "ok":
                print(f"  {r['change']:<58}{r['rows']:>6}  {r['status']}")
                continue
            mfu = f"{float(r['mfu']):.2f}" if r["mfu"] else ""
            print(f"  {r['change']:<58}{r['rows']:>6}{float(r['tokens_per_second']):>12,.0f}{mfu:>7}{float(r['reserved_bytes']) / 2**30:>8.2f}")  # fmt: skip
        fine = {r["change"]: float(r["tokens_per_second"]) for r in mine if r["status"] == "ok"}
        if "advised" in fine:
            best = max(fine, key=lambda c: fine[c])
            print(f"  the best ({best}) is {fine[best] / fine['advised']:.2f} x as fast as what was advised")


if __name__ == "__main__":
    show(all_rows(gpu_memory.arguments(__doc__ or "", "gpu_throughput.csv")))
