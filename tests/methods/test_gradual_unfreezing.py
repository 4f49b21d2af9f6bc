"""ULMFiT's schedule: rates fall layer by layer, layers join from the top down, and what waits stays as it was to the bit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import zoo
from tunekit.attach import load, prepare, prepared
from tunekit.callbacks.gradual_unfreezing import GradualUnfreezing
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.mixin import TunekitTrainer
from tunekit.plan import DataSpec, Plan
from tunekit.structure import blocks, facts_of, head_parameters, levels
from tunekit.task import TASKS, Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")
WHOLE = {"last_layers": 3, "patterns": ("embeddings",)}
"""All of the model below: head, three layers and embeddings make five steps of the schedule."""


def bert(seed: int = 0) -> nn.Module:
    """A BERT of three layers with dropout, so that a draw too many would show."""
    set_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=100, max_position_embeddings=16,
            num_labels=2,
        )
    )  # fmt: skip


class Watch(TrainerCallback):
    """Takes down after each step which parameters moved, and what the optimizer holds of them."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.stepped: list[set[str]] = []
        self.held: set[str] = set()

    def on_train_begin(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        self._values = {n: p.detach().clone() for n, p in model.named_parameters()}

    def on_step_end(self, *_: Any, model: nn.Module, optimizer: Any, **kwargs: Any) -> None:
        names = {id(p): n for n, p in model.named_parameters()}
        self.held = {names[id(p)] for g in optimizer.param_groups for p in g["params"]}
        self.stepped.append({names[id(p)] for p in optimizer.state})
        self.moved.append({n for n, p in model.named_parameters() if not torch.equal(p, self._values[n])})
        self._values = {n: p.detach().clone() for n, p in model.named_parameters()}


def rows(count: int = 16) -> list[dict[str, torch.Tensor]]:
    every = zoo.batch(CLASSIFY, rows=count)
    return [{k: v[i] for k, v in every.items()} for i in range(count)]


def trainer(
    model: nn.Module, folder: Path, *callbacks: TrainerCallback, cls: type[Trainer] = TunekitTrainer, **arguments: Any
) -> Trainer:
    """Four optimizer steps an epoch."""
    settings = {
        "num_train_epochs": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1, "logging_steps": 1, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 5, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = TrainingArguments(str(folder), **{**settings, **arguments})
    return cls(model=model, args=args, train_dataset=rows(), callbacks=list(callbacks))


def scheduled(folder: Path, method: Partial, *more: TrainerCallback, **arguments: Any) -> Trainer:
    return trainer(prepare(bert(), method, CLASSIFY), folder, *method.callbacks(), *more, **arguments)


def level_of(name: str) -> int:
    """How far below the top, by the names of this BERT."""
    if "embeddings" in name:
        return 4
    return 3 - int(name.split("layer.")[1][0]) if "layer." in name else 0


def always_zero(name: str) -> bool:
    """Attention does not see a bias of the keys: its gradient is nothing but rounding."""
    return name.endswith("key.bias")


# ---------------------------------------------------------------------- the order of the layers
@pytest.mark.parametrize(
    ("architecture", "task"), [(a, t.name) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]
)
def test_the_head_is_on_top_and_embeddings_at_the_bottom_of_every_model(architecture: str, task: str) -> None:
    model = zoo.build(architecture, Task.named(task), device="meta")
    found, stacks = levels(model), blocks(model)
    count = sum(len(layers) for _, layers in stacks)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {found[n] for n in head_parameters(model, Task.named(task))} <= {0}
    tables = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding) and ".0." not in n]
    assert {found[n] for n in tables if n in found} == {count + 1}
    order = [f"{name}.{i}." for name, layers in stacks for i in range(len(layers))]
    for place, prefix in enumerate(order):
        assert {level for n, level in found.items() if n.startswith(prefix)} == {count - place}
    assert set(found.values()) - {0} == set(range(1, count + 2))


def test_what_an_adapter_added_lies_where_its_layer_does() -> None:
    model = prepare(bert(), Lora(r=2), CLASSIFY)
    names = [n for n, _ in model.get_base_model().named_parameters() if "lora_" in n]
    assert names
    assert all(levels(model)[n] == level_of(n) for n in names)


# ---------------------------------------------------------------------- discriminative rates
def test_each_layer_learns_2_6_times_slower_than_the_one_above() -> None:
    method = Partial(**WHOLE, layer_lr_decay=2.6)
    model = prepare(bert(), method, CLASSIFY)
    names = {id(p): n for n, p in model.named_parameters()}
    rates: dict[int, set[float]] = {}
    for group in method.parameter_groups(model, 1e-3, 0.1):
        for p in group["params"]:
            rates.setdefault(level_of(names[id(p)]), set()).add(group["lr"])
    assert {level: len(found) for level, found in rates.items()} == dict.fromkeys(range(5), 1)
    assert [rates[level].pop() for level in range(5)] == pytest.approx([1e-3 / 2.6**level for level in range(5)])


def test_without_it_there_are_the_two_usual_groups() -> None:
    method = Partial()
    groups = method.parameter_groups(prepare(bert(), method, CLASSIFY), 1e-3, 0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] in ([(1e-3, 0.1), (1e-3, 0.0)], [(1e-3, 0.0), (1e-3, 0.1)])


def test_a_schedule_of_the_host_scales_every_rate_alike(tmp_path: Path) -> None:
    made = scheduled(
        tmp_path, Partial(**WHOLE, layer_lr_decay=2.0), lr_scheduler_type="linear", warmup_steps=2, max_steps=8
    )
    made.train()
    first = [g["initial_lr"] for g in made.optimizer.param_groups]
    assert len(set(first)) == 5
    assert [g["lr"] for g in made.optimizer.param_groups] == [0.0] * len(first)


# ---------------------------------------------------------------------- gradual unfreezing
@pytest.mark.parametrize(
    ("every", "unit", "steps_each"), [(1, "epochs", 4), (0.5, "epochs", 2), (3, "steps", 3), (1, "steps", 1)]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_layer_joins_when_its_turn_has_come_and_is_untouched_before(
    every: float, unit: Any, steps_each: int, accumulation: int, tmp_path: Path
) -> None:
    watch, method = Watch(), Partial(**WHOLE, unfreeze_every=every, unfreeze_unit=unit)
    batch = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    made = scheduled(tmp_path, method, watch, **batch)
    made.train()
    assert len(watch.moved) == 24
    assert watch.held == method.trainable_names(made.model) == {n for n, _ in made.model.named_parameters()}
    for step, (moved, stepped) in enumerate(zip(watch.moved, watch.stepped, strict=True)):
        turn = {n for n in watch.held if level_of(n) <= step // steps_each}
        assert moved <= turn
        assert {n for n in turn - moved if not always_zero(n)} <= {"bert.embeddings.word_embeddings.weight"}
        assert stepped == turn


def test_the_optimizer_counts_a_layers_steps_from_its_own_turn(tmp_path: Path) -> None:
    made = scheduled(tmp_path, Partial(**WHOLE, unfreeze_every=1))
    made.train()
    names = {id(p): n for n, p in made.model.named_parameters()}
    counts = {names[id(p)]: int(state["step"]) for p, state in made.optimizer.state.items()}
    assert counts == {n: 24 - 4 * level_of(n) for n in counts}
    assert len(counts) == len(names)


def test_it_is_the_same_as_training_those_layers_alone(tmp_path: Path) -> None:
    """Up to the first change: neither clipping nor decay nor dropout notices the layers that wait."""
    gradual = scheduled(tmp_path, Partial(last_layers=3, unfreeze_every=1, unfreeze_unit="epochs"), max_steps=8)
    gradual.train()
    model = bert()
    prepare(model, Partial(last_layers=1), CLASSIFY)
    alone = trainer(model, tmp_path, GradualUnfreezing(every=1), max_steps=8)
    alone.train()
    expected = dict(alone.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in gradual.model.named_parameters())


@pytest.mark.parametrize(("every", "unit"), [(1, "epochs"), (5, "steps")])
@pytest.mark.parametrize("checkpoint", [3, 6, 8, 13])
def test_a_resumed_run_ends_where_the_whole_one_does(every: float, unit: Any, checkpoint: int, tmp_path: Path) -> None:
    method = Partial(**WHOLE, unfreeze_every=every, unfreeze_unit=unit, layer_lr_decay=2.6)
    saving = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear", "num_train_epochs": 4}
    whole = scheduled(tmp_path, method, **saving)
    whole.train()
    watch = Watch()
    resumed = scheduled(tmp_path, method, watch, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert len(watch.moved) == 16 - checkpoint
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in resumed.model.named_parameters())
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]


def test_a_checkpoint_in_the_middle_holds_all_that_will_learn_and_loads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method = Partial(last_layers=2, unfreeze_every=2)
    made = scheduled(tmp_path, method, save_strategy="steps", save_steps=4, num_train_epochs=3)
    made.train()
    names = method.trainable_names(made.model)
    assert load_file(tmp_path / "checkpoint-4" / "model.safetensors").keys() == names
    again = load(bert(), tmp_path / "checkpoint-4")
    assert prepared(again).method == method
    assert {n for n, p in again.named_parameters() if p.requires_grad} == names
    assert made.model.bert.encoder.layer[1].output.dense.weight.requires_grad
    assert not made.model.bert.encoder.layer[0].output.dense.weight.requires_grad


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_a_head_the_last_layer_starts_with_the_final_norm(architecture: str, tmp_path: Path) -> None:
    method, watch = Partial(last_layers=2, unfreeze_every=2, unfreeze_unit="steps"), Watch()
    model = prepare(zoo.build(architecture, WRITE), method, WRITE)
    every = zoo.batch(WRITE, rows=8)
    args = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-2,
    )  # fmt: skip
    data = [{k: v[i] for k, v in every.items()} for i in range(8)]
    TunekitTrainer(model=model, args=args, train_dataset=data, callbacks=[*method.callbacks(), watch]).train()
    assert all(".1." in n or "norm" in n or "ln_f" in n for n in watch.moved[1])
    assert any(".1." in n for n in watch.moved[1])
    assert any(n.endswith(("norm.weight", "ln_f.weight")) for n in watch.moved[1])
    assert any(".0." in n for n in watch.moved[2])


def test_it_drops_into_a_plain_trainer_on_any_model(tmp_path: Path) -> None:
    watch = Watch()
    made = trainer(bert(), tmp_path, GradualUnfreezing(every=4, unit="steps"), watch, cls=Trainer, max_steps=20)
    made.train()
    for step, moved in enumerate(watch.moved):
        assert max(level_of(n) for n in moved) == min(4, step // 4)
    assert all(p.requires_grad for p in made.model.parameters())


def test_it_works_on_adapters_too(tmp_path: Path) -> None:
    watch = Watch()
    model = prepare(bert(), Lora(r=2), CLASSIFY)
    trainer(model, tmp_path, GradualUnfreezing(every=2, unit="steps"), watch, max_steps=8).train()
    assert all("modules_to_save" in n for n in watch.moved[0])
    assert {level_of(n) for n in watch.moved[2] if "lora_" in n} == {1}
    assert {level_of(n) for n in watch.moved[-1] if "lora_" in n} == {1, 2, 3}


def test_a_second_training_starts_the_schedule_again(tmp_path: Path) -> None:
    watch = Watch()
    made = scheduled(tmp_path, Partial(**WHOLE, unfreeze_every=1, unfreeze_unit="steps"), watch, max_steps=2)
    made.train()
    made.train()
    assert [max(level_of(n) for n in moved) for moved in watch.moved] == [0, 1, 0, 1]


# ---------------------------------------------------------------------- more than one process
def test_where_gradients_must_be_computed_they_are_dropped_before_the_step(tmp_path: Path) -> None:
    """What two ranks do, in one process: without clipping it ends exactly where freezing does."""

    class AsUnderDdp(GradualUnfreezing):
        def on_train_begin(self, args: Any, *rest: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, *rest, **kwargs)
            for stage in self._stages:
                for p in stage:
                    p.requires_grad_(True)
            self._drops = True

    found = []
    for cls in (GradualUnfreezing, AsUnderDdp):
        watch, model = Watch(), bert()
        made = trainer(model, tmp_path, cls(every=3, unit="steps"), watch, cls=Trainer, max_steps=12, max_grad_norm=0)
        made.train()
        found.append((watch.moved, watch.stepped, {n: p.detach() for n, p in model.named_parameters()}))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(p, found[1][2][n]) for n, p in found[0][2].items())


SCRIPT = """
import os
import sys
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed
from tunekit.callbacks.gradual_unfreezing import GradualUnfreezing
from tunekit.mixin import TunekitTrainer
set_seed(0)
model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
    intermediate_size=32, vocab_size=100, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
draw = torch.Generator().manual_seed(1)
rows = [{"input_ids": torch.randint(3, 100, (8,), generator=draw), "labels": i % 2} for i in range(32)]
args = TrainingArguments(sys.argv[1], max_steps=12, per_device_train_batch_size=int(sys.argv[2]), learning_rate=0.1, weight_decay=0.1,
    optim="sgd", max_grad_norm=0, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", ddp_find_unused_parameters=False,
    ddp_backend="gloo" if "RANK" in os.environ else None, lr_scheduler_type="constant")
start = {n: p.detach().clone() for n, p in model.named_parameters()}
TunekitTrainer(model, args, train_dataset=rows, callbacks=[GradualUnfreezing(every=4, unit="steps")]).train()
if args.process_index == 0:
    torch.save({"world": args.world_size, "start": start, "end": model.state_dict()}, sys.argv[1] + "/end.pt")
"""


@pytest.mark.slow
def test_two_ranks_end_where_one_process_does(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = []
    for ranks, batch in ((1, 8), (2, 4)):
        out = tmp_path / f"out-{ranks}"
        out.mkdir()
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if ranks > 1 else []
        command = [sys.executable, *start, str(script), str(out), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(out / "end.pt", weights_only=True))
        assert found[-1]["world"] == ranks
    one, two = found
    waiting = [n for n in one["start"] if level_of(n) > 2]
    assert waiting
    assert all(torch.equal(two["end"][n], two["start"][n]) for n in waiting)
    # Plain SGD: AdamW would make a whole step of a gradient that is nothing but rounding.
    assert max(float((two["end"][n] - p).abs().max()) for n, p in one["end"].items()) <= 1e-5
    moved = [n for n in one["start"] if level_of(n) <= 2 and not torch.equal(two["end"][n], two["start"][n])]
    assert {level_of(n) for n in moved} == {0, 1, 2}


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3", "fsdp", "fsdp-hybrid"])
def test_shards_are_refused_before_anything_is_loaded(sharding: str) -> None:
    facts = facts_of(zoo.build("bert", CLASSIFY, device="meta"))
    finding = Partial(unfreeze_every=1).supports(facts, CLASSIFY, sharding=sharding)
    assert finding is not None
    assert finding.code == "partial-unfreeze-sharding"
    assert "layer_lr_decay" in finding.fix
    assert Partial(layer_lr_decay=2.6).supports(facts, CLASSIFY, sharding=sharding) is None
    assert Partial(unfreeze_every=1).supports(facts, CLASSIFY, sharding="ddp") is None


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_the_callback_refuses_them_in_a_trainer_of_somebody_elses(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import TrainerControl, TrainerState

    made = trainer(bert(), tmp_path, cls=Trainer)
    made.create_optimizer()
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType[kind])
    with pytest.raises(UnsupportedError, match="unfreezing-sharding"):
        GradualUnfreezing(every=1).on_train_begin(
            made.args, TrainerState(), TrainerControl(), model=made.model, optimizer=made.optimizer
        )


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"layer_lr_decay": 0.95}, "partial-lr-decay"), ({"layer_lr_decay": 0.0}, "partial-lr-decay"), ({"unfreeze_every": 0}, "partial-unfreeze"),
        ({"unfreeze_every": -1}, "partial-unfreeze"), ({"unfreeze_every": 1.5, "unfreeze_unit": "steps"}, "partial-unfreeze"),
        ({"unfreeze_unit": "batches"}, "partial-type"), ({"unfreeze_every": "one"}, "partial-type"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused_when_it_is_made(values: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Partial(**values)
    assert caught.value.codes == (code,)


@pytest.mark.parametrize("values", [{"every": 0}, {"every": -2}, {"every": 1, "unit": "batches"}])
def test_the_callback_refuses_them_too(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="unfreezing-every"):
        GradualUnfreezing(**values)


def test_a_rate_that_was_meant_as_a_factor_is_answered_with_the_divisor() -> None:
    with pytest.raises(InvalidError, match=r"set 1\.05|Set 1\.05"):
        Partial(layer_lr_decay=0.95)


@pytest.mark.parametrize(("epochs", "late"), [(6, 0), (5, 0), (4, 1), (1, 4)])
def test_a_run_that_is_over_too_early_is_said_to_be(
    epochs: int, late: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scheduled(tmp_path, Partial(**WHOLE, unfreeze_every=1), num_train_epochs=epochs).train()
    said = [r.getMessage() for r in caplog.records if "begin to learn" in r.getMessage()]
    assert len(said) == bool(late)
    assert all(f"{late} of 5" in s for s in said)


def test_a_plan_brings_its_schedule_along(tiny_encoder: str, tmp_path: Path) -> None:
    from tunekit.assemble import trainer as assemble

    data = [{"text": f"the {'good' if i % 2 else 'bad'} sun {i}", "label": "yn"[i % 2]} for i in range(16)]
    method = Partial(last_layers=2, layer_lr_decay=2.6, unfreeze_every=1)
    plan = Plan(
        model=tiny_encoder, task="sequence-classification", method=method, output_dir=str(tmp_path / "out"), per_device_train_batch_size=4,
        num_train_epochs=3, max_length=16, data=DataSpec(path="unused", label_names=("n", "y")), learning_rate=1e-3,
    )  # fmt: skip
    assert Plan.load(plan.save(tmp_path / "plan.yaml")).method == method
    watch = Watch()
    made = assemble(plan, train_dataset=data, callbacks=[watch])
    made.train()
    assert len({g["initial_lr"] for g in made.optimizer.param_groups}) == 3
    assert [any("layer.0" in n for n in moved) for moved in watch.moved] == [False] * 8 + [True] * 4


def test_the_memory_of_a_schedule_is_that_of_its_end(tiny_encoder: str) -> None:
    import tunekit

    def needs(**values: Any) -> int:
        plan = Plan(
            model=tiny_encoder, task="sequence-classification", method=Partial(last_layers=2, **values), max_length=16, learning_rate=1e-3,
            problem_type="single_label_classification",
        )  # fmt: skip
        return tunekit.estimate_memory(plan, "24GB").allocated_bytes

    assert needs(unfreeze_every=1, layer_lr_decay=2.6) == needs()


def test_the_whole_schedule_learns(tmp_path: Path) -> None:
    method = Partial(**WHOLE, layer_lr_decay=2.6, unfreeze_every=4, unfreeze_unit="steps")
    made = scheduled(tmp_path, method, num_train_epochs=15)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
