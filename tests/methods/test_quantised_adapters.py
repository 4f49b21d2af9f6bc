"""Adapters and fusions on nf4 and int8 bases in a plain Trainer: they learn, with checkpointing too, and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plain_runs
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import zoo
from tunekit.attach import load, prepare
from tunekit.bottleneck import sites
from tunekit.contracts import Method
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.task import Task

WRITE = Task.named("causal-lm")


class Rows(Dataset):
    """Four rows of text with labels."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: values[i] for name, values in zoo.batch(WRITE).items()}


def base(folder: Path, kind: str | None) -> nn.Module:
    """The same small decoder each time, quantised as it is loaded."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if not folder.exists():
        shape = zoo.config("llama")
        shape.hidden_size, shape.intermediate_size, shape.head_dim = 64, 128, 16  # the CPU kernel packs blocks of 64
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    settings: dict[str, Any] = {"load_in_8bit": True} if kind == "int8" else four
    asked = {"quantization_config": BitsAndBytesConfig(**settings)} if kind else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **asked)


def method_for(name: str, folder: Path) -> Method:
    """The adapter, or a fusion of two that learnt on the base as it is unquantised."""
    if name != "fusion":
        return BottleneckAdapter(variant=name)  # type: ignore[arg-type]
    for seed, adapter in enumerate(("first", "second")):
        model = prepare(base(folder / "base", None), BottleneckAdapter(), WRITE)
        torch.manual_seed(seed)
        with torch.no_grad():
            for site in sites(model):
                for p in site.parameters():
                    nn.init.normal_(p, std=0.1)
        model.save_pretrained(folder / adapter)
    return AdapterFusion(adapters=(str(folder / "first"), str(folder / "second")))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["houlsby", "fusion"])
def test_it_learns_on_a_quantised_base_and_reloads(name: str, kind: str, checkpointing: bool, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    method = method_for(name, tmp_path)
    model = prepare(base(tmp_path / "base", kind), method, WRITE)
    seen: set[torch.dtype] = set()
    for site in sites(model):
        for adapter in site.adapters.values():
            adapter.up.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_steps=2, dataloader_pin_memory=False, **(plain_runs.checkpointing() if checkpointing else {}),
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert before.keys() == method.trainable_names(model)
    Trainer(model=model, args=args, train_dataset=Rows()).train()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    again = load(base(tmp_path / "base", kind), tmp_path / "run" / "checkpoint-2")
    learnt = {n: p for n, p in model.named_parameters() if n in before}
    assert all(torch.equal(p, learnt[n]) for n, p in again.named_parameters() if n in learnt)
    assert (zoo.logits(again, zoo.batch(WRITE)) - zoo.logits(model, zoo.batch(WRITE))).abs().max() <= 1e-5
