"""A run's folder opens again as the model that it left, and leaves in the forms that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tunekit
from tunekit.record_text import scores_of

METHODS = {
    "lora": tunekit.methods.Lora(r=4),
    "bottleneck-adapter": tunekit.methods.BottleneckAdapter(),
    "full": tunekit.methods.Full(),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines = [
        json.dumps({"text": f"the {'good' if i % 2 else 'bad'} sun {i}", "label": ("bad", "good")[i % 2]})
        for i in range(24)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines[:16]))
    (folder / "validation.jsonl").write_text("\n".join(lines[16:]))
    return folder


@pytest.fixture(scope="module")
def run_of(tiny_encoder: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def run(slug: str) -> Path:
        if slug not in made:
            made[slug] = tmp_path_factory.mktemp("runs") / slug
            plan = tunekit.Plan(
                model=tiny_encoder, task="sequence-classification", method=METHODS[slug], data=tunekit.DataSpec(path=str(rows)),
                output_dir=str(made[slug]), max_steps=2, learning_rate=1e-3,
            )  # fmt: skip
            tunekit.run(plan, disable_tqdm=True)
        return made[slug]

    return run


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    batch = tokenizer(["the good sun 3", "the bad moon"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("slug", METHODS)
def test_a_run_opens_again_with_its_classes(run_of: Any, slug: str) -> None:
    model, tokenizer, plan = tunekit.reopen(run_of(slug))
    assert plan.method == METHODS[slug]
    assert plan.data is not None
    assert plan.data.label_names == ("bad", "good")
    assert logits(model, tokenizer).shape == (2, 2)
    assert not model.training


def test_a_reopened_adapter_is_the_saved_one(run_of: Any) -> None:
    from peft import get_peft_model_state_dict

    folder = run_of("lora")
    model, _, _ = tunekit.reopen(folder)
    saved, live = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert saved
    assert saved.keys() == live.keys()
    for name, value in saved.items():
        assert torch.equal(live[name], value)


def test_peft_gets_a_folder_that_it_attaches_itself(run_of: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tunekit.export(run_of("lora"), tmp_path / "peft", "peft")
    base = AutoModelForSequenceClassification.from_pretrained(tunekit.Plan.load(out / "plan.yaml").model, num_labels=2)
    theirs = PeftModel.from_pretrained(base, str(out))
    ours, tokenizer, _ = tunekit.reopen(run_of("lora"))
    torch.testing.assert_close(logits(theirs, AutoTokenizer.from_pretrained(out)), logits(ours, tokenizer))


@pytest.mark.parametrize("slug", ["lora", "full"])
def test_merged_weights_load_with_plain_transformers_and_say_the_same(run_of: Any, slug: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tunekit.export(run_of(slug), tmp_path / "merged", "merged")
    theirs = AutoModelForSequenceClassification.from_pretrained(out)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    ours, tokenizer, _ = tunekit.reopen(run_of(slug))
    torch.testing.assert_close(
        logits(theirs, AutoTokenizer.from_pretrained(out)), logits(ours, tokenizer), atol=1e-5, rtol=0
    )


def test_adapterhub_gets_its_own_format_and_it_comes_back(run_of: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    out = tunekit.export(run_of("bottleneck-adapter"), tmp_path / "hub", "adapterhub")
    ours, tokenizer, plan = tunekit.reopen(run_of("bottleneck-adapter"))
    base = AutoModelForSequenceClassification.from_pretrained(plan.model, num_labels=2)
    back = tunekit.load(base, out, task=plan.task)
    torch.testing.assert_close(logits(back, tokenizer), logits(ours, tokenizer), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("slug", "form", "code"),
    [
        ("bottleneck-adapter", "peft", "export-peft"),
        ("bottleneck-adapter", "merged", "method-no-merge"),
        ("lora", "adapterhub", "export-adapterhub"),
        ("lora", "gguf", "export-form"),
    ],
)
def test_a_form_that_cannot_say_it_is_refused_and_nothing_is_written(
    run_of: Any, slug: str, form: Any, code: str, tmp_path: Path
) -> None:
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.export(run_of(slug), tmp_path / "out", form)
    assert caught.value.codes == (code,)
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_left_alone(run_of: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.export(run_of("lora"), tmp_path)
    assert caught.value.codes == ("output-occupied",)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(tunekit.TunekitError) as caught:
            tunekit.reopen(folder)
        assert caught.value.codes == ("run-missing",)


@pytest.mark.parametrize("slug", METHODS)
def test_every_run_leaves_a_card_with_its_scores(run_of: Any, slug: str) -> None:
    folder = run_of(slug)
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    meta, record = yaml.safe_load(head), json.loads((folder / "record.json").read_text())
    assert meta["pipeline_tag"] == "text-classification"
    assert {"tunekit", slug} <= set(meta["tags"])
    metrics = {m["type"]: m["value"] for m in meta["model-index"][0]["results"][0]["metrics"]}
    assert metrics["accuracy"] == round(record["final"]["eval_accuracy"], 4) == round(scores_of(record)["accuracy"], 4)
    assert str(Path.home()) not in body
    assert "tunekit.reopen" in body
