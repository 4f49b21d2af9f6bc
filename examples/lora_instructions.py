"""How do LoRA and QLoRA learn to follow instructions? The same rows on a plain base and on one of four bits.

python examples/lora_instructions.py
python examples/lora_instructions.py --model meta-llama/Llama-3.2-1B-Instruct
"""

from __future__ import annotations

import tunekit
from small import arguments, fit, instructions, scratch, share_trained, small_model, taught, written


def main() -> None:
    asked = arguments(__doc__, steps=300)
    rows, held_out = instructions(300), instructions(30, seed=1)
    texts = [r["prompt"] + r["completion"] for r in (*rows, *held_out)]
    model = asked.model or taught(small_model("llama", texts), "causal-lm", [{"text": t} for t in texts[:100]], 50)
    lora = tunekit.methods.Lora(r=16)
    for name, quantization in (("LoRA", None), ("QLoRA", "nf4")):
        plan = tunekit.Plan(
            model=model, task="causal-lm", method=lora, quantization=quantization, max_steps=asked.steps, learning_rate=5e-3,
            per_device_train_batch_size=16, output_dir=scratch(name),
        )  # fmt: skip
        trainer = fit(plan, rows, held_out)
        print(f"{name:6} loss on new orders {trainer.evaluate()['eval_loss']:.3f}, trains {share_trained(trainer)}")
        print("      ", held_out[0]["prompt"], "->", written(trainer, held_out[0]["prompt"], most=6))


if __name__ == "__main__":
    main()
