"""Scripts that do nothing wrong get no finding, and reading them changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_runs import checkpointing, lora, rows, trainer
from transformers import Trainer

import tunekit
import zoo
from tunekit.task import Task


def regression(folder: Path) -> Trainer:
    model = zoo.build("bert", Task.named("sequence-classification"), num_labels=1)
    model.config.problem_type = "regression"
    return trainer(
        folder, model=model, given={"train_dataset": rows("regression"), "eval_dataset": rows("regression", 9, 1)}
    )


def prompt(folder: Path) -> Trainer:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(zoo.build("gpt2", Task.named("causal-lm")), config)
    return trainer(folder, "gpt2", "causal-lm", model, learning_rate=0.05)


def ours(folder: Path) -> Trainer:
    model = zoo.build("roberta", Task.named("sequence-classification"))
    return trainer(folder, model=tunekit.prepare(model, tunekit.methods.Lora(r=2), "sequence-classification"))


def checkpointed(folder: Path) -> Trainer:
    return trainer(folder, "llama", "causal-lm", lora("llama", "causal-lm"), **checkpointing())


def sft(folder: Path, decoder: str) -> Trainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    words = ["alpha", "beta", "gamma", "delta"]
    texts = [{"text": " ".join([words[(i + j) % 4] for j in range(2 + i % 7)]) + f" {i}"} for i in range(30)]
    args = SFTConfig(
        str(folder), report_to="none", use_cpu=True, max_steps=1, max_length=60, bf16=False, learning_rate=1e-4
    )
    return SFTTrainer(decoder, args=args, train_dataset=Dataset.from_list(texts))


CLEAN: dict[str, Callable[[Path], Trainer]] = {
    "classification, full": lambda f: trainer(f, "bert"),
    "classification, PEFT's LoRA": lambda f: trainer(f, model=lora("bert", "sequence-classification")),
    "classification, our LoRA": ours,
    "classification with a decoder": lambda f: trainer(f, "llama"),
    "regression": regression,
    "token classification": lambda f: trainer(f, "modernbert", "token-classification"),
    "question answering": lambda f: trainer(f, "bert", "question-answering"),
    "causal LM, full": lambda f: trainer(f, "gpt2", "causal-lm"),
    "causal LM, LoRA": lambda f: trainer(f, "llama", "causal-lm", lora("llama", "causal-lm")),
    "causal LM, LoRA, checkpointing": checkpointed,
    "causal LM, prompt tuning": prompt,
    "seq2seq T5": lambda f: trainer(f, "t5", "seq2seq"),
    "seq2seq BART": lambda f: trainer(f, "bart", "seq2seq"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_script_gets_no_finding(name: str, tmp_path: Path) -> None:
    assert [str(f) for f in tunekit.check(CLEAN[name](tmp_path))] == []


def test_labels_in_turns_are_not_taken_for_constant_ones(tmp_path: Path) -> None:
    many = rows("sequence-classification", 500)  # about twice as many as are looked at, labelled 0, 1, 0, 1, ...
    found = tunekit.check(trainer(tmp_path, given={"train_dataset": many, "eval_dataset": None}))
    assert [str(f) for f in found] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_a_clean_sft_script_gets_no_finding(tiny_decoder: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    assert [str(f) for f in tunekit.check(sft(tmp_path, tiny_decoder))] == []


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()


def test_checking_draws_no_random_number_and_changes_no_weight(tmp_path: Path) -> None:
    class Draws(list):
        def __getitem__(self, index: Any) -> Any:
            random.random(), np.random.rand(), torch.rand(1)
            return super().__getitem__(index)

    made = trainer(tmp_path, given={"train_dataset": Draws(rows("sequence-classification"))})
    weights, before = {k: v.clone() for k, v in made.model.state_dict().items()}, states()
    tunekit.check(made)
    assert states() == before
    assert all(torch.equal(v, weights[k]) for k, v in made.model.state_dict().items())
    assert made.optimizer is None


def test_anything_else_is_refused_in_words() -> None:
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.check("plan.yaml")
    assert caught.value.codes == ("check-kind",)
