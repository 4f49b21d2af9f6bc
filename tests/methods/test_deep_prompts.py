"""Prefix-tuning and P-tuning v2: read by every kernel, under every padding and cache, and the same logits as PEFT's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoo
from tunekit.attach import load, prepare, prepared, unload
from tunekit.attention import attentions, has_interface
from tunekit.deep_prompt import folded, prefixes_of, set_random
from tunekit.errors import InvalidError, MissingError, UnsupportedError
from tunekit.methods.p_tuning_v2 import PTuningV2
from tunekit.methods.prefix_tuning import PrefixTuning
from tunekit.task import TASKS, Task

CLASSIFY, WRITE, REWRITE = (Task.named(n) for n in ("sequence-classification", "causal-lm", "seq2seq"))
QUESTIONS = Task.named("question-answering")
PEFT_READS = ("bert", "roberta", "electra", "gpt2", "llama", "qwen3", "phi3", "mixtral")
OWN_ONLY = ("albert", "distilbert", "modernbert", "gemma3", "t5", "bart")
DECODERS = ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral")
DIRECT = PTuningV2(num_virtual_tokens=5)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # plain PEFT 0.21


def with_prefix(architecture: str, task: Task, method: Any = DIRECT, kernel: str = "sdpa") -> nn.Module:
    """A model with prefixes large enough to matter, the same for the same arguments."""
    base = zoo.build(architecture, task)
    base.set_attn_implementation(kernel)
    model = prepare(base, method, task).eval()
    torch.manual_seed(1)
    if not method.prefix_projection:
        set_random(model, std=1.0)
    return model


def pairs(architectures: tuple[str, ...]) -> list[tuple[str, Task]]:
    return [(a, t) for a in architectures for t in TASKS if zoo.fits(a, t)]


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= by


# ---------------------------------------------------------------------- the mechanism
@pytest.mark.parametrize("architecture", [*PEFT_READS, *OWN_ONLY])
def test_every_kernel_reads_the_prefix_the_same_way(architecture: str) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t))
    inputs = zoo.batch(task)
    sdpa, eager = (zoo.logits(with_prefix(architecture, task, kernel=k), inputs) for k in ("sdpa", "eager"))
    assert close(sdpa, eager)
    assert not close(sdpa, zoo.logits(zoo.build(architecture, task), inputs), by=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*PEFT_READS, *OWN_ONLY])
def test_a_padded_row_answers_as_it_does_alone(architecture: str, kernel: str) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t))
    model = with_prefix(architecture, task, kernel=kernel)
    row = torch.tensor([[7, 8, 9, 10, 2]])
    padded = torch.tensor([[7, 8, 9, 10, 2, 0, 0], [3, 4, 5, 6, 7, 8, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    more = {"decoder_input_ids": torch.tensor([[0, 5, 6]])} if task is REWRITE else {}
    both = {k: v.expand(2, -1) for k, v in more.items()}
    alone = zoo.logits(model, {"input_ids": row, **more})[0]
    together = zoo.logits(model, {"input_ids": padded, "attention_mask": mask, **both})[0]
    assert close(alone, together[: alone.shape[0]])


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_row_padded_at_the_left_answers_as_it_does_alone(architecture: str) -> None:
    model = with_prefix(architecture, WRITE)
    alone = zoo.logits(model, {"input_ids": torch.tensor([[7, 8, 9, 10]])})[0]
    inputs = {
        "input_ids": torch.tensor([[0, 0, 7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]]),
    }
    assert close(alone, zoo.logits(model, inputs)[0, 2:])


@pytest.mark.parametrize("positions", ["shifted", "natural"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "qwen3", "phi3"])
def test_a_prefix_of_real_words_is_those_words_written_in_front(architecture: str, positions: Any) -> None:
    base, rest = zoo.build(architecture, WRITE).eval(), torch.tensor([[21, 22, 23, 24, 25]])
    torch.manual_seed(0)
    words = torch.randint(100, (4,))
    expected = zoo.logits(base, {"input_ids": torch.cat([words[None], rest], 1)})[:, 4:]
    torch.manual_seed(0)
    method = PrefixTuning(num_virtual_tokens=4, prefix_projection=False, init="activations", positions=positions)
    same = close(zoo.logits(prepare(base, method, WRITE), {"input_ids": rest}), expected)
    # GPT-2 has learnt a vector for each position: the words must stand where they are read from.
    assert same == (positions == "shifted" or architecture != "gpt2")


def test_words_of_a_text_are_repeated_to_the_length_of_the_prefix(tiny_decoder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def build() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(tiny_decoder)

    ids = AutoTokenizer.from_pretrained(tiny_decoder)("good movie", add_special_tokens=False)["input_ids"]
    method = PrefixTuning(num_virtual_tokens=5, prefix_projection=False, init="activations", init_text="good movie")
    rest = torch.tensor([[9, 10, 11]])
    written = torch.tensor([[*(ids * 3)[:5], *rest[0].tolist()]])
    model = prepare(build(), method, WRITE)
    assert close(zoo.logits(model, {"input_ids": rest}), zoo.logits(build(), {"input_ids": written})[:, 5:])


def test_a_text_without_a_tokenizer_is_refused() -> None:
    method = PrefixTuning(prefix_projection=False, init="activations", init_text="good movie")
    with pytest.raises(MissingError, match="init-text-tokenizer"):
        prepare(zoo.build("llama", WRITE), method, WRITE)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_real_words_start_all_three_attentions_of_a_seq2seq_model(architecture: str) -> None:
    method = PrefixTuning(num_virtual_tokens=4, prefix_projection=False, init="activations")
    model = prepare(zoo.build(architecture, REWRITE), method, REWRITE)
    roles = {p.at.role: p for p in prefixes_of(model).values()}
    assert roles.keys() == {"encoder", "decoder", "cross"}
    assert all(p.key.abs().sum(-1).gt(0).all() and p.value.abs().sum(-1).gt(0).all() for p in roles.values())
    assert model.training


@pytest.mark.parametrize(("sides", "roles"), [("encoder", {"encoder"}), ("decoder", {"decoder", "cross"})])
def test_one_side_of_a_seq2seq_model_gets_prefixes_where_only_it_was_asked(sides: Any, roles: set[str]) -> None:
    model = prepare(zoo.build("t5", REWRITE), PrefixTuning(sides=sides), REWRITE)
    assert {p.at.role for p in prefixes_of(model).values()} == roles
    zoo.train(model, PrefixTuning().parameter_groups(model, 1e-2, 0.0), zoo.batch(REWRITE))


def test_an_attention_that_was_routed_past_its_prefix_says_so() -> None:
    model = with_prefix("bert", CLASSIFY)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedError, match="deep-prompt-unread"):
        zoo.logits(model, zoo.batch(CLASSIFY))


def test_unloaded_the_model_attends_as_before() -> None:
    base = zoo.build("t5", REWRITE)
    base.set_attn_implementation("eager")
    kernels = [m.config._attn_implementation for m in base.modules() if hasattr(m, "config")]
    assert "eager" in kernels
    unload(prepare(base, PrefixTuning(), REWRITE))
    assert [m.config._attn_implementation for m in base.modules() if hasattr(m, "config")] == kernels


def test_a_copy_has_a_reparameterisation_of_its_own() -> None:
    model = with_prefix("bert", CLASSIFY, PrefixTuning())
    twin, inputs = copy.deepcopy(model), zoo.batch(CLASSIFY)
    expected = zoo.logits(model, inputs)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "deep_prompt" in name:
                p.add_(1.0)
    assert torch.equal(zoo.logits(model, inputs), expected)
    assert not close(zoo.logits(twin, inputs), expected)


def test_prefixes_learn_in_full_precision_on_a_base_in_bf16() -> None:
    base = zoo.build("llama", WRITE).to(torch.bfloat16)
    model = prepare(base, PrefixTuning(), WRITE)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = model(**zoo.batch(WRITE))
    out["loss"].backward()
    assert out.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("method", [DIRECT, PrefixTuning()], ids=["direct", "projected"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma3", "mixtral", "t5", "bart"])
def test_reentrant_checkpointing_gives_the_same_gradients(architecture: str, method: Any) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t))
    plain = with_prefix(architecture, task, method)
    checkpointed = copy.deepcopy(plain)
    enable = (
        getattr(checkpointed, "activation_checkpointing_enable", None) or checkpointed.gradient_checkpointing_enable
    )
    enable({"use_reentrant": True})
    found = []
    for model in (plain, checkpointed):
        model.train()
        model(**zoo.batch(task))["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


# ---------------------------------------------------------------------- writing
def written(model: nn.Module, ids: list[list[int]], **how: Any) -> list[list[int]]:
    tokens = torch.tensor(ids)
    out = model.generate(
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        **how,
    )
    return out[:, tokens.shape[1] :].tolist() if not model.config.is_encoder_decoder else out[:, 1:].tolist()


@pytest.mark.filterwarnings("ignore:The attention mask")
@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
def test_with_any_cache_it_writes_what_it_writes_without(architecture: str) -> None:
    model = with_prefix(architecture, WRITE if architecture in DECODERS else REWRITE)
    rows = (
        [[7, 8, 9, 10, 11], [0, 0, 12, 13, 14]] if architecture in DECODERS else [[7, 8, 9, 10, 2], [12, 13, 2, 0, 0]]
    )
    expected = written(model, rows, use_cache=False)
    assert written(model, rows) == expected
    assert written(model, rows, cache_implementation="static", disable_compile=True) == expected
    assert [written(model, [[t for t in row if t]])[0] for row in rows] == expected
    assert written(model, rows, num_beams=3) == written(model, rows, num_beams=3, use_cache=False)


def test_it_writes_what_plain_peft_writes(tmp_path: Path) -> None:
    from peft import PeftModel

    model = with_prefix("llama", WRITE)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(zoo.build("llama", WRITE), str(tmp_path)).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert model.generate(input_ids=ids, **how).tolist() == plain.generate(input_ids=ids, **how).tolist()


# ---------------------------------------------------------------------- PEFT
def plain_peft(architecture: str, task: Task, folder: Path) -> nn.Module:
    """A prefix of PEFT's own making, saved by PEFT, on the model that `zoo.build` gives."""
    from peft import PrefixTuningConfig, get_peft_model

    torch.manual_seed(2)
    config = PrefixTuningConfig(task_type=task.peft_task_type, num_virtual_tokens=5)
    model = get_peft_model(zoo.build(architecture, task), config).eval()
    model.save_pretrained(str(folder))
    return model


def both_paddings(architecture: str, task: Task) -> list[dict[str, torch.Tensor]]:
    inputs = {k: v for k, v in zoo.batch(task).items() if k in ("input_ids", "attention_mask")}
    if architecture in ("bert", "electra") and task is not QUESTIONS:
        inputs["token_type_ids"] = (torch.arange(8) > 3).long().expand(4, -1)
    return [inputs, {k: v.flip(1) for k, v in inputs.items()}]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [pytest.param(a, t, id=f"{a}-{t}") for a, t in pairs(PEFT_READS) if t.peft_task_type is not None],
)
def test_a_prefix_that_plain_peft_saved_gives_pefts_logits(architecture: str, task: Task, tmp_path: Path) -> None:
    plain = plain_peft(architecture, task, tmp_path)
    model = load(zoo.build(architecture, task), tmp_path)
    for inputs in both_paddings(architecture, task):
        expected, found, seen = zoo.logits(plain, inputs), zoo.logits(model, inputs), inputs["attention_mask"].bool()
        if architecture == "roberta" and task is CLASSIFY and not seen[:, 0].all():
            continue  # a row padded at the left has its padding where the head looks
        if expected.shape[-1 if task is QUESTIONS else 1] == seen.shape[1]:
            expected, found = (x[:, seen] if task is QUESTIONS else x[seen] for x in (expected, found))
        assert close(found, expected)


def test_a_prefix_that_peft_answers_for_differently_is_left_to_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    plain = plain_peft("gemma3", WRITE, tmp_path)
    model = load(zoo.build("gemma3", WRITE), tmp_path)
    assert isinstance(model, PeftModel)
    assert close(zoo.logits(model, zoo.batch(WRITE)), zoo.logits(plain, zoo.batch(WRITE)))
    assert isinstance(prepared(model).method, PrefixTuning)
    assert type(unload(model)).__name__ == "Gemma3ForCausalLM"


@pytest.mark.parametrize(
    ("architecture", "task", "method", "is_pefts"),
    [
        ("bert", "sequence-classification", DIRECT, True),
        ("bert", "question-answering", DIRECT, False),  # PEFT drops its token types
        ("gpt2", "question-answering", DIRECT, True),
        ("bert", "multiple-choice", DIRECT, False),
        ("llama", "causal-lm", PrefixTuning(), True),
        ("llama", "causal-lm", PrefixTuning(positions="natural"), False),
        ("gemma3", "causal-lm", PrefixTuning(), False),
        ("albert", "token-classification", DIRECT, False),
        ("t5", "seq2seq", PrefixTuning(), False),
    ],
)
def test_the_folder_is_pefts_where_peft_gives_the_same_logits(
    architecture: str, task: str, method: Any, is_pefts: bool, tmp_path: Path
) -> None:
    model = with_prefix(architecture, Task.named(task), method)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists() == is_pefts
    assert json.loads((tmp_path / "tunekit.json").read_text())["method"]["positions"] == (
        "shifted" if is_pefts else "natural"
    )
    again = load(zoo.build(architecture, Task.named(task)), tmp_path)
    assert close(zoo.logits(again, zoo.batch(Task.named(task))), zoo.logits(model, zoo.batch(Task.named(task))))
    assert type(prepared(again).method) is type(method)


# ---------------------------------------------------------------------- folding
@pytest.mark.parametrize(("architecture", "task"), [("bert", QUESTIONS), ("t5", REWRITE)])
def test_the_reparameterisation_is_folded_away_on_saving(architecture: str, task: Task, tmp_path: Path) -> None:
    model = with_prefix(architecture, task, PrefixTuning(num_virtual_tokens=5))
    model.save_pretrained(tmp_path / "done")
    model.save_pretrained(tmp_path / "checkpoint-7")
    done, checkpoint = (load_file(tmp_path / f / "model.safetensors") for f in ("done", "checkpoint-7"))
    prompts = {name.rpartition(".")[2] for name in done if "deep_prompt" in name}
    assert prompts == {"key", "value"}
    assert any("embedding" in name for name in checkpoint)
    assert sum(t.numel() for t in done.values()) < sum(t.numel() for t in checkpoint.values())
    for folder, projects in (("done", False), ("checkpoint-7", True)):
        again = load(zoo.build(architecture, task), tmp_path / folder)
        assert prepared(again).method.prefix_projection == projects
        assert close(zoo.logits(again, zoo.batch(task)), zoo.logits(model, zoo.batch(task)))


def test_a_state_that_the_host_gathered_is_what_is_saved(tmp_path: Path) -> None:
    model = with_prefix("llama", WRITE, PrefixTuning(num_virtual_tokens=5))
    gathered = {k: v + 1.0 for k, v in model.state_dict().items()}
    PrefixTuning().save(model, tmp_path, gathered)
    want = folded(model, gathered)
    rows = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].view(5, 2, 2, 2, 8)
    assert torch.equal(rows[:, 1, 0].transpose(0, 1), want["model.layers.1.self_attn"][0])


# ---------------------------------------------------------------------- refusals
def test_attention_is_found_by_running_and_not_by_name() -> None:
    from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM

    sizes = {"hidden_size": 32, "vocab_size": 50}
    bloom = BloomForCausalLM(BloomConfig(**sizes, n_layer=1, n_head=4))
    falcon = FalconForCausalLM(FalconConfig(**sizes, num_hidden_layers=1, num_attention_heads=4))
    assert not has_interface(bloom)
    assert not has_interface(falcon)
    assert not has_interface(zoo.build("deberta-v2", CLASSIFY))
    for architecture in (*PEFT_READS, *OWN_ONLY):
        task = next(t for t in TASKS if zoo.fits(architecture, t))
        model = zoo.build(architecture, task)
        found = attentions(model)
        assert has_interface(model)
        assert found == attentions(zoo.build(architecture, task, device="meta"))
        assert all(at.name in dict(model.named_modules()) for at in found)
    assert [at.window for at in attentions(zoo.build("gemma3", WRITE))] != [None, None]


@pytest.mark.parametrize("method", [PTuningV2(), PrefixTuning()])
def test_attention_of_its_own_is_refused_before_and_after_loading(method: Any) -> None:
    from tunekit.advisor.observe.model import model_facts

    facts = model_facts(zoo.config("deberta-v2"))
    refused = method.supports(facts, CLASSIFY)
    assert refused is not None
    assert refused.code == "own-attention"
    assert "lora" in refused.fix
    assert method.supports(model_facts(zoo.config("bert")), CLASSIFY) is None
    with pytest.raises(UnsupportedError, match="own-attention"):
        prepare(zoo.build("deberta-v2", CLASSIFY), method, CLASSIFY)


@pytest.mark.parametrize(
    ("kind", "values", "codes"),
    [
        (PTuningV2, {"num_virtual_tokens": 0}, ["p-tuning-v2-tokens"]),
        (PTuningV2, {"num_virtual_tokens": -3, "encoder_hidden_size": 8}, ["p-tuning-v2-tokens", "p-tuning-v2-hidden"]),
        (PrefixTuning, {"encoder_hidden_size": 0}, ["prefix-tuning-hidden"]),
        (PrefixTuning, {"init": "activations"}, ["prefix-tuning-init"]),
        (PrefixTuning, {"init_text": "good"}, ["prefix-tuning-init"]),
        (PrefixTuning, {"sides": "left"}, ["prefix-tuning-type"]),
        (PrefixTuning, {"positions": "absolute"}, ["prefix-tuning-type"]),
    ],
)
def test_a_wrong_setting_is_told_with_the_way_out(kind: type, values: dict[str, Any], codes: list[str]) -> None:
    with pytest.raises(InvalidError) as e:
        kind(**values)
    assert list(e.value.codes) == codes
    assert all(f.fix for f in e.value.findings)


@pytest.mark.parametrize(
    ("architecture", "task", "method", "code"),
    [
        ("bert", CLASSIFY, PTuningV2(num_virtual_tokens=64), "prompt-too-long"),
        ("llama", WRITE, PrefixTuning(sides="encoder"), "prefix-side"),
        ("t5", REWRITE, PrefixTuning(positions="shifted"), "prefix-positions"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(architecture: str, task: Task, method: Any, code: str) -> None:
    base = zoo.build(architecture, task)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match=code):
        prepare(base, method, task)
    assert list(base.state_dict()) == before


def test_a_kernel_that_cannot_take_a_prefix_is_refused() -> None:
    base = zoo.build("llama", WRITE)
    base.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedError, match="attention-kernel"):
        prepare(base, PrefixTuning(), WRITE)


def test_a_row_too_long_to_stand_behind_the_prefix_is_told_what_fits() -> None:
    model = with_prefix("bert", CLASSIFY)
    row = torch.full((1, 60), 7)
    with pytest.raises(UnsupportedError, match="deep-prompt-too-long") as e:
        model(input_ids=row)
    assert "59" in e.value.findings[0].fix
    model(input_ids=row[:, :59])


def test_a_prefix_of_another_model_is_refused(tmp_path: Path) -> None:
    with_prefix("llama", WRITE).save_pretrained(tmp_path)
    other = zoo.config("llama")
    other.num_key_value_heads = 4
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM(other)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        load(base, tmp_path)
    assert list(base.state_dict()) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(Exception, match="adapter-corrupted"):
        load(zoo.build("llama", WRITE), tmp_path)
