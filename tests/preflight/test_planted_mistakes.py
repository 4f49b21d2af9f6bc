"""One mistake a code, planted in a script that is clean otherwise: it is found, under its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_runs import BOS, EOS, Pad, checkpointing, lora, rows, trainer
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

import tunekit
import zoo
from tunekit.discovery import everything
from tunekit.errors import RunError
from tunekit.finding import Finding
from tunekit.preflight import inspect, of_trainer
from tunekit.preflight.versions import broken
from tunekit.task import Task

LM, CLS = "causal-lm", "sequence-classification"


def lm(folder: Path, change: Callable[[dict], dict], architecture: str = "gpt2", **more: Any) -> Trainer:
    return trainer(folder, architecture, LM, given={"train_dataset": [change(dict(r)) for r in rows(LM)], **more})


def cls(folder: Path, labels: Callable[[int], Any], **more: Any) -> Trainer:
    made = [{**r, "labels": labels(i)} for i, r in enumerate(rows(CLS))]
    return trainer(folder, given={"train_dataset": made, **more})


def long_prompt(row: dict) -> dict:
    ids = [*([5, 6, 7, 8] * 15), *row["input_ids"][-3:]]
    return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + [EOS]}


def cut(row: dict) -> dict:
    return {k: v[:9] for k, v in row.items()}


def few_rows(row: dict) -> dict:
    return {**row, "labels": [-100] * len(row["labels"])} if len(row["labels"]) < 10 else row


def unended(row: dict) -> dict:
    return {k: v[:-1] for k, v in row.items()}


def pad_is_eos(folder: Path) -> Trainer:
    return trainer(folder, "gpt2", LM, given={"data_collator": Pad(masked=EOS)})


def decoder_classifier(folder: Path, pad: int | None, tokenizer: Any = None) -> Trainer:
    model = zoo.build("llama", Task.named(CLS))
    model.config.pad_token_id = pad
    return trainer(folder, model=model, given={"processing_class": tokenizer})


def half(folder: Path) -> Trainer:
    return trainer(folder, model=zoo.build("bert", Task.named(CLS)).half())


def frozen(folder: Path, all_of_it: bool) -> Trainer:
    model = zoo.build("bert", Task.named(CLS))
    for name, p in model.named_parameters():
        p.requires_grad_(not (all_of_it or name.startswith("classifier")))
    return trainer(folder, model=model)


def unsaved(folder: Path) -> Trainer:
    model = lora("bert", CLS, task_type=None)
    model.base_model.model.classifier.weight.requires_grad_(True)
    return trainer(folder, model=model)


def early_optimizer(folder: Path, strangers: bool) -> Trainer:
    model = zoo.build("bert", Task.named(CLS))
    other = zoo.build("bert", Task.named(CLS)) if strangers else model
    held = [*model.parameters(), *other.parameters()] if strangers else [model.classifier.weight]
    return trainer(folder, model=model, given={"optimizers": (torch.optim.AdamW(held), None)})


def prefix_checkpointing(folder: Path) -> Trainer:
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(zoo.build("llama", Task.named(LM)), config)
    return trainer(folder, "llama", LM, model, **checkpointing())


def reentrant(folder: Path) -> Trainer:
    model = zoo.build("llama", Task.named(LM))
    model.model.embed_tokens.weight.requires_grad_(False)
    return trainer(folder, "llama", LM, model, **checkpointing(reentrant=True))


def added_tokens(folder: Path, tokenizer: Any) -> Trainer:
    model, token = lora("llama", LM), len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    model.get_base_model().resize_token_embeddings(token + 1)
    data = [
        {"input_ids": [*r["input_ids"][:-1], token, EOS], "labels": [*r["labels"][:-1], token, EOS]} for r in rows(LM)
    ]
    return trainer(folder, "llama", LM, model, given={"train_dataset": data, "processing_class": tokenizer})


def in_use(folder: Path) -> Trainer:
    (folder / "checkpoint-7").mkdir()
    return trainer(folder)


def not_a_number(folder: Path) -> Trainer:
    made = trainer(folder)
    made.model.classifier.bias.data[0] = float("nan")
    return made


def high_rate(folder: Path) -> Trainer:
    return trainer(folder, learning_rate=0.7)


def named(folder: Path) -> Trainer:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"input_ids": Sequence(Value("int64")), "labels": ClassLabel(names=["pos", "neg"])})
    model = zoo.build("bert", Task.named(CLS))
    model.config.id2label = {0: "neg", 1: "pos"}
    return trainer(folder, model=model, given={"train_dataset": Dataset.from_list(rows(CLS), features=features)})


class Fixed:
    """Estimates no run here could make: only the interval is asked for."""

    def __init__(self, low: int, high: int) -> None:
        self.interval = (low, high)


def big(folder: Path) -> Any:
    """A model of 70 billion weights, without them."""
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=80, intermediate_size=28672, vocab_size=32000)
    with torch.device("meta"):
        return replace(of_trainer(trainer(folder)), model=LlamaForCausalLM(config))


def many_logits(folder: Path) -> Any:
    made = trainer(folder, "gpt2", LM, given={"compute_metrics": lambda p: {}})
    return replace(of_trainer(made), num_eval=10**12)


def quantized(folder: Path, **on_args: Any) -> Any:
    from types import SimpleNamespace

    subject = of_trainer(trainer(folder))
    subject.model.is_quantized = True
    subject.model.config.quantization_config = SimpleNamespace(bnb_4bit_quant_storage="uint8")
    return replace(subject, args=SimpleNamespace(**{**vars(subject.args), "world_size": 1, **on_args}))


def spread(folder: Path) -> Any:
    from types import SimpleNamespace

    subject = of_trainer(trainer(folder))
    subject.model.hf_device_map = {"bert": 0, "classifier": 1}
    return replace(subject, args=SimpleNamespace(**{**vars(subject.args), "world_size": 2}))


def idle_under_ddp(folder: Path) -> Any:
    """A linear layer that nothing reads, in two processes that wait for its gradient."""
    from types import SimpleNamespace

    model = zoo.build("bert", Task.named(CLS))
    model.add_module("leftover", torch.nn.Linear(2, 2))
    subject = of_trainer(trainer(folder, model=model, ddp_find_unused_parameters=False))
    return replace(subject, args=SimpleNamespace(**{**vars(subject.args), "world_size": 2}))


def half_tied(folder: Path) -> Trainer:
    """An adapter beside output embeddings that learn, in a model whose configuration says that they are the input's too."""
    model = lora("llama", LM)
    model.get_base_model().config.tie_word_embeddings = True
    model.get_base_model().lm_head.weight.requires_grad_(True)
    return trainer(folder, "llama", LM, model)


def saved_run(folder: Path, model: Any = None, **settings: Any) -> Trainer:
    """A run with one checkpoint, and the Trainer that is to go on from it."""
    first = trainer(folder, model=model or lora("bert", CLS), save_steps=2, max_steps=2, disable_tqdm=True, **settings)
    first.train()
    return first


def resumed(folder: Path, given: Any = None, model: Any = None, **settings: Any) -> Trainer:
    saved_run(folder)
    return trainer(folder, model=model or lora("bert", CLS), given=given, resume_from_checkpoint=True, **settings)


def with_other_processes(folder: Path) -> Any:
    from types import SimpleNamespace

    subject = of_trainer(resumed(folder))
    return replace(subject, args=SimpleNamespace(**{**vars(subject.args), "world_size": 2}))


def with_zero(folder: Path) -> Any:
    from types import SimpleNamespace

    subject = of_trainer(resumed(folder))
    plugin = SimpleNamespace(zero_stage=3)
    return replace(subject, args=SimpleNamespace(**{**vars(subject.args), "world_size": 1, "deepspeed_plugin": plugin}))


PLANTED: dict[str, Callable[[Path], Any]] = {
    "labels-missing": lambda f: trainer(f, given={"train_dataset": [{"input_ids": r["input_ids"]} for r in rows(CLS)]}),
    "supervision-none": lambda f: lm(f, lambda r: {**r, "labels": [-100] * len(r["labels"])}),
    "supervision-rows": lambda f: lm(f, few_rows),
    "supervision-little": lambda f: lm(f, lambda r: {k: v[:1] * 200 + v for k, v in long_prompt(r).items()}),
    "truncation-cuts": lambda f: lm(f, cut),
    "stop-token-masked": pad_is_eos,
    "stop-token-missing": lambda f: lm(f, unended),
    "double-bos": lambda f: lm(
        f, lambda r: {"input_ids": [BOS, BOS, *r["input_ids"]], "labels": [-100, -100, *r["labels"]]}
    ),
    "padding-id-missing": lambda f: decoder_classifier(f, None),
    "padding-side": lambda f: trainer(f, "gpt2", LM, given={"data_collator": Pad("left")}),
    "labels-range": lambda f: cls(f, lambda i: i % 4),
    "labels-constant": lambda f: cls(f, lambda i: 1),
    "labels-order": named,
    "rows-leaked": lambda f: trainer(f, given={"eval_dataset": rows(CLS)[:10]}),
    "rows-duplicated": lambda f: trainer(f, given={"train_dataset": rows(CLS, 20) * 3}),
    "trainable-none": lambda f: frozen(f, True),
    "trainable-fp16": half,
    "head-frozen": lambda f: frozen(f, False),
    "trainable-unsaved": unsaved,
    "targets-unmatched": lambda f: trainer(f, model=lora("bert", CLS, target_modules=["query", "v_proj"])),
    "optimizer-misses": lambda f: early_optimizer(f, False),
    "optimizer-strangers": lambda f: early_optimizer(f, True),
    "learning-rate-implausible": high_rate,
    "length-over-context": lambda f: trainer(
        f, given={"train_dataset": [{**r, "input_ids": r["input_ids"] * 12} for r in rows(CLS)]}
    ),
    "tokens-over-vocabulary": lambda f: lm(f, lambda r: {**r, "input_ids": [*r["input_ids"][:-2], 100, EOS]}),
    "checkpointing-prefix": prefix_checkpointing,
    "checkpointing-no-input-gradients": reentrant,
    "device-map-launcher": spread,
    "quantized-full": quantized,
    "quantized-storage": lambda f: quantized(f, deepspeed="ds_zero3.json"),
    "evaluation-logits": many_logits,
    "accumulation-normalisation": lambda f: replace(
        of_trainer(trainer(f, "gpt2", LM, gradient_accumulation_steps=4)), takes_loss_arguments=False
    ),
    "ddp-unused": idle_under_ddp,
    "tied-weights": half_tied,
    "resume-world": with_other_processes,
    "resume-stage": with_zero,
    "resume-data": lambda f: resumed(f, given={"train_dataset": rows(CLS, 400)}),
    "resume-method": lambda f: resumed(f, model=lora("bert", CLS, target_modules=["key"])),
    "output-in-use": in_use,
    "disk-small": big,
    "weights-not-finite": not_a_number,
    "memory-over-device": lambda f: replace(of_trainer(trainer(f)), memory=Fixed(9, 11), device_bytes=8),
    "memory-near-device": lambda f: replace(of_trainer(trainer(f)), memory=Fixed(9, 11), device_bytes=10),
}
ELSEWHERE = {"padding-id-differs", "embeddings-unsaved", "versions-broken"}


def found(made: Any) -> tuple[Finding, ...]:
    return tunekit.check(made) if isinstance(made, Trainer) else inspect(made)


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_mistake_is_found_under_its_code(code: str, tmp_path: Path) -> None:
    seen = found(PLANTED[code](tmp_path))
    assert code in [f.code for f in seen]
    assert "check-failed" not in [f.code for f in seen]
    finding = next(f for f in seen if f.code == code)
    assert finding.seen
    assert finding.why
    assert finding.fix


def test_every_code_of_every_check_has_a_planted_mistake() -> None:
    codes = {c for check in everything("check").values() for c in check.codes}
    assert codes == {*PLANTED, *ELSEWHERE}


def test_the_tokenizers_pad_is_held_against_the_models(tiny_decoder: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    made = decoder_classifier(tmp_path, tokenizer.pad_token_id + 1, tokenizer)
    assert "padding-id-differs" in [f.code for f in tunekit.check(made)]


def test_added_tokens_that_peft_does_not_keep_are_told(tiny_decoder: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = added_tokens(tmp_path, AutoTokenizer.from_pretrained(tiny_decoder))
    assert "embeddings-unsaved" in [f.code for f in tunekit.check(made)]


def test_versions_that_break_each_other_are_told() -> None:
    assert [f.code for f in broken({"adapters": "1.3.0", "transformers": "5.23.0"})] == ["versions-broken"]
    assert [*broken({"adapters": "1.3.0", "transformers": "4.57.0"})] == []


def test_the_supervised_part_is_marked_in_the_sample(tmp_path: Path) -> None:
    finding = next(f for f in found(PLANTED["supervision-little"](tmp_path)) if f.code == "supervision-little")
    assert "[[2]]" in finding.seen


def test_the_callback_stops_a_plain_trainer_before_its_first_step(tmp_path: Path) -> None:
    made = cls(tmp_path, lambda i: i % 4, callbacks=[tunekit.callbacks.Preflight()])
    with pytest.raises(RunError) as caught:
        made.train()
    assert caught.value.codes == ("labels-range",)
    assert made.state.global_step == 0


def test_a_warning_does_not_stop_the_run(tmp_path: Path) -> None:
    preflight = tunekit.callbacks.Preflight()
    made = trainer(tmp_path, given={"eval_dataset": rows(CLS)[:10], "callbacks": [preflight]}, save_strategy="no")
    made.train()
    assert made.state.global_step == 2
    assert [f.code for f in preflight.findings if f.severity == "error"] == []


def test_resuming_as_it_was_is_clean(tmp_path: Path) -> None:
    assert [str(f) for f in found(resumed(tmp_path))] == []


@pytest.mark.parametrize("method", [tunekit.methods.Full(), tunekit.methods.Lora(r=2), tunekit.methods.BitFit()])
def test_resuming_our_own_formats_is_clean_and_another_method_is_told(method: Any, tmp_path: Path) -> None:
    def prepared(what: Any) -> Any:
        return tunekit.prepare(zoo.build("bert", Task.named(CLS)), what, CLS)

    saved_run(tmp_path, prepared(method))
    again = trainer(tmp_path, model=prepared(method), resume_from_checkpoint=True)
    assert [str(f) for f in found(again)] == []
    other = tunekit.methods.Lora(r=4) if method.slug == "lora" else tunekit.methods.BottleneckAdapter()
    wrong = trainer(tmp_path, model=prepared(other), resume_from_checkpoint=True)
    assert "resume-method" in [f.code for f in found(wrong)]


def test_rows_of_the_same_number_are_told_apart_by_the_record(tmp_path: Path) -> None:
    saved_run(tmp_path, given={"callbacks": [tunekit.callbacks.RunRecord()]})
    same = trainer(tmp_path, model=lora("bert", CLS), resume_from_checkpoint=True)
    assert [str(f) for f in found(same)] == []
    other = trainer(
        tmp_path, model=lora("bert", CLS), given={"train_dataset": rows(CLS, seed=5)}, resume_from_checkpoint=True
    )
    assert "resume-data" in [f.code for f in found(other)]


def test_an_unused_parameter_is_no_matter_where_nobody_waits_for_it(tmp_path: Path) -> None:
    model = zoo.build("bert", Task.named(CLS))
    model.add_module("leftover", torch.nn.Linear(2, 2))
    assert [str(f) for f in found(trainer(tmp_path, model=model))] == []
