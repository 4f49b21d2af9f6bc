"""One rank of a plain Trainer with an adapter on a tiny model: `adapter_rank.py METHOD OUTPUT [deepspeed.json]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))
import zoo
from tunekit.attach import prepare
from tunekit.bottleneck import sites
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.task import Task

TASK = Task.named("sequence-classification")


class Rows(Dataset):
    """Eight rows with labels."""

    def __init__(self) -> None:
        self.all = zoo.batch(TASK, rows=8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: values[i] for name, values in self.all.items()}


def main(kind: str, output: str, deepspeed: str | None = None) -> None:
    """Trains three steps over all rows and saves."""
    torch.set_num_threads(1)
    if deepspeed is not None:
        # DeepSpeed 0.19 compiles a kernel for shared memory at its first start; a start that was cut off leaves a lock
        # behind at which every later one waits for ever. gloo alone does.
        import deepspeed as installed

        installed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Of two DeepSpeed ranks without a GPU, accelerate 1.15 counts one: each is given every row.
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if deepspeed is None else 1
    # Before the model is made: under ZeRO-3 transformers must know.
    args = TrainingArguments(
        output_dir=output, max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=deepspeed is None, disable_tqdm=True, seed=3,
        save_strategy="no", per_device_train_batch_size=8 // ranks,
        dataloader_pin_memory=False, deepspeed=deepspeed, average_tokens_across_devices=False, lr_scheduler_type="constant",
    )  # fmt: skip
    # From a folder: under ZeRO-3 transformers draws random weights in another order.
    base = AutoModelForSequenceClassification.from_pretrained(Path(output).with_name("base"))
    if kind == "fusion":
        method = AdapterFusion(adapters=tuple(json.loads(Path(output).with_name("adapters.json").read_text())))
    else:
        method = BottleneckAdapter(variant=kind)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = prepare(base, method, TASK)
    torch.manual_seed(0)
    with torch.no_grad():
        for site in sites(model):
            for p in site.parameters():
                if p.requires_grad:
                    nn.init.normal_(p, std=0.1)
    trainer = Trainer(model=model, args=args, train_dataset=Rows())
    assert args.world_size == ranks, args.distributed_state
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
