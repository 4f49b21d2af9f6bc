"""`tunekit.merge`: a plain model that answers as what was trained, or by a difference that is measured and said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tunekit
from tunekit.cli.main import app
from tunekit.errors import MissingError, OccupiedError, UnsupportedError

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes, and a base of 4 or 8 bits"
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama whose layers are wide enough to be quantised in blocks of 64."""
    from conftest import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=160, max_position_embeddings=64, pad_token_id=0, eos_token_id=5, bos_token_id=5, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, chat=True)
    return str(folder)


def trained(model: str, folder: Path, task: str = "causal-lm", method: Any = None, **changes: Any) -> Path:
    """The output folder of a short run."""
    rows = [{"text": f"good sun {i} red", **({"label": i % 2} if task != "causal-lm" else {})} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    plan = tunekit.Plan(
        model=model, task=task, method=method or tunekit.methods.Lora(r=4), max_steps=4, learning_rate=3e-2,
        data=tunekit.DataSpec(path=str(folder / "rows.jsonl")), output_dir=str(folder / "run"), **changes,
    )  # fmt: skip
    tunekit.run(plan, disable_tqdm=True, log_level="error")
    return folder / "run"


def answers(model: Any) -> torch.Tensor:
    ids = torch.arange(6, 26).view(2, 10)
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def test_a_merged_model_answers_as_the_adapter_does_without_tunekit(decoder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained(decoder, tmp_path)
    told = tunekit.merge(run, tmp_path / "merged")
    assert (told.into, told.quantization, told.measured_on) == ("base", None, "8 training rows")
    assert told.max_difference <= 1e-4 * told.largest_logit
    assert told.same_answer == 1.0
    attached = tunekit.load(AutoModelForCausalLM.from_pretrained(decoder), run)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(answers(attached), answers(alone), atol=1e-4)
    assert not torch.allclose(answers(AutoModelForCausalLM.from_pretrained(decoder)), answers(alone), atol=1e-2)
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    with pytest.raises(OccupiedError, match="output-occupied"):
        tunekit.merge(run, tmp_path / "merged")


def test_the_head_of_a_classifier_comes_along(tiny_encoder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = trained(tiny_encoder, tmp_path, "sequence-classification")
    told = tunekit.merge(run, tmp_path / "merged")
    assert told.max_difference <= 1e-4 * max(1.0, told.largest_logit)
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").classifier.weight
    saved = next(v for k, v in load_file(run / "adapter_model.safetensors").items() if k.endswith("classifier.weight"))
    assert torch.equal(head, saved)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_run_is_merged_into_whole_weights_and_the_difference_is_said(
    quantization: str, decoder: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    run = trained(decoder, tmp_path, quantization=quantization)
    base = tunekit.merge(run, tmp_path / "base")
    kept = tunekit.merge(run, tmp_path / "kept", into="dequantized")
    for told, folder in ((base, "base"), (kept, "kept")):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert "quantization_config" not in config
        weights = load_file(tmp_path / folder / "model.safetensors")
        assert {v.dtype for v in weights.values()} == {torch.float32}
        assert told.quantization == quantization
        assert told.max_difference > 0
        answers(AutoModelForCausalLM.from_pretrained(tmp_path / folder))
    # What was trained on the quantised weights is answered best by these.
    assert kept.mean_difference < base.mean_difference
    if quantization == "nf4":
        assert kept.max_difference <= 1e-4 * kept.largest_logit


def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="merge-plan"):
        tunekit.merge(tmp_path, tmp_path / "out")
    prefix = tunekit.Plan(model="nowhere", task="causal-lm", method=tunekit.methods.PrefixTuning())
    prefix.save(tmp_path / "plan.yaml")
    with pytest.raises(UnsupportedError, match="method-no-merge"):
        tunekit.merge(tmp_path, tmp_path / "out")
    prefix.replace(method=tunekit.methods.Lora()).save(tmp_path / "plan.yaml", overwrite=True)
    with pytest.raises(UnsupportedError, match="merge-not-quantized"):
        tunekit.merge(tmp_path, tmp_path / "out", into="dequantized")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_difference(tiny_encoder: str, tmp_path: Path) -> None:
    run = trained(tiny_encoder, tmp_path, "sequence-classification")
    result = CliRunner().invoke(app, ["merge", str(run), str(tmp_path / "merged")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "apart on average" in result.stdout
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert CliRunner().invoke(app, ["merge", str(run), str(tmp_path / "merged")]).exit_code == 2


@pytest.mark.parametrize("method", [tunekit.methods.Full(), tunekit.methods.Lora(r=4)], ids=["full", "lora"])
def test_a_run_by_prompts_comes_back_as_the_language_model_that_it_is(
    tiny_masked: str, tmp_path: Path, method: Any
) -> None:
    from transformers import AutoModelForMaskedLM

    words = {"0": ["red"], "1": ["blue"]}
    prompts = tunekit.objectives.PromptLearning(templates=("{text} {mask}",), verbalizer=words)
    run = trained(tiny_masked, tmp_path, "sequence-classification", method, objective=prompts)
    opened = tunekit.reopen(run).model
    merged = tunekit.merge(run, tmp_path / "merged")
    assert merged.same_answer == 1.0
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(answers(plain), answers(opened), atol=1e-4)
    untrained = AutoModelForMaskedLM.from_pretrained(tiny_masked)
    assert not torch.allclose(answers(plain), answers(untrained), atol=1e-2)
