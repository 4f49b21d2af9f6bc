"""How would I fine-tune a 70B model, and on what? Asked on a laptop: no weights, no GPU, no network.

python examples/advice_for_70b.py
"""

from __future__ import annotations

from transformers import LlamaConfig

import tunekit
from small import arguments


def main() -> None:
    asked = arguments(__doc__, steps=0)
    model = asked.model or LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, dtype="bfloat16",
    )  # fmt: skip
    for hardware in ("H100", "4xH100", "2x8xH100"):
        advice = tunekit.advise(
            model,
            task="causal-lm",
            num_examples=20_000,
            mean_tokens=400,
            hardware=hardware,
            methods=["lora", "full", "ia3"],
        )
        print(f"== {hardware}")
        if advice.best is None:
            print("nothing fits:", "; ".join(f.seen for f in advice.findings))
            continue
        best = advice.best
        plan = best.plan
        print(
            f"{plan.method.title}, {plan.quantization or plan.dtype} base, sharding {plan.sharding or 'none'}, "
            f"{plan.per_device_train_batch_size} x {plan.gradient_accumulation_steps} rows a device"
        )
        print(f"{best.memory.device_bytes / 2**30:.1f} GiB a device, {best.duration.total_seconds / 3600:.1f} hours")


if __name__ == "__main__":
    main()
