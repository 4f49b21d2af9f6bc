"""What other tools on the package index say of a run, each in an environment of its own.

`answers(requests)` makes the environments (in `--rivals-folder`, the first time), asks every tool that could be installed
and returns bytes by tool and request; a tool that cannot be installed, or cannot express a request, is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FITCHECK = """
from fitcheck.config_parser import ModelConfig, _count_params, _parse_fields
from fitcheck.estimator import TrainingConfig, estimate
from fitcheck.gpu_db import GpuSpec

def answer(r):
    if r["method"] != "lora" or r["targets"] is None:
        return None
    fields = _parse_fields(r["config"])
    named = {k: getattr(fields, k) for k in fields.__dataclass_fields__}
    model = ModelConfig(name="model", num_params=_count_params(fields), **named)
    training = TrainingConfig(batch_size=r["rows"], seq_len=r["length"], lora_rank=r["rank"], lora_targets=r["targets"],
                              grad_checkpoint=r["checkpointing"], flash_attn=True)
    return estimate(model, training, GpuSpec("card", 49152, 46000)).total_mib * 2**20
"""
_PREFLIGHT = """
from torch_preflight.vram.costmodel import estimate
from torch_preflight.vram.types import Confidence, ModelKind, ModelProfile, PrecisionMode, RunConfig, TransformerShape

def answer(r):
    c = r["config"]
    shape = TransformerShape(layers=c["num_hidden_layers"], hidden=c["hidden_size"], heads=c["num_attention_heads"],
        vocab=c["vocab_size"], intermediate=c["intermediate_size"], kv_heads=c["num_key_value_heads"],
        max_position=c["max_position_embeddings"], tied_embeddings=c["tie_word_embeddings"], gated_mlp=True, has_lm_head=True)
    kinds = {k.value: k for k in ModelKind}
    kind = next((k for n, k in kinds.items() if "transformer" in n or "decoder" == n), ModelKind.UNKNOWN)
    profile = ModelProfile(name="model", param_count=r["total"], trainable_params=r["trainable"], source="meta-device",
                           confidence=Confidence.HIGH, kind=kind, shape=shape)
    config = RunConfig(batch_size=r["rows"], seq_len=r["length"], precision=PrecisionMode.PURE_BF16, flash_attention=True,
                       gradient_checkpointing=r["checkpointing"], frozen_fraction=1 - r["trainable"] / r["total"])
    return estimate(profile, config).total
"""
_DOCTOR = """
from peft_doctor.estimator import estimate_vram_gb

def answer(r):
    report = estimate_vram_gb("model", seq_len=r["length"], batch_size=r["rows"], gradient_checkpointing=r["checkpointing"],
        params_billion=r["total"] / 1e9, hidden_size=r["config"]["hidden_size"], num_layers=r["config"]["num_hidden_layers"])
    text = {k: v for k, v in report.metadata.items() if "total" in k or "estimated" in k}
    found = [v for v in text.values() if isinstance(v, (int, float))]
    return max(found) * 2**30 if found else None
"""
_CANIFINETUNE = """
from canifinetune.estimator.memory import EstimateRequest, estimate

def answer(r):
    if r["method"] != "lora" or sorted(r["targets"]) != ["q_proj", "v_proj"]:
        return None
    c = r["config"]
    override = {k: c[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                  "num_key_value_heads", "vocab_size")} | {"params": r["total"], "num_params": r["total"]}
    request = EstimateRequest(model_id="meta-llama/Llama-3.2-3B", gpu_vram_gb=48, method="lora", quantization="none",
        seq_len=r["length"], micro_batch_size=r["rows"], lora_rank=r["rank"], lora_dropout=0.0, lora_target_scope="conservative",
        gradient_checkpointing=r["checkpointing"], override=override, use_network=False)
    memory = estimate(request).memory
    return (memory.total_estimated_gb - memory.safety_margin_gb) * 2**30
"""
_SOUP = """
def answer(r):
    raise RuntimeError("its estimate is of layers streamed from the disk, not of a plain run")
"""
TOOLS: dict[str, str] = {
    "fitcheck-llm": _FITCHECK,
    "torch-preflight": _PREFLIGHT,
    "peft-doctor": _DOCTOR,
    "canifinetune": _CANIFINETUNE,
    "soup-cli": _SOUP,
}
"""Package to the function that asks it."""
_ASK = """
import importlib.metadata, json, sys
requests, found = json.load(sys.stdin), []
for request in requests:
    try:
        found.append(answer(request))
    except Exception as e:
        found.append(f"{type(e).__name__}: {e}"[:200])
print(json.dumps({"version": importlib.metadata.version(PACKAGE), "answers": found}))
"""


def answers(requests: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """By package its `version`, its `answers` (bytes, None or why not, a request each); packages that cannot be had left out."""
    found = {}
    for package, snippet in TOOLS.items():
        python = _environment(package, folder)
        if python is None:
            print(f"{package}: cannot be installed here, left out")
            continue
        script = f"PACKAGE = {package!r}\n{snippet}\n{_ASK}"
        done = subprocess.run(
            [str(python), "-c", script], input=json.dumps(list(requests)), capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{package}: {done.stderr.strip().splitlines()[-1][:150]}")
            continue
        found[package] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment(package: str, folder: Path) -> Path | None:
    """The Python of an environment with the package, made the first time it is asked for."""
    where = folder / package
    python = where / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=False, capture_output=True)
    ready = where / "installed"
    if not ready.exists():
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=False, capture_output=True)
        if done.returncode:
            return None
        ready.touch()
    return python
