"""What is read off a model: exact counts against the built model, the sides, the tasks, and every way to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.advisor.observe.model import canonical, model_facts, rebuilt
from tunekit.errors import InvalidError, MissingError, TunekitError, UnreadableError, UnsupportedError


def configs() -> dict[str, object]:
    import transformers as t

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    return {
        "bert": t.BertConfig(**small),
        "roberta": t.RobertaConfig(**small, max_position_embeddings=66, pad_token_id=1),
        "modernbert": t.ModernBertConfig(**small, pad_token_id=0),
        "llama": t.LlamaConfig(**small, max_position_embeddings=128),
        "mixtral": t.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=4),
        "gpt2": t.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=99, n_positions=77),
        "t5": t.T5Config(d_model=32, d_ff=64, d_kv=8, num_layers=3, num_decoder_layers=2, num_heads=4, vocab_size=99),
        "bart": t.BartConfig(
            d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=99,
            encoder_attention_heads=4, decoder_attention_heads=4,
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "side", "layers", "context", "bias"),
    [
        ("bert", "encoder", 3, 512, True),
        ("roberta", "encoder", 3, 64, True),
        ("modernbert", "encoder", 3, 8192, False),
        ("llama", "decoder", 3, 128, False),
        ("mixtral", "decoder", 3, 131072, False),
        ("gpt2", "decoder", 3, 77, True),
        ("t5", "seq2seq", 5, None, False),
        ("bart", "seq2seq", 5, 1024, True),
    ],
)
def test_facts_follow_from_the_configuration(
    name: str, side: str, layers: int, context: int | None, bias: bool
) -> None:
    facts = model_facts(configs()[name])  # type: ignore[arg-type]
    assert (facts.side, facts.num_layers, facts.context_length, facts.has_bias) == (side, layers, context, bias)
    assert (facts.hidden_size, facts.vocab_size) == (32, 99)
    assert facts.num_experts == (4 if name == "mixtral" else 0)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "bart", "mixtral"])
def test_parameters_are_counted_exactly_with_tied_weights_once(name: str) -> None:
    import transformers as t

    config = configs()[name]
    facts = model_facts(config)  # type: ignore[arg-type]
    auto = {"encoder": t.AutoModel, "decoder": t.AutoModelForCausalLM, "seq2seq": t.AutoModelForSeq2SeqLM}[facts.side]
    assert facts.num_parameters == sum(p.numel() for p in auto.from_config(config).parameters())


def test_a_position_that_padding_keeps_is_no_context() -> None:
    import torch
    import transformers as t

    config = configs()["roberta"]
    model = t.AutoModel.from_config(config)
    length = model_facts(config).context_length  # type: ignore[arg-type]
    assert length is not None
    model(input_ids=torch.full((1, length), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, length + 1), 5))


def test_an_encoder_is_not_offered_tasks_that_write_text() -> None:
    facts = model_facts(configs()["bert"])  # type: ignore[arg-type]
    assert "causal-lm" not in facts.tasks
    assert "token-classification" in facts.tasks
    assert model_facts(configs()["bart"]).tasks[0] == "seq2seq"  # type: ignore[arg-type]


def test_heads_are_named_for_every_task_that_has_one() -> None:
    facts = dict(model_facts(configs()["bert"]).head_names)  # type: ignore[arg-type]
    assert "classifier" in facts["sequence-classification"]
    assert facts["question-answering"] == ("qa_outputs",)
    assert "causal-lm" not in facts


def test_a_folder_a_configuration_and_a_live_model_say_the_same(tiny_encoder: str) -> None:
    from transformers import AutoConfig, AutoModel

    folder = model_facts(tiny_encoder)
    config = model_facts(AutoConfig.from_pretrained(tiny_encoder))
    live = model_facts(AutoModel.from_pretrained(tiny_encoder))
    assert folder.config_json == config.config_json == live.config_json
    assert folder.num_parameters == config.num_parameters == live.num_parameters
    assert folder.has_weights
    assert live.has_weights
    assert folder.name == live.name == tiny_encoder


def test_a_config_file_alone_is_enough(tiny_encoder: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(Path(tiny_encoder, "config.json").read_text())
    facts = model_facts(tmp_path)
    assert facts.num_parameters == model_facts(tiny_encoder).num_parameters
    assert not facts.has_weights


def test_a_chat_template_makes_it_an_instruct_model(tiny_decoder: str, tmp_path: Path) -> None:
    assert not model_facts(tiny_decoder).is_instruct
    (tmp_path / "config.json").write_text(Path(tiny_decoder, "config.json").read_text())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert model_facts(tmp_path).is_instruct


def test_the_canonical_configuration_survives_a_round_trip() -> None:
    for config in configs().values():
        text = canonical(config)  # type: ignore[arg-type]
        assert canonical(rebuilt(text)) == text
        assert json.loads(text) == json.loads(canonical(rebuilt(text)))


def broken(tmp_path: Path, name: str) -> object:
    folder = tmp_path / name
    folder.mkdir()
    contents = {"no json": "{", "no type": "{}", "a list": "[]", "unknown type": '{"model_type": "nothing-like-it"}'}
    if name in contents:
        (folder / "config.json").write_text(contents[name])
    elif name == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["no json", "no type", "a list", "unknown type", "empty", "adapter"])
def test_a_broken_folder_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableError) as e:
        model_facts(broken(tmp_path, name))  # type: ignore[arg-type]
    assert e.value.codes == ("model-unreadable",)
    assert e.value.findings[0].fix


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("./nowhere", MissingError, "model-missing"),
        ("/nowhere/at/all", MissingError, "model-missing"),
        ("~/nowhere", MissingError, "model-missing"),
        ("nobody/nothing", MissingError, "model-unreachable"),
        ("not a hub id", MissingError, "model-missing"),
        (3, InvalidError, "model-kind"),
        (None, InvalidError, "model-kind"),
    ],
)
def test_what_is_no_model_is_told_apart(model: object, kind: type[TunekitError], code: str) -> None:
    with pytest.raises(kind) as e:
        model_facts(model)  # type: ignore[arg-type]
    assert e.value.codes == (code,)


def test_a_model_without_any_of_the_tasks_is_refused() -> None:
    from transformers import ViTConfig

    with pytest.raises(UnsupportedError) as e:
        model_facts(ViTConfig())
    assert e.value.codes == ("model-no-task",)


def test_code_that_a_folder_brings_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UnsupportedError) as e:
        model_facts(tmp_path)
    assert e.value.codes == ("model-remote-code",)


def test_a_seq2seq_configuration_without_a_start_token_is_traced_all_the_same() -> None:
    from transformers import T5Config

    import tunekit

    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100)
    advice = tunekit.advise(config, task="seq2seq", num_examples=500, mean_tokens=20, hardware="24GB", methods=["lora"])
    assert advice.ranked[0].memory.fidelity == "traced"
    assert not hasattr(config, "decoder_start_token_id") or config.decoder_start_token_id is None
