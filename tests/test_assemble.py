"""A plan becomes a Trainer that learns, for every task, from rows to what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tunekit
from tunekit.errors import OccupiedError, TunekitError, UnsupportedError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora

COLOURS = ["red", "blue"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sequence-classification": [{"text": f"the {COLOURS[i % 2]} sun {i % 50}", "label": i % 2} for i in range(32)],
    "token-classification": [
        {"tokens": ["alice", "went", "to", ["paris", "rome"][i % 2]], "tags": ["B-PER", "O", "O", "B-LOC"]}
        for i in range(32)
    ],
    "question-answering": [
        {
            "context": f"alice went to {['paris', 'rome'][i % 2]}",
            "question": "where ?",
            "answers": {"text": [["paris", "rome"][i % 2]], "answer_start": [14]},
        }
        for i in range(32)
    ],
    "multiple-choice": [
        {"text": "the sun is", "choices": ["red", "up"] if i % 2 else ["up", "red"], "label": i % 2} for i in range(32)
    ],
    "causal-lm": [{"prompt": "what is up ?", "completion": " the moon"} for _ in range(32)],
    "seq2seq": [{"source": f"{COLOURS[i % 2]} sun", "target": f"{COLOURS[i % 2]}"} for i in range(32)],
}


def folder_of(task: str, request: pytest.FixtureRequest) -> str:
    names = {"causal-lm": "tiny_decoder", "seq2seq": "tiny_seq2seq"}
    return request.getfixturevalue(names.get(task, "tiny_encoder"))


def a_plan(task: str, model: str, output: Path, **changes: Any) -> tunekit.Plan:
    values = {"learning_rate": 2e-3, "max_steps": 64, "method": Full(), "warmup": 0.0, **changes}
    return tunekit.Plan(model=model, task=task, output_dir=str(output), **values)


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("method", [Full(), Lora(r=4)], ids=["full", "lora"])
def test_every_task_learns_and_reloads(task: str, method: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    steps = {} if method.slug == "full" else {"max_steps": 80, "learning_rate": 4e-3}
    plan = a_plan(task, folder_of(task, request), tmp_path / "run", method=method, **steps)
    trainer = tunekit.trainer(
        plan, train_dataset=ROWS[task], eval_dataset=ROWS[task][:8], logging_steps=4, disable_tqdm=True
    )
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[-1] < 0.8 * losses[0], losses
    scores = trainer.evaluate()
    assert scores["eval_loss"] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(2)])
    fresh = reload(plan, trainer, tmp_path / "saved")
    with torch.no_grad():
        want, got = trainer.model.eval()(**batch), fresh.eval()(**batch)
    assert torch.allclose(want["loss"], got["loss"], atol=1e-5)


def reload(plan: tunekit.Plan, trainer: Any, saved: Path) -> torch.nn.Module:
    import transformers

    auto = getattr(transformers, tunekit.Task.named(plan.task).auto_class)
    if plan.method.slug == "full":
        return auto.from_pretrained(saved)
    labels = getattr(trainer.model.config, "num_labels", 2)
    base = auto.from_pretrained(plan.model, **({} if plan.task in ("causal-lm", "seq2seq") else {"num_labels": labels}))
    return tunekit.load(base, saved)


def test_the_head_is_drawn_with_the_plans_seed(tiny_encoder: str, tmp_path: Path) -> None:
    heads = []
    for _ in range(2):
        plan = a_plan("sequence-classification", tiny_encoder, tmp_path / "run", seed=3)
        torch.rand(5)
        trainer = tunekit.trainer(plan, train_dataset=ROWS["sequence-classification"])
        heads.append(trainer.model.classifier.weight.detach().clone())
    assert torch.equal(*heads)


def test_an_output_folder_that_holds_something_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    plan = a_plan("sequence-classification", tiny_encoder, tmp_path / "run")
    with pytest.raises(OccupiedError, match="output-occupied"):
        tunekit.trainer(plan, train_dataset=ROWS["sequence-classification"])
    tunekit.trainer(plan, train_dataset=ROWS["sequence-classification"], overwrite=True)


def test_a_task_the_architecture_cannot_do_is_refused(tiny_seq2seq: str, tmp_path: Path) -> None:
    plan = a_plan("multiple-choice", tiny_seq2seq, tmp_path / "run")
    with pytest.raises(UnsupportedError, match="task-architecture"):
        tunekit.trainer(plan, train_dataset=ROWS["multiple-choice"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], "data-empty"),
        ([{"words": "a", "label": 0}], "column-missing"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": -7}], "labels-range"),
    ],
)
def test_bad_rows_are_one_clear_error(rows: Any, code: str, tiny_encoder: str, tmp_path: Path) -> None:
    plan = a_plan("sequence-classification", tiny_encoder, tmp_path / "run")
    with pytest.raises(TunekitError) as caught:
        tunekit.trainer(plan, train_dataset=rows)
    assert code in caught.value.codes
    assert not (tmp_path / "run").exists()


def test_weights_that_belong_to_another_model_are_refused(tiny_encoder: str, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "mixed"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    plan = a_plan("sequence-classification", str(folder), tmp_path / "run")
    with pytest.raises(UnsupportedError, match="model-shape"):
        tunekit.trainer(plan, train_dataset=ROWS["sequence-classification"])


def test_torn_weights_are_refused_in_words(tiny_encoder: str, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "torn"
    shutil.copytree(tiny_encoder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    plan = a_plan("sequence-classification", str(folder), tmp_path / "run")
    with pytest.raises(TunekitError, match="model-unreadable"):
        tunekit.trainer(plan, train_dataset=ROWS["sequence-classification"])


def test_lora_trains_on_a_quantised_base(tiny_decoder: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plan = a_plan("causal-lm", tiny_decoder, tmp_path / "run", method=Lora(r=4), quantization="nf4", learning_rate=1e-2)
    trainer = tunekit.trainer(plan, train_dataset=ROWS["causal-lm"], logging_steps=1)
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[-1] < losses[0]
    assert any(type(m).__name__ == "Linear4bit" for m in trainer.model.modules())


# TRL sets transformers' deprecated name by default.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_mixin_composes_with_trls_sft_trainer(tiny_decoder: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Ours(tunekit.TrainerMixin, trl.SFTTrainer):
        pass

    model = tunekit.prepare(
        AutoModelForCausalLM.from_pretrained(tiny_decoder), Lora(r=4, loraplus_lr_ratio=16.0), "causal-lm"
    )
    args = trl.SFTConfig(
        str(tmp_path), max_steps=3, logging_steps=1, report_to="none", use_cpu=True, learning_rate=1e-2, bf16=False,
        max_length=32,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(ROWS["causal-lm"])
    trainer = Ours(model, args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(tiny_decoder))
    trainer.train()
    rates = sorted({round(g["initial_lr"], 6) for g in trainer.optimizer.param_groups})
    assert rates == [0.01, 0.16]


def test_what_cannot_work_is_refused_before_weights_or_rows_are_read(tmp_path: Path) -> None:
    from transformers import AlbertConfig

    # A configuration alone: weights and a tokenizer would be missed if they were looked for.
    AlbertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, embedding_size=8, vocab_size=50, num_hidden_layers=2
    ).save_pretrained(tmp_path / "albert")  # fmt: skip
    plan = a_plan(
        "sequence-classification", str(tmp_path / "albert"), tmp_path / "run", activation_checkpointing=True,
        method=tunekit.methods.PrefixTuning(num_virtual_tokens=1_000),
    )  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        tunekit.trainer(plan, train_dataset=[{"text": "one", "label": 0}])
    assert {f.code for f in caught.value.findings} >= {"architecture-no-checkpointing"}
    assert not (tmp_path / "run").exists()


def test_predict_answers_for_the_rows_in_their_order(tiny_encoder: str, tmp_path: Path) -> None:
    rows = [{"text": "good " * (1 + 7 * i % 11), "label": i % 3} for i in range(24)]
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=tunekit.methods.Full(), output_dir=str(tmp_path / "out"),
        per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer = tunekit.trainer(plan, train_dataset=rows, eval_dataset=rows)
    assert trainer.args.train_sampling_strategy == "group_by_length"
    assert trainer.predict(trainer.eval_dataset).label_ids.tolist() == [row["label"] for row in rows]
