"""Frozen activations that are kept: the same training without the frozen layers, or a refusal."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import plain_runs
import pytest
import torch
from test_assemble import ROWS, folder_of

import tunekit
import zoo
from tunekit import activation_cache, activation_store
from tunekit.activation_cache import keep_frozen_activations
from tunekit.contracts import ACTIVATIONS
from tunekit.errors import TunekitError
from tunekit.frozen_part import frozen_part
from tunekit.methods.bitfit import BitFit
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.structure import blocks

TOP = Partial(last_layers=1)
HEAD = Partial(last_layers=None, patterns=("classifier", "score", "pre_classifier", r"\bhead\b"))
WORKS = ("bert", "roberta", "distilbert", "modernbert", "llama", "gpt2", "electra", "deberta-v2", "qwen3", "mixtral")


def classifier(architecture: str, method: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    config = zoo.config(architecture)
    config.num_labels, config.problem_type = 3, "single_label_classification"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    if method is HEAD:
        names = [n for n, _ in model.named_parameters()]
        method = Partial(last_layers=None, patterns=tuple(p for p in HEAD.patterns if any(p.strip("\\b") in n for n in names)))  # fmt: skip
    return tunekit.prepare(model, method, "sequence-classification")


def rows_of(count: int = 14) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"input_ids": [draw.randrange(5, 100) for _ in range(draw.randrange(3, 12))], "labels": i % 3}
        for i in range(count)
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(r["input_ids"]) for r in rows)
    return {
        "input_ids": torch.tensor([r["input_ids"] + [0] * (width - len(r["input_ids"])) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


def trainer_of(model: Any, folder: Path, **arguments: Any) -> Any:
    from transformers import TrainingArguments

    from tunekit.mixin import TunekitTrainer

    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, **arguments}
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, **settings
    )
    return TunekitTrainer(
        model=model, args=args, train_dataset=rows_of(), eval_dataset=rows_of(5), data_collator=collate
    )


@pytest.mark.parametrize("method", [TOP, HEAD], ids=["top", "head"])
@pytest.mark.parametrize("architecture", WORKS)
def test_training_is_the_same_without_the_frozen_layers(architecture: str, method: Any, tmp_path: Path) -> None:
    model = classifier(architecture, method)
    plain, kept = (trainer_of(copy.deepcopy(model), tmp_path / n, gradient_accumulation_steps=2) for n in "pk")
    keep_frozen_activations(kept)
    for trainer in (plain, kept):
        trainer.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (plain, kept)]
    assert torch.allclose(*map(torch.tensor, losses), atol=1e-4)
    batch = collate(rows_of(4))
    with torch.no_grad():
        want, got = (t.model.eval()(**batch)["logits"] for t in (plain, kept))
    assert torch.allclose(want, got, atol=1e-4)
    assert plain.evaluate()["eval_loss"] == pytest.approx(kept.evaluate()["eval_loss"], abs=1e-5)


def test_logits_are_those_of_the_whole_model_and_the_layers_are_not_asked(tmp_path: Path) -> None:
    model = classifier("bert", TOP)
    trainer = trainer_of(model, tmp_path)
    keep_frozen_activations(trainer)
    layers = blocks(model)[0][1]
    asked = []
    for i, layer in enumerate(layers):
        layer.attention.register_forward_hook(lambda *_, i=i: asked.append(i))
    batch = trainer.data_collator(rows_of(4))
    assert batch[ACTIVATIONS].shape == (*batch["input_ids"].shape, 32)
    model.eval()
    with torch.no_grad():
        got = model(**batch)["logits"]
        assert asked == [1]
        want = model(**{k: v for k, v in batch.items() if k != ACTIVATIONS})["logits"]
    assert asked == [1, 0, 1]
    assert torch.allclose(want, got, atol=1e-5)
    assert all("forward" not in vars(layer) for layer in layers)


def test_layers_are_their_own_again_after_an_error(tmp_path: Path) -> None:
    model = classifier("bert", TOP)
    trainer = trainer_of(model, tmp_path)
    keep_frozen_activations(trainer)
    batch = trainer.data_collator(rows_of(4))
    with pytest.raises(ValueError, match=r".*"):
        model(**{**batch, "labels": torch.zeros(7, dtype=torch.long)})
    assert all("forward" not in vars(layer) for layer in blocks(model)[0][1])


def test_a_row_that_is_not_kept_goes_through_the_whole_model(tmp_path: Path) -> None:
    trainer = trainer_of(classifier("bert", TOP), tmp_path)
    keep_frozen_activations(trainer)
    strange = {"input_ids": [7, 7, 7, 7], "labels": 0}
    assert ACTIVATIONS not in trainer.data_collator([rows_of()[0], strange])
    assert trainer.predict([strange] * 3).predictions.shape == (3, 3)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "question-answering", "multiple-choice", "causal-lm"])  # fmt: skip
def test_every_task_of_one_stack_trains_so_from_a_plan(
    task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def scores(kept: str) -> dict[str, float]:
        plan = tunekit.Plan(
            model=folder_of(task, request), task=task, method=TOP, output_dir=str(tmp_path / kept), max_steps=6, learning_rate=1e-3,
            frozen_activations=kept,
        )  # fmt: skip
        made = tunekit.trainer(plan, train_dataset=ROWS[task], eval_dataset=ROWS[task][:6], disable_tqdm=True)
        assert (ACTIVATIONS in made.data_collator([made.train_dataset[0]])) == (kept == "cached")
        made.train()
        assert tunekit.check(made) == tunekit.check(made)
        return {k: v for k, v in made.evaluate().items() if not k.endswith(("runtime", "per_second"))}

    plain, kept = scores("recomputed"), scores("cached")
    assert kept == pytest.approx(plain, abs=1e-4)


def test_a_file_is_used_where_memory_is_short_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "_free_memory", lambda: 1000)
    model = classifier("gpt2", TOP)
    plain, first = (trainer_of(copy.deepcopy(model), tmp_path) for _ in range(2))
    keep_frozen_activations(first)
    (file,) = (tmp_path / activation_cache.FOLDER).iterdir()
    assert file.suffix == ".bin"
    asked: list[int] = []
    monkeypatch.setattr(activation_cache, "_fill", lambda *_: asked.append(1))
    again = trainer_of(copy.deepcopy(model), tmp_path)
    keep_frozen_activations(again)
    assert not asked
    plain.train()
    again.train()
    assert plain.evaluate()["eval_loss"] == pytest.approx(again.evaluate()["eval_loss"], abs=1e-5)
    other = trainer_of(classifier("gpt2", TOP), tmp_path)
    with torch.no_grad():
        blocks(other.model)[0][1][0].mlp.c_fc.weight.add_(0.1)
    with pytest.raises(
        TunekitError, match="activations-differ"
    ):  # another model's are not taken: the empty ones are found out
        keep_frozen_activations(other)
    assert asked


def test_what_fits_nowhere_is_refused(tmp_path: Path) -> None:
    layout = activation_store.Layout.of(rows_of())
    with pytest.raises(TunekitError, match="activations-size"):
        activation_store.open_store(layout, 32, torch.float32, tmp_path, "x", free_memory=100, free_disk=100)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path, tiny_encoder: str) -> None:
    task, seen = "sequence-classification", []
    for folder, steps in (("whole", 8), ("broken", 4), ("broken", 8)):
        plan = tunekit.Plan(
            model=tiny_encoder, task=task, method=TOP, output_dir=str(tmp_path / folder), max_steps=8, frozen_activations="cached",
        )  # fmt: skip
        resume = folder == "broken" and steps == 8
        made = tunekit.trainer(
            plan, train_dataset=ROWS[task], overwrite=resume, disable_tqdm=True, save_strategy="steps", save_steps=4
        )
        if steps == 4:
            made.add_callback(stop_at(4))
        made.train(resume_from_checkpoint=resume or None)
        seen.append({n: p.detach().clone() for n, p in made.model.named_parameters()})
    assert all(torch.equal(seen[0][n], seen[2][n]) for n in seen[0])


def stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= step

    return Stop()


@pytest.mark.parametrize(
    ("architecture", "method", "code"),
    [
        ("bert", BitFit(), "activations-none-frozen"),
        ("bert", Lora(r=2), "activations-none-frozen"),
        ("llama", PromptTuning(num_virtual_tokens=3), "activations-none-frozen"),
        ("albert", HEAD, "activations-differ"),
        ("t5", Partial(last_layers=1), "activations-stacks"),
    ],
)
def test_what_cannot_work_is_refused(architecture: str, method: Any, code: str, tmp_path: Path) -> None:
    trainer = trainer_of(classifier(architecture, method), tmp_path)
    with pytest.raises(TunekitError, match=code):
        keep_frozen_activations(trainer)


def test_lora_on_the_last_layer_leaves_the_others_frozen() -> None:
    last = Lora(r=2, target_modules=("layer.1.attention.self.query", "layer.1.attention.self.value"))
    part = frozen_part(classifier("bert", last))
    assert (len(part.layers), part.above) == (1, 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_does_not_reach_the_frozen_layers(checkpointing: bool, tmp_path: Path) -> None:
    trainer = trainer_of(
        classifier("bert", TOP), tmp_path, **(plain_runs.checkpointing() if checkpointing else {}), max_steps=1
    )
    graph: list[bool] = []
    for layer in blocks(trainer.model)[0][1]:
        layer.output.dense.register_forward_hook(lambda m, a, out: graph.append(out.requires_grad))
    trainer.train()
    assert graph[:2] == [False, True]
    assert graph.count(False) == 1, "a frozen layer was computed again for backward"


def test_a_chunked_loss_does_without_the_frozen_layers_too(tiny_decoder: str, tmp_path: Path) -> None:
    def losses(kept: str, kernel: str) -> list[float]:
        plan = tunekit.Plan(
            model=tiny_decoder, task="causal-lm", method=TOP, output_dir=str(tmp_path / f"{kept}{kernel}"), max_steps=4,
            learning_rate=1e-3, frozen_activations=kept, loss_kernel=kernel,
        )  # fmt: skip
        made = tunekit.trainer(plan, train_dataset=ROWS["causal-lm"], disable_tqdm=True, logging_steps=1)
        asked: list[int] = []
        blocks(made.model)[0][1][0].self_attn.register_forward_hook(lambda *_: asked.append(1))
        made.train()
        assert bool(asked) == (kept == "recomputed")
        return [e["loss"] for e in made.state.log_history if "loss" in e]

    assert losses("cached", "chunked") == pytest.approx(losses("recomputed", "plain"), abs=1e-4)


@pytest.mark.parametrize("architecture", WORKS)
def test_a_method_says_beforehand_how_many_layers_stay_frozen(architecture: str) -> None:
    from tunekit.advisor.observe.model import model_facts

    facts = model_facts(zoo.config(architecture))
    assert TOP.frozen_layers(facts) == len(frozen_part(classifier(architecture, TOP)).layers) > 0
    assert Lora(r=2).frozen_layers(facts) == HEAD.frozen_layers(facts) == 0
