"""The runs of `gpu_memory.py` and `gpu_time.py`: seventy short ones over architectures, methods, lengths, checkpointing,
optimizers and quantisation, each with random weights through a plain `transformers.Trainer`."""

# ruff: noqa: E402 (the package lies beside this folder and may not be installed)
from __future__ import annotations

import contextlib
import csv
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch

from tunekit import methods
from tunekit.contracts import Method
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware

_DECODER = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_ENCODER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16, "vocab_size": 30522,
    "max_position_embeddings": 514, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_DECODER},
    "llama-wide-vocabulary": {"model_type": "llama", **_DECODER, "num_hidden_layers": 4, "vocab_size": 128256, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_DECODER},
    "gemma3": {"model_type": "gemma3_text", **_DECODER, "num_hidden_layers": 6, "vocab_size": 65536},
    "mistral": {"model_type": "mistral", **_DECODER, "sliding_window": 1024},
    "phi3": {"model_type": "phi3", **_DECODER},
    "mixtral": {"model_type": "mixtral", **_DECODER, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8,
                "num_key_value_heads": 4, "num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 12, "n_head": 20, "vocab_size": 50257, "n_positions": 1024},
    "bert": {"model_type": "bert", **_ENCODER},
    "roberta": {"model_type": "roberta", **_ENCODER},
    "electra": {"model_type": "electra", **_ENCODER, "embedding_size": 1024},
    "deberta-v2": {"model_type": "deberta-v2", **_ENCODER, "relative_attention": True, "position_buckets": 256,
                   "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 1024},
    "distilbert": {"model_type": "distilbert", "dim": 1024, "hidden_dim": 4096, "n_layers": 8, "n_heads": 16, "vocab_size": 30522},
    "modernbert": {"model_type": "modernbert", **_ENCODER, "intermediate_size": 2624, "max_position_embeddings": 4096,
                   "cls_token_id": 1, "sep_token_id": 2},
    "t5": {"model_type": "t5", "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 8, "num_heads": 16, "vocab_size": 32128,
           "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
    "bart": {"model_type": "bart", "d_model": 1024, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 16,
             "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "vocab_size": 50265,
             "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
             "forced_eos_token_id": None},
}  # fmt: skip
"""Some hundred million parameters each: large enough to be no overhead, small enough for seven seconds a run."""
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 128,
    "n_embd": 64, "n_head": 4, "dim": 64, "hidden_dim": 128, "n_heads": 4, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "embedding_size": 64,
    "pooler_hidden_size": 64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """One configuration."""

    model: str
    task: str
    method: Method
    rows: int = 4
    length: int = 512
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What is different in it, readable and unique."""
        own = {k: v for k, v in self.method.to_dict().items() if k != "kind" and v != _plain(type(self.method)).get(k)}
        parts = [self.model, self.task, self.method.slug, *(f"{k}={v}" for k, v in {**own, **self.plan}.items())]
        return " ".join([*parts, f"{self.rows}x{self.length}"]).replace(",", ";")


def _plain(kind: type[Method]) -> dict[str, Any]:
    try:
        return kind().to_dict()
    except Exception:
        return {}


LM, CLS, TOK, QA, S2S, MC = (
    "causal-lm", "sequence-classification", "token-classification", "question-answering", "seq2seq", "multiple-choice",
)  # fmt: skip
_BF16 = {"dtype": "bfloat16"}
_AMP = {"mixed_precision": "bf16"}
_GC = {"activation_checkpointing": True}


def runs() -> list[Run]:
    """All of them, those that say most first, so that a run that is cut short has seen something of everything."""
    full, lora = methods.Full(), methods.Lora(r=16)
    found = [Run(model=m, task=t, method=method, plan=_AMP) for m, t in (
        ("llama", LM), ("bert", CLS), ("t5", S2S), ("gpt2", LM), ("modernbert", TOK), ("bart", S2S),
    ) for method in (full, lora)]  # fmt: skip
    found += [Run(model=m, task=t, method=lora, plan=_BF16) for m, t in (
        ("qwen3", LM), ("gemma3", LM), ("mistral", LM), ("phi3", LM), ("mixtral", LM), ("llama-wide-vocabulary", LM), ("roberta", QA),
        ("electra", TOK), ("deberta-v2", CLS), ("distilbert", QA),
    )]  # fmt: skip
    found += [Run(model="llama", task=LM, method=method, plan=_BF16) for method in (
        methods.Lora(r=64, target_modules="all-linear"), methods.Lora(r=16, use_dora=True), methods.IA3(), methods.LayerNormTuning(),
        methods.PromptTuning(num_virtual_tokens=50), methods.PTuning(num_virtual_tokens=20),
        methods.PrefixTuning(num_virtual_tokens=30), methods.PTuningV2(num_virtual_tokens=30), methods.BottleneckAdapter(),
        methods.Partial(), methods.Peft(config={"peft_type": "VERA", "r": 64}), methods.Peft(config={"peft_type": "LOHA", "r": 8}),
    )]  # fmt: skip
    found += [Run(model="bert", task=CLS, method=method, rows=16, length=256, plan=_AMP) for method in (
        methods.BitFit(), methods.BottleneckAdapter(variant="houlsby"), methods.PTuningV2(num_virtual_tokens=20), methods.Partial(),
    )]  # fmt: skip
    found += [Run(model="llama", task=LM, method=lora, rows=r, length=n, plan=_BF16)
              for r, n in ((1, 2048), (8, 256), (16, 128), (2, 1024))]  # fmt: skip
    found += [Run(model=m, task=t, method=method, plan={**_AMP, **_GC}) for m, t in (("llama", LM), ("bert", CLS), ("t5", S2S))
              for method in (full, lora)]  # fmt: skip
    found += [Run(model="llama", task=LM, method=full, rows=2, plan={**_BF16, "optim": o}) for o in (
        "adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "rmsprop",
    )]  # fmt: skip
    found += [Run(model="llama", task=LM, method=lora, plan={**_BF16, **extra}) for extra in (
        {"quantization": "nf4"}, {"quantization": "int8"}, {"quantization": "nf4", **_GC}, {"gradient_accumulation_steps": 2},
        {"attn_implementation": "eager"}, {"max_grad_norm": 0.0},
    )]  # fmt: skip
    found += [
        Run(model="bert", task=CLS, method=full, rows=8, length=128),
        Run(model="bert", task=CLS, method=full, rows=8, length=128, plan={"mixed_precision": "fp16"}),
        Run(model="bert", task=MC, method=lora, rows=4, length=128, plan=_AMP),
        Run(model="t5", task=CLS, method=lora, plan=_AMP),
        Run(model="llama", task=CLS, method=lora, plan=_BF16),
        Run(model="llama-wide-vocabulary", task=LM, method=full, rows=2, plan=_BF16),
        Run(model="llama-wide-vocabulary", task=LM, method=lora, rows=2, length=1024, plan=_AMP),
        Run(model="mixtral", task=LM, method=full, rows=2, plan=_BF16),
    ]
    return found


# ---------------------------------------------------------------------- one run
@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run took."""

    allocated_bytes: int
    reserved_bytes: int
    step_seconds: float


def config_of(run: Run, tiny: bool) -> dict[str, Any]:
    """The model's configuration; `tiny` keeps its form alone."""
    made = dict(MODELS[run.model])
    return {**made, **{k: v for k, v in _TINY.items() if k in made}} if tiny else made


def plan_of(run: Run, steps: int) -> Plan:
    """The run as a plan."""
    return Plan(
        model=run.model, task=run.task, method=run.method, max_length=run.length, per_device_train_batch_size=run.rows,
        max_steps=steps, **run.plan,
    )  # fmt: skip


def cut(run: Run, tiny: bool) -> Run:
    """The run with few short rows, for a look at its code path alone."""
    return Run(**{**vars(run), "rows": min(run.rows, 2), "length": 24}) if tiny else run


def predict(run: Run, hardware: Hardware, tiny: bool, steps: int) -> Any:
    """(memory, duration) as `tunekit.estimate_memory` and `estimate_time` say, before any correction by measured runs."""
    from tunekit.advisor.observe.model import model_facts
    from tunekit.advisor.simulate import estimate_memory, estimate_time
    from tunekit.advisor.weightless import read_config

    facts = model_facts(read_config(config_of(run, tiny)))
    data = DataFacts(num_examples=run.rows * steps, lengths=(run.length,), num_labels=3, num_choices=2)
    plan = plan_of(run, steps)
    return estimate_memory(plan, hardware, data, model=facts), estimate_time(plan, hardware, data, model=facts)


def measure(run: Run, device: str, tiny: bool, steps: int) -> Measured:
    """Takes the run's steps on the device."""
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            _wait(device)
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            _wait(device)
            seconds.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory(prefix="tunekit-gpu-") as folder:
        gc.collect()
        peak = _Peak(device)
        trainer = _trainer(run, device, tiny, steps, Path(folder))
        trainer.add_callback(Clock())
        trainer.train()
        allocated, reserved = peak.bytes()
        del trainer
    gc.collect()
    return Measured(
        allocated_bytes=allocated, reserved_bytes=reserved, step_seconds=statistics.median(seconds[1:] or seconds)
    )


class _Peak:
    """CUDA's own counters; elsewhere the growth of the process."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            from tunekit.callbacks._peak import PeakMemory

            self._host = PeakMemory("cpu")
            self._host.start()

    def bytes(self) -> tuple[int, int]:
        if self._cuda:
            return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        self._host.stop()
        found = self._host.bytes()["device_bytes"]
        return found, found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _trainer(run: Run, device: str, tiny: bool, steps: int, folder: Path) -> Any:
    import transformers

    from tunekit import prepare
    from tunekit.host import training_arguments

    plan, task = plan_of(run, steps).replace(output_dir=str(folder / "out")), Task.named(run.task)
    torch.manual_seed(0)
    model = prepare(_model(run, plan, device, tiny, folder), run.method, task)
    args = training_arguments(
        plan,
        evaluates=False,
        cpu=device == "cpu",
        overrides={"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"},
    )

    rows = _rows(run, model, steps * plan.gradient_accumulation_steps)
    return transformers.Trainer(model=model, args=args, train_dataset=rows, data_collator=_collate)


def _model(run: Run, plan: Plan, device: str, tiny: bool, folder: Path) -> Any:
    """Random weights on the device; a quantised base goes through a folder, as bitsandbytes packs what is loaded."""
    import transformers

    from tunekit.advisor.weightless import prepare_config
    from tunekit.quantization import quantization_config

    task = Task.named(run.task)
    config, auto = prepare_config(config_of(run, tiny), task, 3), getattr(transformers, task.auto_class)
    extra = {"attn_implementation": plan.attn_implementation} if plan.attn_implementation else {}
    dtype = getattr(torch, plan.dtype)
    if plan.quantization is None:
        with torch.device(device):
            return auto.from_config(config, dtype=dtype, **extra)
    auto.from_config(config, dtype=dtype).save_pretrained(folder / "base")
    where = {"device_map": {"": 0}} if device == "cuda" else {"device_map": "cpu"}
    return auto.from_pretrained(
        folder / "base", dtype=dtype, quantization_config=quantization_config(plan), **where, **extra
    )


def _rows(run: Run, model: Any, batches: int) -> list[dict[str, Any]]:
    """Random tokens, every row of the full length, with the labels of the task."""
    draw = torch.Generator().manual_seed(0)
    words = min(100, model.config.vocab_size) - 4
    rows = []
    for k in range(run.rows * batches):
        ids = (torch.randint(words, (run.length,), generator=draw) + 4).tolist()
        ids[-1] = 2
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * run.length}
        if run.task == MC:
            row = {name: [value, value] for name, value in row.items()}
        if run.task == QA:
            row |= {"start_positions": 1, "end_positions": 2}
        elif run.task in (LM, S2S):
            row["labels"] = ids
        else:
            row["labels"] = [k % 3] * run.length if run.task == TOK else k % (2 if run.task == MC else 3)
        rows.append(row)
    return rows


def _collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


# ---------------------------------------------------------------------- many runs
def here(device: str) -> Hardware:
    """This machine's device."""
    from tunekit.advisor.observe.hardware import hardware

    return hardware("cpu" if device == "cpu" else "auto")


def all_rows(
    path: Path, device: str, tiny: bool, steps: int, budget_seconds: float, only: str = ""
) -> list[dict[str, str]]:
    """Takes every run that the file does not have yet, until the time is up; returns the rows of this device and torch.

    Args:
        path: CSV that is added to after each run.
        device: `cuda` or `cpu`.
        tiny: Tiny models: the code paths alone.
        steps: Steps of a run.
        budget_seconds: None is begun after this time.
        only: Part of the names of those that are taken.
    """
    machine, began = here(device), time.perf_counter()
    done = {(r["run"], r["device"], r["torch"]) for r in read_rows(path)}
    for asked in runs():
        run, key = cut(asked, tiny), (asked.name, machine.name, torch.__version__)
        if key in done or only not in asked.name:
            continue
        if time.perf_counter() - began > budget_seconds:
            print("time is up: start it again for the rest")
            break
        kept = {"run": asked.name, "device": machine.name, "torch": torch.__version__}
        append_row(path, {**kept, **_row(run, machine, device, tiny, steps)}, FIELDS)
    return [r for r in read_rows(path) if (r["device"], r["torch"]) == (machine.name, torch.__version__)]


FIELDS = (
    "run", "device", "torch", "status", "allocated_bytes", "reserved_bytes", "step_seconds", "predicted_allocated_bytes",
    "predicted_reserved_bytes", "predicted_step_seconds", "fidelity", "estimate_seconds",
)  # fmt: skip


def _row(run: Run, machine: Hardware, device: str, tiny: bool, steps: int) -> dict[str, Any]:
    at = time.perf_counter()
    memory, duration = predict(run, machine, tiny, steps)
    row: dict[str, Any] = {
        "predicted_allocated_bytes": memory.allocated_bytes, "predicted_reserved_bytes": memory.reserved_bytes,
        "predicted_step_seconds": duration.step_seconds, "fidelity": memory.fidelity,
        "estimate_seconds": round(time.perf_counter() - at, 2),
    }  # fmt: skip
    try:
        found = measure(run, device, tiny, steps)
    except torch.OutOfMemoryError:
        row["status"] = "out of memory"
    except Exception as e:  # a kernel or package that this machine lacks must not end the other runs
        row["status"] = " ".join(f"{type(e).__name__}: {e}".split())[:160].replace(",", ";")
    else:
        row |= {"status": "ok", **vars(found)}
    if device == "cuda":
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()
    print(f"{row['status']:<14.60}{run.name}", flush=True)
    return row


def read_rows(path: Path) -> list[dict[str, str]]:
    """What is measured so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, Any], fields: Sequence[str]) -> None:
    """One row more, so that a run that is cut off keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow({name: row.get(name, "") for name in fields})
