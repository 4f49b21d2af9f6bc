"""Students are made of their teacher's layers, on every architecture, and load as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import zoo
from tunekit.attach import prepare
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.lora import Lora
from tunekit.structure import blocks
from tunekit.student import make_student
from tunekit.task import Task

CELLS = [(a, "causal-lm") for a in ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral")] + [
    ("t5", "seq2seq"), ("bart", "seq2seq"), ("bert", "sequence-classification"), ("roberta", "token-classification"),
    ("electra", "sequence-classification"), ("deberta-v2", "sequence-classification"), ("distilbert", "question-answering"),
    ("modernbert", "sequence-classification"), ("bart", "sequence-classification"),
]  # fmt: skip


def deep(architecture: str, task: str, layers: int) -> torch.nn.Module:
    """A teacher of more layers than the zoo's."""
    config = zoo.config(architecture, task)
    for name in ("encoder_layers", "decoder_layers", "num_decoder_layers", "num_hidden_layers"):
        if hasattr(config, name):
            setattr(config, name, layers)
    torch.manual_seed(0)
    kind = type(config)
    values = {
        k: v for k, v in config.to_dict().items() if k not in ("layer_types", "num_layers") or architecture == "t5"
    }
    made = getattr(transformers, Task.named(task).auto_class).from_config(kind(**values))
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


@pytest.mark.parametrize(("architecture", "task"), CELLS)
def test_a_student_answers_as_its_teacher_would_without_the_other_layers(
    architecture: str, task: str, tmp_path: Path
) -> None:
    teacher = deep(architecture, task, 5)
    student = make_student(teacher, 2)
    kept = set(student.layers.values())
    assert kept == {(1, 3)}
    assert student.num_parameters < student.teacher_parameters
    batch = zoo.batch(Task.named(task))
    before = zoo.logits(teacher, batch)
    want = student.model
    student.model.save_pretrained(tmp_path / "student")
    loaded, info = getattr(transformers, Task.named(task).auto_class).from_pretrained(tmp_path / "student", output_loading_info=True)  # fmt: skip
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(zoo.logits(loaded, batch), zoo.logits(want, batch))
    assert torch.equal(zoo.logits(teacher, batch), before)
    # The kept layers are the teacher's: putting them out of the teacher itself gives the same answer.
    for _, layers in blocks(teacher):
        for i in reversed(range(len(layers))):
            if i not in (0, 2):
                del layers[i]
    for module in teacher.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False  # its layers keep their numbers
        for name in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"):
            if config is not None and hasattr(config, name):
                setattr(config, name, 2)
    assert torch.allclose(zoo.logits(teacher, batch), zoo.logits(want, batch), atol=1e-6)


def test_a_student_has_weights_of_its_own_and_says_its_size() -> None:
    teacher = deep("bert", "sequence-classification", 6)
    student = make_student(teacher, 3)
    mine = {p.data_ptr() for p in student.model.parameters()}
    assert not mine & {p.data_ptr() for p in teacher.parameters()}
    assert student.layers == {"bert.encoder.layer": (1, 3, 5)}
    share = student.num_parameters / student.teacher_parameters
    assert str(student).endswith(f"parameters ({share:.0%}); bert.encoder.layer 1, 3, 5")
    seq2seq = make_student(deep("t5", "seq2seq", 4), 1, num_encoder_layers=2)
    assert seq2seq.layers == {"encoder.block": (1, 3), "decoder.block": (1,)}


def test_what_cannot_be_a_student_is_refused() -> None:
    bert = deep("bert", "sequence-classification", 4)
    for number in (0, 5):
        with pytest.raises(InvalidError) as caught:
            make_student(bert, number)
        assert caught.value.codes == ("student-layers",)
    adapted = prepare(bert, Lora(r=2), Task.named("sequence-classification"))
    for unfit in (zoo.build("albert", Task.named("sequence-classification")), adapted):
        with pytest.raises(UnsupportedError) as refused:
            make_student(unfit, 1)
        assert refused.value.codes == ("student-architecture",)
