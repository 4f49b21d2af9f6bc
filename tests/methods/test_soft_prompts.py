"""Prompt tuning and P-tuning: the same answers as real words in the same place, on every task and architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from soft_prompts import (
    CHOOSE,
    CLASSIFY,
    DECODERS,
    LEARNT_POSITIONS,
    PAIRS,
    REWRITE,
    TAG,
    WORDS,
    WRITE,
    close,
    ids_of,
    loud,
    unlabelled,
    with_noise,
    with_words,
    without_words,
    written_in,
)

import zoo
from tunekit.attach import prepare, unload
from tunekit.errors import MissingError, UnsupportedError
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.soft_prompt import folded, is_seq2seq, prompt_of, stack_of
from tunekit.task import TASKS, Task


# ---------------------------------------------------------------------- the mechanism
@pytest.mark.parametrize(("architecture", "task"), ids_of(PAIRS))
def test_a_prompt_of_real_words_answers_as_those_words_written_in(architecture: str, task: Task) -> None:
    model, base, inputs = (
        with_words(architecture, task, positions="shifted"),
        loud(architecture, task),
        unlabelled(task),
    )
    written_down = written_in(model, inputs)
    if is_seq2seq(model):
        # Heads and decoders look at the real tokens, and at what the encoder read.
        read = {k: written_down.pop(k) for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            written_down = {
                **inputs,
                "encoder_outputs": stack_of(base)(**read),
                "attention_mask": read["attention_mask"],
            }
    expected = without_words(model, task, zoo.logits(base, written_down))
    assert close(zoo.logits(model, inputs), expected)
    assert not close(zoo.logits(base, inputs), expected, by=1e-4)


@pytest.mark.parametrize("architecture", LEARNT_POSITIONS)
def test_with_natural_positions_real_tokens_stand_where_they_did_in_pretraining(architecture: str) -> None:
    task = WRITE if architecture == "gpt2" else TAG
    model, base, inputs = (
        with_words(architecture, task, positions="natural"),
        loud(architecture, task),
        unlabelled(task),
    )
    at, length = prompt_of(model)[1].at, inputs["input_ids"].shape[1]
    own, seen = torch.arange(length)[None], inputs["attention_mask"].bool()
    if architecture == "roberta":  # its positions start behind that of padding, 0
        own = torch.where(seen, own + 1, 0)
    places = torch.cat([own[:, :at], own[:, :1].expand(-1, len(WORDS)), own[:, at:]], dim=1)
    given = {**written_in(model, inputs), "position_ids": places.expand(4, -1)}
    expected = without_words(model, task, zoo.logits(base, given))
    assert close(zoo.logits(model, inputs)[seen], expected[seen])


@pytest.mark.parametrize("architecture", LEARNT_POSITIONS)
def test_a_row_of_the_whole_context_fits_with_natural_positions_only(architecture: str) -> None:
    task = WRITE if architecture == "gpt2" else CLASSIFY
    natural, shifted = (with_words(architecture, task, positions=p) for p in ("natural", "shifted"))
    room = prompt_of(natural)[1].room
    assert room is not None
    row = {"input_ids": torch.full((1, room), 7)}
    assert zoo.logits(natural, row).isfinite().all()
    with pytest.raises(UnsupportedError, match="soft-prompt-too-long") as e:
        zoo.logits(shifted, row)
    assert str(room - 5) in e.value.findings[0].fix
    zoo.logits(shifted, {"input_ids": row["input_ids"][:, : room - 5]})


@pytest.mark.parametrize(("architecture", "task"), ids_of(PAIRS))
def test_logits_and_states_are_those_of_the_real_tokens(architecture: str, task: Task) -> None:
    model, inputs = with_noise(architecture, task), zoo.batch(task)
    base = zoo.build(architecture, task).eval()
    with torch.no_grad():
        found, expected = (m(**inputs, output_hidden_states=True, output_attentions=False) for m in (model, base))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and not name.startswith("encoder"):
            assert found[name].shape == value.shape, name
    assert found.loss.isfinite()
    mine, theirs = (o.get("hidden_states") or o.get("decoder_hidden_states") for o in (found, expected))
    assert [h.shape for h in mine] == [h.shape for h in theirs]


def test_attention_maps_and_router_logits_are_cut_too() -> None:
    base = zoo.build("mixtral", WRITE)
    base.set_attn_implementation("eager")
    model, inputs = prepare(base, PromptTuning(num_virtual_tokens=5), WRITE), zoo.batch(WRITE)
    out = model(**inputs, output_attentions=True, output_router_logits=True)
    assert out.attentions[0].shape == (4, 4, 8, 8)
    assert out.router_logits[0].shape == (4 * 8, 4)
    assert out.aux_loss.isfinite()


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_a_padded_row_answers_as_it_does_alone(architecture: str) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t))
    model = with_noise(architecture, task)
    padded = torch.tensor([[7, 8, 9, 10, 2, 0, 0], [3, 4, 5, 6, 7, 8, 2]])
    mask = (padded != 0).long()
    more = {"decoder_input_ids": torch.tensor([[0, 5, 6]])} if task is REWRITE else {}
    both = {k: v.expand(2, -1) for k, v in more.items()}
    alone = zoo.logits(model, {"input_ids": padded[:1, :5], **more})[0]
    together = zoo.logits(model, {"input_ids": padded, "attention_mask": mask, **both})[0]
    assert close(alone, together[: alone.shape[0]])


@pytest.mark.parametrize("positions", ["shifted", "natural"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_row_padded_at_the_left_answers_as_it_does_alone(architecture: str, positions: Any) -> None:
    model = with_noise(architecture, WRITE, positions=positions)
    ids = torch.tensor([[7, 8, 9, 10]])
    alone = zoo.logits(model, {"input_ids": ids})[0]
    assert close(alone, zoo.logits(model, {"input_ids": ids, "position_ids": torch.arange(4)[None]})[0])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    out = model.generate(
        input_ids=torch.tensor([[0, 0, 7, 8, 9, 10]]), attention_mask=mask, max_new_tokens=1, output_logits=True,
        return_dict_in_generate=True, do_sample=False,
    )  # fmt: skip
    # The padding stands between the prompt and the row, so what is asked for is that it is not seen and not counted.
    assert close(alone[-1], out.logits[0][0])


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_embedded_inputs_are_taken_too(architecture: str) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t) and t is not CHOOSE)
    model, inputs = with_noise(architecture, task), unlabelled(task)
    expected = zoo.logits(model, inputs)
    embed = model.get_input_embeddings()
    ids = inputs.pop("input_ids")
    assert close(zoo.logits(model, {**inputs, "inputs_embeds": embed(ids)}), expected)


def test_token_types_go_along() -> None:
    model, base = with_words("bert", CLASSIFY, positions="shifted"), loud("bert", CLASSIFY)
    inputs = unlabelled(CLASSIFY)
    types = (torch.arange(8) > 3).long().expand(4, -1)
    written = written_in(model, inputs)
    spread = torch.cat([types[:, :1], torch.zeros(4, 5, dtype=torch.long), types[:, 1:]], dim=1)
    expected = zoo.logits(base, {**written, "token_type_ids": spread})
    assert close(zoo.logits(model, {**inputs, "token_type_ids": types}), expected)


def test_a_copy_has_a_prompt_of_its_own() -> None:
    model = with_noise("t5", REWRITE)
    twin, inputs = copy.deepcopy(model), unlabelled(REWRITE)
    expected = zoo.logits(model, inputs)
    with torch.no_grad():
        prompt_of(twin)[1].vectors.weight.add_(1.0)
    assert torch.equal(zoo.logits(model, inputs), expected)
    assert not close(zoo.logits(twin, inputs), expected)
    unload(model)
    assert not close(zoo.logits(twin, inputs), zoo.logits(zoo.build("t5", REWRITE), inputs))


@pytest.mark.parametrize("method", [PromptTuning(), PTuning(), PTuning(encoder="lstm")], ids=["plain", "mlp", "lstm"])
def test_prompts_learn_in_full_precision_on_a_base_in_bf16(method: Any) -> None:
    model = prepare(zoo.build("llama", WRITE).to(torch.bfloat16), method, WRITE)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**zoo.batch(WRITE))
    out["loss"].backward()
    assert out.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("method", [PromptTuning(), PTuning(encoder="lstm")], ids=["plain", "lstm"])
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "gpt2", "gemma3", "mixtral", "t5", "bart"])
def test_reentrant_checkpointing_gives_the_same_gradients(architecture: str, method: Any) -> None:
    task = next(t for t in TASKS if zoo.fits(architecture, t))
    plain = prepare(zoo.build(architecture, task), method, task)
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


# ---------------------------------------------------------------------- where the vectors start
def test_a_prompt_starts_at_words_as_the_layers_see_them() -> None:
    model = prepare(zoo.build("gemma3", WRITE), PromptTuning(num_virtual_tokens=50), WRITE)
    base = zoo.build("gemma3", WRITE)
    words, rows = base.get_input_embeddings()(torch.arange(100)), folded(model)
    assert (rows[:, None] - words[None]).abs().amax(dim=2).amin(dim=1).max() < 1e-6
    assert rows.unique(dim=0).shape[0] > 20


def test_a_random_prompt_has_the_spread_of_words() -> None:
    model = prepare(zoo.build("gemma3", WRITE), PromptTuning(num_virtual_tokens=50, init="random"), WRITE)
    spread = zoo.build("gemma3", WRITE).get_input_embeddings()(torch.arange(100)).std()
    assert 0.8 < folded(model).std() / spread < 1.25


def test_words_of_a_text_are_repeated_to_the_length_of_the_prompt(tiny_decoder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_decoder)("good movie", add_special_tokens=False)["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    expected = base.get_input_embeddings()(torch.tensor((ids * 5)[:5]))
    model = prepare(base, PromptTuning(num_virtual_tokens=5, init="text", init_text="good movie"), WRITE)
    assert torch.equal(folded(model), expected)


def test_a_text_without_a_tokenizer_is_refused() -> None:
    base = zoo.build("llama", WRITE)
    before = list(base.state_dict())
    with pytest.raises(MissingError, match="init-text-tokenizer"):
        prepare(base, PromptTuning(init="text", init_text="good movie"), WRITE)
    assert list(base.state_dict()) == before


# ---------------------------------------------------------------------- advice
def test_longer_prompts_are_proposed_where_they_help_and_fit() -> None:
    from tunekit.workload import DataFacts, Hardware, ModelFacts, Workload

    def lengths(task: str, parameters: int, context: int | None) -> list[int]:
        model = ModelFacts(
            name="m", config_json="{}", model_type="x", side="decoder", num_parameters=parameters, num_layers=2, hidden_size=8,
            vocab_size=9, context_length=context,
        )  # fmt: skip
        hardware = Hardware(device="cuda", name="x", memory_bytes=10**10)
        data = DataFacts(num_examples=1000, num_labels=2)
        workload = Workload(model=model, data=data, task=Task.named(task), hardware=hardware)
        return [m.num_virtual_tokens for m in PromptTuning.candidates(workload)]  # type: ignore[attr-defined]

    assert lengths("causal-lm", 10**9, 4096) == [100]
    assert lengths("causal-lm", 10**9, 256) == [20]
    assert lengths("causal-lm", 10**11, 4096) == [20]
    assert lengths("sequence-classification", 10**8, 512) == [20]
