"""What the methods' recipes share: how the learning rate goes with the model's size, and the epochs with the rows."""

from __future__ import annotations

import math

from tunekit.workload import ModelFacts, Workload

LORA_RATES = "Hu et al., LoRA, 2021, appendix D: 4e-4 to 5e-4 (125M), 2e-4 to 4e-4 (355M), 6e-5 to 2e-4 (1.5B)"
SFT_RATES = "PEFT method comparison benchmark; QLoRA, 2023: 1e-4 to 2e-4 for decoders of 1B and more"
TEN_TIMES = "Schulman et al., LoRA Without Regret, 2025: the best LoRA rate is ten times that of full fine-tuning"
EPOCHS = "Hu et al., LoRA, 2021, appendix D: 40 epochs of 100 to 1,000 rows, 4 of 10,000, 2 of 392,000"
SMALL_DATA = (
    "Mosbach et al., On the Stability of Fine-tuning BERT, 2021: small sets need warm-up and more epochs, not fewer"
)

RANKS = (
    "Rank: Schulman et al., LoRA Without Regret, 2025 (as many parameters as there are tokens to learn; two bits a parameter, after "
    "Allen-Zhu and Li, Physics of Language Models 3.3, 2024); Hu et al., LoRA, 2021, table 6 (1 to 64 level on classification); "
    "Biderman et al., 2024 (code, 100,000 rows: 35.8, 41.7, 49.8 at ranks 16, 64, 256)"
)

_UNDERSTANDING_ROWS = 8000
"""Rows to see in all on an understanding task: 500 steps of 16, where measured accuracy levels off."""


def adapter_rate(workload: Workload) -> float:
    """Learning rate of low-rank adapters: falls with the model's size, through the published values.

    Encoders and seq2seq models: 5e-4 at 125M parameters and the power -0.4 of the size; decoders the same for
    understanding tasks below 1B, otherwise 2e-4 (1e-4 above 13B).
    """
    size = max(workload.model.num_parameters, 10**6)
    if workload.model.side == "decoder" and (size >= 10**9 or not workload.task.has_head):
        return 1e-4 if size > 13e9 else 2e-4
    return _rounded(min(1e-3, max(1e-4, 5e-4 * (size / 125e6) ** -0.4)))


def full_rate(workload: Workload) -> float:
    """Learning rate when the base's own weights move: a tenth of the adapters'; 1e-5 for decoders from 1B."""
    if workload.model.side == "decoder" and workload.model.num_parameters >= 10**9:
        return 5e-6 if workload.model.num_parameters > 100e9 else 1e-5
    return _rounded(adapter_rate(workload) / 10)


def epochs(workload: Workload) -> float:
    """Passes over the rows: many over few, few over many."""
    rows = max(workload.data.num_examples, 1)
    if workload.task.has_head:
        most = 2.0 if rows > 100_000 else 3.0 if rows > 10_000 else 40.0
        return float(min(most, max(3.0, round(_UNDERSTANDING_ROWS / rows)))) if rows <= 100_000 else most
    if workload.model.num_parameters < 10**9 or workload.model.side == "seq2seq":
        return 10.0 if rows < 1000 else 5.0 if rows < 50_000 else 3.0
    return 5.0 if rows < 500 else 3.0 if rows < 10_000 else 2.0 if rows < 100_000 else 1.0


def warmup(workload: Workload) -> float:
    """Share of the steps that warm up: 6 %, and 10 % on small sets."""
    return 0.1 if workload.data.num_examples < 10_000 else 0.06


_BITS_A_PARAMETER = 2.0
_LEAST_RANK = {True: 8, False: 16}
"""By whether the task has a head: what is published for classification, and for text to write, with few rows."""
_MOST_RANK = 256


def rank(workload: Workload) -> int:
    """The least power of two at which LoRA on every linear layer holds what the rows have to say.

    A token to write is worth a parameter, a class or a tag its logarithm at two bits a parameter: classification almost
    never asks for more than the least rank, a hundred million tokens for a high one.
    """
    data = workload.data
    if workload.task.has_head:
        classes = max(data.num_labels or 2, 2) if data.problem_type != "regression" else 256
        answers = data.num_examples * max(data.supervised_tokens or 1.0, 1.0)
        needed = answers * math.log2(classes) / _BITS_A_PARAMETER
    else:
        needed = data.num_examples * (data.supervised_tokens or data.mean_tokens)
    wanted = needed / rank_parameters(workload.model)
    least = _LEAST_RANK[workload.task.has_head]
    return min(most_rank(workload.model), max(least, 2 ** math.ceil(math.log2(max(wanted, 1.0)))))


def most_rank(model: ModelFacts) -> int:
    """The largest power of two up to 256 that the narrowest linear layer has as a rank: with few heads for keys and values, theirs."""
    config, narrow = model.config, model.hidden_size
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads > 0 < shared:
        narrow = min(narrow, shared * (config.get("head_dim") or narrow // heads))
    return min(_MOST_RANK, 2 ** int(math.log2(max(narrow, 1))))


def rank_parameters(model: ModelFacts) -> int:
    """About what one rank of LoRA on every linear layer has in parameters: four square layers and two or three wide ones a block."""
    config, width = model.config, model.hidden_size
    sizes = (config.get(name) for name in ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim"))
    inner = next((n for n in sizes if isinstance(n, int) and n > 0), 4 * width)
    wide = 3 if config.get("hidden_act") == "silu" else 2
    return max(1, model.num_layers * (8 * width + wide * (width + inner)))


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
