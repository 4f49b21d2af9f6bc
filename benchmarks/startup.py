"""From the start of the process to the first step: `tunekit train` beside a hand-written script of the same run.

    python benchmarks/startup.py [--data ../shared/data] [--pairs 7]

LoRA on MiniLM with the training rows of sst2: reading, tokenising, loading, building the Trainer. Both processes end at their
first step, in turn, and neither finds rows that were tokenised before. Wall and processor seconds; the first pair reads the disk and does not count. The script is the string SCRIPT
below. Results: benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import throughput_rows as shared

RESULTS = Path(__file__).parent / "results" / "startup.json"
SCRIPT = """
import sys
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

model, train, test, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset("json", data_files={"train": train, "validation": test}, cache_dir=out)
rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
net = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
net = get_peft_model(net, LoraConfig(task_type=TaskType.SEQ_CLS, r=16, target_modules=["query", "value"]))
args = TrainingArguments(out, num_train_epochs=1, report_to="none", use_cpu=True, eval_strategy="epoch")
Trainer(net, args, train_dataset=rows["train"], eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer)).train()
"""
STOP = """
import os, sys, threading
def watch():
    import time
    while "transformers.trainer_callback" not in sys.modules or not hasattr(sys.modules["transformers.trainer_callback"], "CallbackHandler"):
        time.sleep(0.05)
    sys.modules["transformers.trainer_callback"].CallbackHandler.on_step_begin = lambda *a, **k: os._exit(0)
if os.environ.get("STOP_AT_FIRST_STEP"):
    threading.Thread(target=watch, daemon=True).start()
"""
"""`sitecustomize`, which Python runs first: the process ends where the first step begins."""


def timed(command: list[str], site: Path) -> dict[str, float]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "STOP_AT_FIRST_STEP": "1", "OMP_NUM_THREADS": "1", "TUNEKIT_CACHE": "off"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "saved" not in done.stdout, "it ran to its end"
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    import tunekit

    train, test = (str((asked.data / "sst2" / f"{s}.jsonl").resolve()) for s in ("train", "validation"))
    pairs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(STOP)
        (folder / "script.py").write_text(SCRIPT)
        plan = tunekit.Plan(
            model=str(shared.minilm()), task="sequence-classification", num_train_epochs=1.0,
            method=tunekit.methods.Lora(r=16, target_modules=("query", "value")),
            data=tunekit.DataSpec(path=train, eval_path=test), output_dir=str(folder / "run"),
        ).save(folder / "plan.yaml")  # fmt: skip
        for number in range(asked.pairs + 1):
            script = [sys.executable, str(folder / "script.py"), str(shared.minilm()), train, test]
            commands = {
                "script": [*script, str(folder / f"out{number}")],
                "tunekit": [sys.executable, "-m", "tunekit", "train", str(plan), "--overwrite"],
            }
            order = sorted(commands, reverse=bool(number % 2))
            pair = {n: timed(commands[n], folder / "site") for n in order}
            pairs += [pair] if number else []
    found = {"machine": shared.machine(), "pairs": pairs}
    shared.save(asked.out, found)
    print(found["machine"])
    for what in ("wall", "cpu"):
        ratio = [p["tunekit"][what] / p["script"][what] for p in pairs]
        both = {n: shared.median([p[n][what] for p in pairs]) for n in ("script", "tunekit")}
        print(f"{what}: script {both['script']:.2f} s, tunekit train {both['tunekit']:.2f} s; median ratio {shared.median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
