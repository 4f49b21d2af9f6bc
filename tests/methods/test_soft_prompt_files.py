"""Prompts on disk: PEFT's files where PEFT gives the same logits, and P-tuning's network folded away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from soft_prompts import ANSWER, CLASSIFY, REWRITE, WRITE, WRITERS, close, ids_of, plain_peft, unlabelled, with_noise

import zoo
from tunekit.attach import load, prepare, prepared, unload
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.soft_prompt import folded
from tunekit.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # plain PEFT 0.21


# ---------------------------------------------------------------------- PEFT
@pytest.mark.parametrize("kind", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize(("architecture", "task"), ids_of(WRITERS))
def test_a_prompt_that_plain_peft_saved_gives_pefts_logits(
    architecture: str, task: Task, kind: str, tmp_path: Path
) -> None:
    plain = plain_peft(architecture, task, tmp_path, kind)
    model = load(zoo.build(architecture, task), tmp_path)
    assert prepared(model).method.slug == kind
    inputs = unlabelled(task)
    for side in (inputs, {k: v.flip(1) if k != "decoder_input_ids" else v for k, v in inputs.items()}):
        expected, found = zoo.logits(plain, side), zoo.logits(model, side)
        expected, seen = expected[:, -found.shape[1] :], side["attention_mask"].bool()
        assert close(found, expected) if task is REWRITE else close(found[seen], expected[seen])
    if not (model.config.is_encoder_decoder):
        labelled = zoo.batch(task)
        labelled["labels"][:, 0] = -100  # PEFT's last virtual token must say the first real one
        assert close(model(**labelled).loss, plain(**labelled).loss)


def test_a_prompt_that_peft_answers_for_differently_is_left_to_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    plain = plain_peft("bert", CLASSIFY, tmp_path, "p-tuning")
    model, inputs = load(zoo.build("bert", CLASSIFY), tmp_path), zoo.batch(CLASSIFY)
    assert isinstance(model, PeftModel)
    assert close(zoo.logits(model, inputs), zoo.logits(plain, inputs))
    assert type(unload(model)).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("method", [PromptTuning(), PTuning()], ids=["prompt", "p"])
@pytest.mark.parametrize(
    ("architecture", "task", "positions", "is_pefts"),
    [
        ("bert", "sequence-classification", None, False),
        ("gpt2", "token-classification", None, False),
        ("gpt2", "causal-lm", None, True),
        ("gpt2", "causal-lm", "natural", False),
        ("llama", "causal-lm", "natural", True),  # only distances count
        ("t5", "seq2seq", None, True),
        ("bart", "seq2seq", None, True),
        ("bart", "sequence-classification", None, False),
    ],
)
def test_the_folder_is_pefts_where_peft_gives_the_same_logits(
    architecture: str, task: str, positions: Any, is_pefts: bool, method: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    kind, inputs = Task.named(task), zoo.batch(Task.named(task))
    given = type(method)(num_virtual_tokens=5, positions=positions)
    model = prepare(zoo.build(architecture, kind), given, kind)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists() == is_pefts
    expected = zoo.logits(model, inputs)
    again = load(zoo.build(architecture, kind), tmp_path)
    assert close(zoo.logits(again, inputs), expected)
    assert type(prepared(again).method) is type(method)
    if is_pefts:
        plain = PeftModel.from_pretrained(zoo.build(architecture, kind), str(tmp_path))
        assert close(zoo.logits(plain, inputs)[:, -expected.shape[1] :], expected)


def test_a_scale_outside_the_embedding_keeps_a_prompt_out_of_pefts_files(tmp_path: Path) -> None:
    model = with_noise("t5", REWRITE)
    assert (model.save_pretrained(tmp_path / "a"), (tmp_path / "a" / "adapter_config.json").exists())[1]
    model.encoder.embed_scale = 4.0
    model.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "adapter_config.json").exists()


# ---------------------------------------------------------------------- folding
@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
@pytest.mark.parametrize(("architecture", "task"), ids_of([("albert", ANSWER), ("gpt2", WRITE), ("t5", REWRITE)]))
def test_the_network_is_folded_away_on_saving(architecture: str, task: Task, encoder: Any, tmp_path: Path) -> None:
    method = PTuning(num_virtual_tokens=5, encoder=encoder, encoder_dropout=0.5)
    model = prepare(zoo.build(architecture, task), method, task)
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(task))
    model.save_pretrained(tmp_path / "done")
    model.save_pretrained(tmp_path / "checkpoint-7")
    name = "adapter_model" if not task.has_head else "model"
    done, checkpoint = (
        load_file(tmp_path / "done" / f"{name}.safetensors"),
        load_file(tmp_path / "checkpoint-7" / "model.safetensors"),
    )
    assert sum(t.numel() for t in done.values()) < sum(t.numel() for t in checkpoint.values())
    assert json.loads((tmp_path / "done" / "tunekit.json").read_text())["method"]["encoder"] is None
    for folder, kind in (("done", None), ("checkpoint-7", encoder)):
        again = load(zoo.build(architecture, task), tmp_path / folder)
        assert prepared(again).method.encoder == kind
        assert close(zoo.logits(again, zoo.batch(task)), zoo.logits(model, zoo.batch(task)))


def test_a_state_that_the_host_gathered_is_what_is_saved(tmp_path: Path) -> None:
    model = prepare(zoo.build("llama", WRITE), PTuning(num_virtual_tokens=5), WRITE)
    gathered = {k: v + 0.1 for k, v in model.state_dict().items()}
    PTuning().save(model, tmp_path, gathered)
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], folded(model, gathered))
    assert not close(folded(model, gathered), folded(model))
