"""Memory that an evaluation takes: of 2,000 rows over a vocabulary of 50,000 words, beside that of its largest batch alone.

    python benchmarks/evaluation_memory.py [--rows 2000] [--runs 3]

A small Llama with that vocabulary; a plan's Trainer with the metrics of causal-lm (loss, perplexity, accuracy of tokens). Each
evaluation runs in a process of its own; compared is the peak of what it adds to the resident memory. A plain Trainer with
`compute_metrics` holds every logit until the end; what that would take is worked out, and measured on the first rows.
Results: benchmarks/results/evaluation_memory.json.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import throughput_rows as shared

RESULTS = Path(__file__).parent / "results" / "evaluation_memory.json"
WORDS, BATCH, LONGEST, PLAIN_ROWS = 50_000, 16, 40, 96


def rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    made = [[draw.randrange(5, WORDS) for _ in range(draw.randrange(5, LONGEST + 1))] for _ in range(2 * count)]
    made = sorted(made, key=len)[count:]
    return [{"input_ids": ids, "labels": ids} for ids in random.Random(1).sample(made, count)]


def trainer_of(what: str, made: list[dict[str, Any]], folder: str) -> Any:
    import numpy as np
    import torch
    import transformers as t

    import tunekit

    torch.manual_seed(0)
    config = t.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=WORDS, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = t.LlamaForCausalLM(config)
    if what == "plain":
        args = t.TrainingArguments(folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none")
        collate = t.DataCollatorForTokenClassification(t.AutoTokenizer.from_pretrained(shared.minilm()))

        def accuracy(found: Any) -> dict[str, float]:
            return {"token_accuracy": float(np.mean(found.predictions[:, :-1].argmax(-1) == found.label_ids[:, 1:]))}

        return t.Trainer(model, args, eval_dataset=made, data_collator=collate, compute_metrics=accuracy)
    plan = tunekit.Plan(
        model=str(shared.minilm()), task="causal-lm", method=tunekit.methods.Full(), output_dir=folder, per_device_eval_batch_size=BATCH,
        max_length=LONGEST,
    )  # fmt: skip
    return tunekit.trainer(plan, train_dataset=made[:BATCH], eval_dataset=made, model=model, disable_tqdm=True)


def alone(what: str, count: int) -> dict[str, float]:
    from transformers import PrinterCallback

    from tunekit.callbacks._peak import PeakMemory

    made = rows(max(count, 2000))
    made = sorted(made, key=lambda r: -len(r["input_ids"]))[:BATCH] if what == "batch" else made[:count]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(what, made, f"{folder}/run")
        trainer.remove_callback(PrinterCallback)
        peak = PeakMemory("cpu")
        peak.start()
        trainer.evaluate()
        peak.stop()
    return peak.bytes()["device_bytes"]


def measured(what: str, count: int) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--alone", what, "--rows", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", choices=("batch", "all", "plain"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.alone:
        print(alone(asked.alone, asked.rows))
        return
    found: dict[str, Any] = {"machine": shared.machine(), "rows": asked.rows, "batch": [], "all": []}
    for _ in range(asked.runs):
        for what in ("batch", "all"):
            found[what].append(measured(what, asked.rows))
    found["plain"] = measured("plain", PLAIN_ROWS)
    shared.save(asked.out, found)
    one, every = shared.median(found["batch"]), shared.median(found["all"])
    print(found["machine"])
    print(
        f"largest batch alone {one / 2**20:.0f} MiB, {asked.rows:,} rows {every / 2**20:.0f} MiB: {every / one:.3f} of it"
    )
    logits = asked.rows * LONGEST * WORDS * 4
    print(f"plain Trainer: {PLAIN_ROWS} rows {found['plain'] / 2**20:.0f} MiB; the logits of {asked.rows:,} alone are up to {logits / 2**30:.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
