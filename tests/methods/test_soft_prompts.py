"""Prompt tuning and P-tuning: the same answers as real words in the same place, on every task and architecture."""

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
from tunekit.errors import InvalidError, MissingError, UnsupportedError
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.soft_prompt import folded, is_seq2seq, prompt_of, set_from_tokens, stack_of
from tunekit.task import TASKS, Task

CLASSIFY, TAG, ANSWER, CHOOSE, WRITE, REWRITE = (
    Task.named(n)
    for n in (
        "sequence-classification", "token-classification", "question-answering", "multiple-choice", "causal-lm", "seq2seq",
    )
)  # fmt: skip
DECODERS = ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral")
LEARNT_POSITIONS = ("bert", "roberta", "electra", "albert", "deberta-v2", "distilbert", "gpt2")
WORDS = torch.tensor([21, 22, 23, 24, 25])
PAIRS = [(a, t) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]
WRITERS = [(a, t) for a, t in PAIRS if not t.has_head]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # plain PEFT 0.21


def ids_of(pairs: list[tuple[str, Task]]) -> list[Any]:
    return [pytest.param(a, t, id=f"{a}-{t}") for a, t in pairs]


def loud(architecture: str, task: Task) -> nn.Module:
    """A tiny model with weights so large that every token matters for every answer."""
    model = zoo.build(architecture, task)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    return model.eval()


def with_words(architecture: str, task: Task, **settings: Any) -> nn.Module:
    """A loud model whose prompt is what `WORDS` are embedded as."""
    model = prepare(loud(architecture, task), PromptTuning(num_virtual_tokens=len(WORDS), **settings), task).eval()
    set_from_tokens(model, WORDS)
    return model


def with_noise(architecture: str, task: Task, **settings: Any) -> nn.Module:
    """A model with a prompt like no word, the same for the same arguments."""
    model = prepare(zoo.build(architecture, task), PromptTuning(num_virtual_tokens=5, **settings), task).eval()
    torch.manual_seed(1)
    nn.init.normal_(prompt_of(model)[1].vectors.weight)
    return model


def written_in(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with `WORDS` written where the prompt of `model` stands, for the model without it."""
    at, first = prompt_of(model)[1].at, inputs["input_ids"]

    def put(name: str, row: torch.Tensor) -> torch.Tensor:
        own = WORDS if name == "input_ids" else torch.ones_like(WORDS)
        return torch.cat([row[..., :at], own.expand(*first.shape[:-1], -1), row[..., at:]], dim=-1)

    return {k: put(k, v) if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}


def without_words(model: nn.Module, task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Logits with the places of `WORDS` taken out, where there is one a token."""
    prompt = prompt_of(model)[1]
    if not prompt.cuts or task in (CLASSIFY, CHOOSE):
        return logits
    dim = -1 if task is ANSWER else 1
    keep = [i for i in range(logits.shape[dim]) if not prompt.at <= i < prompt.at + len(WORDS)]
    return logits.index_select(dim, torch.tensor(keep))


def unlabelled(task: Task) -> dict[str, torch.Tensor]:
    inputs = {k: v for k, v in zoo.batch(task).items() if k in ("input_ids", "attention_mask")}
    return {**inputs, "decoder_input_ids": inputs["input_ids"][:, :4]} if task is REWRITE else inputs


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-5) -> bool:
    return a.shape == b.shape and float((a - b).detach().abs().max()) <= by * max(1.0, float(b.detach().abs().max()))


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


# ---------------------------------------------------------------------- writing
def written(model: nn.Module, ids: list[list[int]], **how: Any) -> list[list[int]]:
    tokens = torch.tensor(ids)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **how}
    out = model.generate(input_ids=tokens, attention_mask=(tokens != 0).long(), **settings)
    return out[:, tokens.shape[1] :].tolist() if not model.config.is_encoder_decoder else out[:, 1:].tolist()


@pytest.mark.filterwarnings("ignore:The attention mask")
@pytest.mark.parametrize("positions", ["shifted", "natural"])
@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
def test_with_any_cache_it_writes_what_it_writes_without(architecture: str, positions: Any) -> None:
    if architecture == "bart" and positions == "natural":
        pytest.skip("refused: its own code counts its positions")
    model = with_noise(architecture, WRITE if architecture in DECODERS else REWRITE, positions=positions)
    rows = (
        [[7, 8, 9, 10, 11], [0, 0, 12, 13, 14]] if architecture in DECODERS else [[7, 8, 9, 10, 2], [12, 13, 2, 0, 0]]
    )
    expected = written(model, rows, use_cache=False)
    assert written(model, rows) == expected
    assert written(model, rows, cache_implementation="static", disable_compile=True) == expected
    assert [written(model, [[t for t in row if t]])[0] for row in rows] == expected
    assert written(model, rows, num_beams=3) == written(model, rows, num_beams=3, use_cache=False)
    torch.manual_seed(0)
    sampled = written(model, rows, do_sample=True)
    torch.manual_seed(0)
    assert written(model, rows, do_sample=True, use_cache=False) == sampled


@pytest.mark.parametrize("architecture", DECODERS)
def test_it_writes_what_the_words_themselves_would_lead_to(architecture: str) -> None:
    model = with_words(architecture, WRITE, positions="shifted")
    row = [7, 8, 9, 10, 11]
    assert written(model, [row]) == written(loud(architecture, WRITE), [[*WORDS.tolist(), *row]])


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT of those that `generate` counts
@pytest.mark.parametrize(("architecture", "task"), ids_of([("llama", WRITE), ("t5", REWRITE)]))
def test_it_writes_what_plain_peft_writes(architecture: str, task: Task, tmp_path: Path) -> None:
    from peft import PeftModel

    model = with_noise(architecture, task)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(zoo.build(architecture, task), str(tmp_path)).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert (
        model.generate(input_ids=ids, **how)[:, -6:].tolist() == plain.generate(input_ids=ids, **how)[:, -6:].tolist()
    )


def test_a_cache_that_lacks_the_prompt_is_refused() -> None:
    model = with_noise("llama", WRITE)
    ids = torch.tensor([[7, 8, 9]])
    cache = zoo.build("llama", WRITE)(input_ids=ids).past_key_values
    with pytest.raises(UnsupportedError, match="soft-prompt-cache"):
        model(input_ids=ids[:, :1], attention_mask=torch.ones(1, 4), past_key_values=cache)
    own = model(input_ids=ids).past_key_values
    both = model(input_ids=torch.tensor([[7, 8, 9, 5]])).logits[:, -1]
    assert close(model(input_ids=torch.tensor([[5]]), past_key_values=own).logits[:, -1], both)


@pytest.mark.parametrize(("architecture", "is_pefts"), [("bert", True), ("roberta", False), ("bart", True)])
def test_an_encoder_or_a_decoder_half_that_is_built_to_write_does(
    architecture: str, is_pefts: bool, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def build() -> nn.Module:
        torch.manual_seed(0)
        config = zoo.config(architecture)
        config.is_decoder = True
        return AutoModelForCausalLM.from_config(config).eval()

    model = prepare(build(), PromptTuning(num_virtual_tokens=len(WORDS), positions="shifted"), WRITE).eval()
    set_from_tokens(model, WORDS)
    row = [7, 8, 9, 10, 11]
    expected = written(build(), [[*WORDS.tolist(), *row]])
    assert written(model, [row]) == expected
    assert written(model, [row], use_cache=False) == expected
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists() == is_pefts
    if is_pefts:
        plain, inputs = PeftModel.from_pretrained(build(), str(tmp_path)), unlabelled(WRITE)
        assert close(zoo.logits(plain, inputs)[:, len(WORDS) :], zoo.logits(model, inputs))


# ---------------------------------------------------------------------- PEFT
def plain_peft(architecture: str, task: Task, folder: Path, kind: str) -> nn.Module:
    """A prompt of PEFT's own making, saved by PEFT, on the model that `zoo.build` gives."""
    import peft

    torch.manual_seed(2)
    settings: dict[str, Any] = {"task_type": task.peft_task_type, "num_virtual_tokens": 5}
    config = peft.PromptTuningConfig(**settings)
    if kind == "p-tuning":
        config = peft.PromptEncoderConfig(**settings, encoder_hidden_size=8)
    model = peft.get_peft_model(zoo.build(architecture, task), config).eval()
    model.save_pretrained(str(folder))
    return model


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


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("kind", "values", "codes"),
    [
        (PromptTuning, {"num_virtual_tokens": 0}, ["prompt-tuning-tokens"]),
        (PromptTuning, {"init": "text"}, ["prompt-tuning-init"]),
        (PromptTuning, {"init_text": "good", "num_virtual_tokens": -1}, ["prompt-tuning-tokens", "prompt-tuning-init"]),
        (PromptTuning, {"init": "zeros"}, ["prompt-tuning-type"]),
        (PTuning, {"num_virtual_tokens": 0}, ["p-tuning-tokens"]),
        (PTuning, {"encoder": "gru"}, ["p-tuning-type"]),
        (PTuning, {"encoder_hidden_size": 0, "encoder_dropout": 1.0}, ["p-tuning-encoder", "p-tuning-encoder"]),
        (PTuning, {"encoder": None, "encoder_hidden_size": 8}, ["p-tuning-encoder"]),
        (PTuning, {"positions": "absolute"}, ["p-tuning-type"]),
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
        ("bert", CLASSIFY, PromptTuning(num_virtual_tokens=64), "prompt-too-long"),
        ("llama", WRITE, PTuning(num_virtual_tokens=64), "prompt-too-long"),
        ("bart", REWRITE, PromptTuning(positions="natural"), "prompt-positions"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(architecture: str, task: Task, method: Any, code: str) -> None:
    base = zoo.build(architecture, task)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match=code):
        prepare(base, method, task)
    assert list(base.state_dict()) == before


def test_a_prompt_longer_than_the_context_is_refused_before_loading() -> None:
    from tunekit.advisor.observe.model import model_facts

    facts = model_facts(zoo.config("bert"))
    assert PromptTuning(num_virtual_tokens=64).supports(facts, CLASSIFY).code == "prompt-too-long"
    assert PromptTuning(num_virtual_tokens=63).supports(facts, CLASSIFY) is None


def test_a_model_without_a_base_below_its_head_is_refused() -> None:
    class Own(nn.Module):
        base_model_prefix = "nothing"

        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.build("llama", WRITE)
            self.config = self.inner.config

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    with pytest.raises(UnsupportedError, match="prompt-no-base"):
        PromptTuning().apply(Own(), WRITE)


def test_rows_packed_into_one_are_refused() -> None:
    model, ids = with_noise("llama", WRITE), torch.tensor([[7, 8, 9, 10, 11]])
    with pytest.raises(UnsupportedError, match="soft-prompt-packed"):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
    model(input_ids=ids, position_ids=torch.arange(5)[None])


@pytest.mark.parametrize("method", [PromptTuning(), PTuning()], ids=["prompt", "p"])
def test_a_plan_that_packs_rows_is_refused(method: Any) -> None:
    from tunekit.plan import Plan

    with pytest.raises(InvalidError, match="plan-packing-method"):
        Plan(model="./m", task="causal-lm", method=method, learning_rate=1e-3, packing=True)
    assert not Plan(model="./m", task="causal-lm", method=method, learning_rate=1e-3).packing


def test_a_mask_of_four_dimensions_is_refused() -> None:
    model, ids = with_noise("llama", WRITE), torch.tensor([[7, 8, 9]])
    with pytest.raises(UnsupportedError, match="soft-prompt-mask"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 3, 3))


def test_an_embedding_that_passed_the_prompt_by_says_so() -> None:
    model = with_noise("bert", CLASSIFY)
    model.bert.embeddings.word_embeddings = nn.Embedding(100, 32)
    with pytest.raises(UnsupportedError, match="soft-prompt-unread"):
        zoo.logits(model, zoo.batch(CLASSIFY))


def test_a_prompt_of_another_model_is_refused(tmp_path: Path) -> None:
    with_noise("llama", WRITE).save_pretrained(tmp_path)
    other = zoo.config("llama")
    other.hidden_size = 64
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM(other)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        load(base, tmp_path)
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
