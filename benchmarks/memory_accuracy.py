"""Predicted memory against measured runs of others, beside what accelerate and DeepSpeed say of the same models.

    python benchmarks/memory_accuracy.py [folder] [--rivals [FOLDER]] [--out FILE]

The folder holds `peft_llama-3.2-3B.csv` (PEFT's method comparison) and `published.csv` (tables of documentation); without one
the copy of the former in `tests/reference` is read. Every row is predicted from its settings alone; the one length that
PEFT does not publish is fitted on LoRA r=32. accelerate's figure is that of `accelerate estimate-memory`, DeepSpeed's that
of `estimate_zero2_model_states_mem_needs` on one GPU; neither asks for method, batch or length. PyTorch's MemTracker is run by
`mem_tracker.py`, whose rows are read here.
"""

# ruff: noqa: E402 (the rows are shared with the tests, whose folder has to be found first)
from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

import peft_rows

from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.advisor.weightless import read_config
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.workload import DataFacts, Hardware

GIB, MIB = 2**30, 2**20
LLAMA_405B = {
    "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
"""meta-llama/Llama-3.1-405B's config.json, as far as it decides shapes."""
BERT_LARGE = {
    "model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip
"""bert-large-uncased's config.json, as far as it decides shapes."""
V100 = Hardware(device="cuda", name="V100-16GB", memory_bytes=int(15.7 * GIB))
V100_CONTEXT = 1343 * MIB
"""As the same document measured it before the model was loaded."""
OPTIMIZERS = {"AdamW (adamw_hf)": "adamw_torch_fused", "Adafactor": "adafactor", "bnb Adam8bit": "adamw_bnb_8bit"}
"""transformers' own AdamW of 2022 went parameter by parameter: no list of temporaries, as in the fused form."""


@dataclass(frozen=True)
class Row:
    """One measured run."""

    group: str
    name: str
    measured_bytes: float
    predicted_bytes: float
    others: Mapping[str, float]
    seconds: float

    def error(self, tool: str | None = None) -> float:
        """Of our prediction or another tool's, as a share of the measured figure."""
        return (self.others[tool] if tool else self.predicted_bytes) / self.measured_bytes - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent.parent / "shared" / "measured")
    parser.add_argument("--rivals", nargs="?", type=Path, const=Path(tempfile.gettempdir()) / "tunekit-rivals")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory_accuracy.csv")
    asked = parser.parse_args()
    folder, versions = asked.folder, {}
    if (folder / peft_rows.CSV.name).exists():
        peft_rows.CSV = folder / peft_rows.CSV.name
    rows = list(_peft())
    if asked.rivals:
        rows, versions = _with_rivals(rows, asked.rivals)
    left_out: dict[str, list[str]] = {}
    if (folder / "published.csv").exists():
        with (folder / "published.csv").open(newline="", encoding="utf-8") as file:
            published = list(csv.DictReader(file))
        rows += _published(published)
        for row in published:
            if not _expressible(row):
                left_out.setdefault(_why_not(row), []).append(row["id"])
    _print(rows, left_out)
    _write(asked.out, rows, {**_installed(), **versions})
    _cost()


def _why_not(row: Mapping[str, str]) -> str:
    """Why a published row is left out."""
    if row["model"].startswith("qwen-7b"):
        return (
            "the model is the hub's own code of 2023 (not transformers'), rows are of 91 to 19,548 tokens whose distribution is not "
            "published; traced as a Qwen2 of that size the figures are 8 to 56 % below the reserved memory that was measured"
        )
    if row["model"].startswith("ViT"):
        return "an image model of timm under torch.compile, whose activations are the compiler's"
    return "one loss function by itself, no training step"


def _with_rivals(rows: list[Row], folder: Path) -> tuple[list[Row], dict[str, str]]:
    """The PEFT rows with what the other tools say of them, and the tools' versions."""
    import rivals

    facts, length, requests = peft_rows.llama(), peft_rows.fit_length(peft_rows.llama()), []
    for row in peft_rows.rows():
        found = estimate_memory(peft_rows.plan(row, length), peft_rows.L40S, None, "peft-benchmark", facts)
        config = json.loads(row["peft_config_json"])
        requests.append(
            {
                "config": peft_rows.LLAMA, "method": config["peft_type"].lower(), "rank": config.get("r") or 0,
                "targets": config.get("target_modules"), "rows": int(row["batch_size"]), "length": length, "checkpointing": False,
                "trainable": found.trainable_parameters, "total": found.total_parameters,
            }
        )  # fmt: skip
    said = rivals.answers(requests, folder)
    for package, found in said.items():
        odd = {a for a in found["answers"] if isinstance(a, str)}
        if odd:
            print(f"{package}: {next(iter(odd))}")
    more = [
        {p: a for p, found in said.items() if isinstance(a := found["answers"][i], int | float)}
        for i in range(len(requests))
    ]
    joined = [replace(row, others={**row.others, **extra}) for row, extra in zip(rows, more, strict=True)]
    return joined, {package: found["version"] for package, found in said.items()}


def _installed() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "transformers", "peft", "accelerate", "deepspeed"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _write(path: Path, rows: list[Row], versions: Mapping[str, str]) -> None:
    tools = sorted({tool for row in rows for tool in row.others})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("# " + ", ".join(f"{package} {version}" for package, version in versions.items()) + "\n")
        writer = csv.writer(file)
        writer.writerow(["group", "run", "measured_bytes", "tunekit", *tools])
        for row in rows:
            said = [round(row.others[t]) if t in row.others else "" for t in tools]
            writer.writerow([row.group, row.name, round(row.measured_bytes), round(row.predicted_bytes), *said])


def _cost() -> None:
    """What one estimate takes: processor seconds in a warm process, for a model it has not seen, and the memory of it all."""
    import resource

    lengths = tuple(min(512, round(180 * 2 ** NormalDist().inv_cdf((i + 0.5) / 500))) for i in range(500))
    rows = DataFacts(num_examples=20_000, lengths=lengths)
    for i, (name, config) in enumerate((("3B", peft_rows.LLAMA), ("405B", LLAMA_405B)) * 2):
        facts = model_facts(read_config({**config, "rope_theta": 500_000.0 + i}))
        plan = peft_rows.plan(peft_rows.rows()[2], 512).replace(method=Lora(r=8))
        at = time.process_time()
        estimate_memory(plan, peft_rows.L40S, None if i < 2 else rows, model=facts)
        what = "" if i < 2 else ", its rows' lengths replayed"
        print(f"one estimate of a {name} model{what}: {time.process_time() - at:.2f} s of processor time")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.2f} GiB")


def _peft() -> Iterator[Row]:
    facts = peft_rows.llama()
    length = peft_rows.fit_length(facts)
    others = _others(peft_rows.LLAMA, "bfloat16")
    for row in peft_rows.rows():
        at = time.perf_counter()
        plan = peft_rows.plan(row, length)
        found = estimate_memory(plan, peft_rows.L40S, None, "peft-benchmark", facts)
        seconds = time.perf_counter() - at
        said = {**others, **_mem_tracker(row["experiment"])}
        yield Row("PEFT", row["experiment"], peft_rows.reserved(row), found.reserved_bytes, said, seconds)


def _mem_tracker(experiment: str) -> dict[str, float]:
    """What `mem_tracker.py` wrote of a run; nothing where it was not run, or failed."""
    path = HERE / "results" / "mem_tracker.json"
    said = json.loads(path.read_text()).get(experiment, {}) if path.exists() else {}
    return {"MemTracker": said["bytes"]} if "bytes" in said else {}


def _expressible(row: Mapping[str, str]) -> bool:
    """Whether a published row states everything, and its model is one of transformers' own."""
    return row["model"].startswith("bert-large")


def _published(rows: list[dict[str, str]]) -> Iterator[Row]:
    facts, others = model_facts(read_config(BERT_LARGE)), _others(BERT_LARGE, "float32")
    for row in filter(_expressible, rows):
        at = time.perf_counter()
        found = estimate_memory(_bert_plan(row), V100, None, model=facts)
        seconds = time.perf_counter() - at
        name = f"{row['id']} {row['compute_dtype']} {row['optimizer']}, batch {row['micro_batch_per_gpu']}"
        measured = float(row["peak"]) * MIB - V100_CONTEXT
        yield Row("published", name, measured, found.reserved_bytes + _softmax_inputs(row), others, seconds)


def _softmax_inputs(row: Mapping[str, str]) -> int:
    """What PyTorch before 1.11 kept besides: softmax's fp32 input for the backward pass, of every block that is not recomputed."""
    if row["gradient_checkpointing"] == "yes":
        return 0
    scores = int(row["micro_batch_per_gpu"]) * int(BERT_LARGE["num_attention_heads"]) * int(row["seq_len"]) ** 2
    return 4 * scores * int(BERT_LARGE["num_hidden_layers"])


def _bert_plan(row: Mapping[str, str]) -> Plan:
    """The run as a plan.

    Before PyTorch 2.0 `zero_grad` kept gradients and filled them with zeros: they live through the step as those that are
    summed up do, so that at least two micro-batches are asked for.
    """
    return Plan(
        model="bert-large-uncased", task="sequence-classification", method=Full(), max_length=int(row["seq_len"]),
        per_device_train_batch_size=int(row["micro_batch_per_gpu"]), gradient_accumulation_steps=max(2, int(row["grad_accum"])),
        mixed_precision="fp16" if "fp16" in row["compute_dtype"] else None, attn_implementation="eager",
        optim=OPTIMIZERS[row["optimizer"]], activation_checkpointing=row["gradient_checkpointing"] == "yes", max_steps=100,
    )  # fmt: skip


def _others(config: Mapping[str, Any], dtype: str) -> dict[str, float]:
    """What the other tools say of a model; those that are not installed are left out."""
    from tunekit.advisor.weightless import build, count_parameters

    model = build(config, None)
    said: dict[str, float] = {}
    try:
        from accelerate.commands.estimate import estimate_training_usage
        from accelerate.utils import calculate_maximum_sizes

        said["accelerate"] = max(estimate_training_usage(calculate_maximum_sizes(model)[0], dtype).values())
    except ImportError:
        pass
    try:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        said["DeepSpeed"] = estimate_zero2_model_states_mem_needs(count_parameters(model), 1, 1, cpu_offload=False)[1]
    except ImportError:
        pass
    return said


def _print(rows: list[Row], left_out: Mapping[str, list[str]]) -> None:
    tools = sorted({tool for row in rows for tool in row.others})
    heads = "".join(f"{tool:>17}" for tool in tools)
    print(f"{'row':<46}{'measured':>10}{'tunekit':>10}{'error':>8}{heads}{'seconds':>9}")
    for row in rows:
        others = "".join(f"{row.others[t] / GIB:>13.2f} GiB" if t in row.others else " " * 17 for t in tools)
        print(
            f"{row.name[:45]:<46}{row.measured_bytes / GIB:>10.2f}{row.predicted_bytes / GIB:>10.2f}{row.error():>+8.1%}"
            f"{others}{row.seconds:>9.1f}"
        )
    print()
    for group in sorted({row.group for row in rows}):
        mine = [row for row in rows if row.group == group]
        said = {"tunekit": median(abs(row.error()) for row in mine)}
        for tool in tools:
            errors = [abs(row.error(tool)) for row in mine if tool in row.others]
            said |= {f"{tool} ({len(errors)} rows)": median(errors)} if errors else {}
        worst = max(abs(row.error()) for row in mine)
        print(f"{group}: {len(mine)} rows; median error", ", ".join(f"{t} {e:.1%}" for t, e in said.items()), f"; worst of ours {worst:.1%}")  # fmt: skip
    for why, ids in left_out.items():
        print(f"left out ({len(ids)} rows: {', '.join(ids)}): {why}")


if __name__ == "__main__":
    main()
