"""Quantised bases and optimizers as they really run here: what is packed, what stays whole, what learns in 32 bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import tunekit
import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.structure import head_modules, task_model
from tunekit.task import Task

if importlib.util.find_spec("bitsandbytes") is None:
    pytest.skip("needs bitsandbytes", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = {name: m for name, m in zoo.methods().items() if name == m.slug and not m.trains_base}
ROWS = [{"text": f"good sun {i} red", "label": i % 2} for i in range(16)]


def trainer(model: str, folder: Path, method: Any, task: str = "sequence-classification", **changes: Any) -> Any:
    plan = tunekit.Plan(
        model=model, task=task, method=method, output_dir=str(folder / "run"), max_steps=3, learning_rate=1e-2, warmup=0, **changes
    )  # fmt: skip
    rows = ROWS if task != "causal-lm" else [{"text": row["text"]} for row in ROWS]
    return tunekit.trainer(
        plan, train_dataset=rows, save_strategy="no", disable_tqdm=True, log_level="error", logging_steps=1
    )


def packed(model: torch.nn.Module) -> list[str]:
    """Names of the layers whose weights are packed."""
    return [n for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_learns_on_a_four_bit_base_in_thirty_two_bits(
    method: str, tiny_encoder: str, tmp_path: Path
) -> None:
    task = Task.named("sequence-classification")
    refused = METHODS[method].supports(model_facts(tiny_encoder), task, quantization="nf4")
    if refused is not None:
        assert refused.fix
        return
    # IA3's factors make 32-bit values of 16-bit ones, which torch's layer norm on the CPU (2.13) refuses with 16-bit weights.
    sixteen = {} if method == "ia3" else {"dtype": "bfloat16", "mixed_precision": "bf16"}
    made = trainer(
        tiny_encoder, tmp_path, METHODS[method], quantization="nf4", activation_checkpointing=True, **sixteen
    )
    model = made.model
    assert packed(model), "nothing is quantised"
    heads = head_modules(task_model(model), task)
    assert not [n for n in packed(model) if any(head in n for head in heads)], (
        "a new head is random: packed, it could not learn"
    )
    kept = {n: p for n, p in model.named_parameters() if not p.requires_grad and p.is_floating_point()}
    assert any("embed" in n for n in kept)
    assert {p.dtype for p in kept.values()} <= {torch.bfloat16, torch.float32}
    learning = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learning.values()} == {torch.float32}
    assert any("classifier" in n for n in learning), "the head learns"
    made.train()
    changed = [n for n, p in model.named_parameters() if n in learning and not torch.equal(p, learning[n])]
    inner = [n for n in changed if "classifier" not in n]
    assert inner, "checkpointing cut the gradient to what is inside the base"


@pytest.mark.parametrize(("quantization", "share"), [("nf4", 0.5), ("fp4", 0.5), ("int8", 1.0)])
def test_a_packed_weight_takes_half_a_byte_or_one(
    quantization: str, share: float, tiny_decoder: str, tmp_path: Path
) -> None:
    made = trainer(tiny_decoder, tmp_path, METHODS["lora"], "causal-lm", quantization=quantization)
    layers = dict(made.model.named_modules())
    layers = {n: layers[n] for n in packed(made.model)}
    assert layers
    for name, layer in layers.items():
        size = layer.weight.numel() * layer.weight.element_size()
        assert size == share * layer.in_features * layer.out_features, name
        if quantization != "int8":
            assert layer.weight.quant_state.nested, "the constants of the blocks are quantised too"
            assert layer.weight.quant_state.quant_type == quantization
    assert not any("lm_head" in name for name in layers)
    made.train()


@pytest.mark.parametrize(
    ("optim", "dtype"),
    [("adamw_8bit", torch.uint8), ("adamw_bnb_8bit", torch.uint8), ("paged_adamw_8bit", torch.uint8), ("paged_adamw_32bit", torch.float32)],
)  # fmt: skip
def test_eight_bit_and_paged_optimizers_run_and_hold_what_their_name_says(
    optim: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    from conftest import make_tokenizer
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=160, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "model")
    make_tokenizer(tmp_path / "model")
    made = trainer(str(tmp_path / "model"), tmp_path, tunekit.methods.Full(), optim=optim)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made.train()
    inner = made.optimizer.optimizer if hasattr(made.optimizer, "optimizer") else made.optimizer
    assert type(inner).__module__.startswith("bitsandbytes")
    large = {state["state1"].dtype for p, state in inner.state.items() if p.numel() >= 4096}
    assert large == {dtype}
    assert sum(not torch.equal(p, before[n]) for n, p in made.model.named_parameters()) > len(before) // 2
    assert all(entry["loss"] == entry["loss"] for entry in made.state.log_history if "loss" in entry)


@pytest.mark.parametrize(
    ("sharding", "stored"), [("ddp", "uint8"), ("zero2", "uint8"), ("zero3", "bfloat16"), ("fsdp", "bfloat16")]
)
def test_what_divides_weights_stores_the_bytes_as_floats(sharding: Any, stored: str) -> None:
    from tunekit.quantization import quantization_config

    plan = tunekit.Plan(
        model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding=sharding, quantization="nf4",
        dtype="bfloat16", mixed_precision="bf16",
    )  # fmt: skip
    config = quantization_config(plan)
    assert config is not None
    assert config.bnb_4bit_quant_storage == getattr(torch, stored)
    assert config.bnb_4bit_use_double_quant
