"""Peak host memory of two ZeRO-3 ranks on the CPU with a model of 1 GiB of weights, beside what the simulator says of a rank.

    python benchmarks/zero3_memory.py [--methods lora full] [--gib 1.0]

Every rank reports the largest resident size of its own, loading included: looked at every 10 ms, without the pages of the weights'
file, which is mapped, shared by the ranks and dropped by the system when it wants; with them (VmHWM) beside it. The model has
random weights and is written to a temporary folder. Full fine-tuning takes some 5 GiB a rank. Results: benchmarks/results/zero3_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "zero3_memory.json"
GIB = 2**30
LENGTH, BATCH = 64, 2


def write_model(folder: Path, gib: float) -> None:
    """A Llama of about so many bytes in 32 bits."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner, vocab = 1024, 4096, 8192
    block = 4 * width * width + 3 * width * inner
    layers = max(1, round((gib * GIB / 4 - 2 * width * vocab) / block))
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=16, vocab_size=vocab,
        max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=5, eos_token_id=5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, chat=True)


def write_plan(folder: Path, model: Path, method: str) -> Any:
    import tunekit

    words = ["good", "bad", "fine", "poor", "great", "awful", "sun", "moon", "red", "blue"]
    rows = [{"text": " ".join(words[(i + j) % 10] for j in range(LENGTH - 1))} for i in range(32)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = {"lora": tunekit.methods.Lora(r=16), "full": tunekit.methods.Full()}[method]
    return tunekit.Plan(
        model=str(model), task="causal-lm", method=made, data=tunekit.DataSpec(path=str(folder / "rows.jsonl")), max_steps=3,
        max_length=LENGTH, per_device_train_batch_size=BATCH, num_processes=2, sharding="zero3", learning_rate=1e-4,
        output_dir=str(folder / "run"),
    )  # fmt: skip


def status(name: str) -> int:
    """A figure of this process in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1]) * 1024


class Watch(threading.Thread):
    """The largest resident size, without what was mapped from files since the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks, self.stage, self.files = {}, "loading", None

    def run(self) -> None:
        while True:
            files = status("RssFile") - (self.files or status("RssFile"))
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), status("VmRSS") - max(0, files))
            time.sleep(0.01)


def rank(plan: str, result: str) -> None:
    """One rank: trains the plan and writes its peaks."""
    import datasets  # noqa: F401  what is mapped of the libraries counts
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers

    import tunekit

    torch.set_num_threads(1)
    watch = Watch()
    watch.files = status("RssFile")
    watch.start()
    quiet = {"save_strategy": "no", "disable_tqdm": True, "log_level": "error", "log_level_replica": "error"}
    trainer = tunekit.trainer(tunekit.Plan.load(plan), **quiet)
    assert trainer.is_deepspeed_enabled, "without its launch files a plan's ranks may be plain copies"
    watch.stage = "dividing"

    class Begins(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.stage = "training"

    trainer.add_callback(Begins())
    trainer.train()
    watch.stage = "after"
    Path(f"{result}-{os.environ['RANK']}.json").write_text(json.dumps({**watch.peaks, "with_file": status("VmHWM")}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure(method: str, gib: float) -> dict[str, Any]:
    import tunekit
    from tunekit.cli.launch import write_files
    from tunekit.sharding import launch_environment

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--write-model", str(folder / "model"), "--gib", str(gib)]
        subprocess.run(command, check=True)
        plan = write_plan(folder, folder / "model", method)
        plan.save(folder / "plan.yaml")
        estimate = tunekit.estimate_memory(plan, "cpu", [LENGTH] * 32)
        write_files(plan, folder / "launch", cpu=True)
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(folder / "launch" / "accelerate.yaml"),
        ]
        launch += ["--main_process_port", "0", __file__]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **launch_environment(plan, cpu=True)}
        done = subprocess.run(
            [*launch, "--rank", str(folder / "plan.yaml"), str(folder / "peak")],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [json.loads((folder / f"peak-{i}.json").read_text()) for i in range(2)]
        return {
            "method": method, "weights_bytes": (folder / "model" / "model.safetensors").stat().st_size,
            "predicted_bytes": estimate.device_bytes, "parts": dict(estimate.parts), "moment": estimate.moment,
            "measured_bytes": [max(r["loading"], r["dividing"], r["training"]) for r in ranks], "ranks": ranks,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rank", nargs=2)
    parser.add_argument("--write-model")
    args = parser.parse_args()
    if args.rank:
        rank(*args.rank)
        return
    if args.write_model:
        write_model(Path(args.write_model), args.gib)
        return
    results = {}
    for method in args.methods:
        found = results[method] = measure(method, args.gib)
        print(
            f"{method}: {found['weights_bytes'] / GIB:.2f} GiB of weights, predicted {found['predicted_bytes'] / GIB:.2f} GiB a rank"
        )
        for i, (peak, r) in enumerate(zip(found["measured_bytes"], found["ranks"], strict=True)):
            off = found["predicted_bytes"] / peak - 1
            print(
                f"  rank {i}: {peak / GIB:.2f} GiB (predicted {off:+.1%});", {k: f"{v / GIB:.2f}" for k, v in r.items()}
            )
        print("  parts:", {k: f"{v / GIB:.2f}" for k, v in found["parts"].items() if v > 0.01 * GIB}, found["moment"])
    if args.gib == 1.0:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
