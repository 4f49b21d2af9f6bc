"""The chunked loss is the plain one and has its gradient; it makes no logits that nobody asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tunekit
import zoo
from tunekit.errors import InvalidError, TunekitError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives import _chunked, _vocabulary
from tunekit.objectives.supervised import Supervised
from tunekit.task import Task

CHUNKED = Supervised(loss_kernel="chunked")
WRITES = ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral", "bert", "roberta", "electra")
_GROUPED = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100
}  # fmt: skip
TAILS: dict[str, Any] = {
    "gemma2-capped": lambda t: t.Gemma2Config(**_GROUPED, head_dim=8, final_logit_softcapping=2.0),
    "gemma3-capped": lambda t: t.Gemma3TextConfig(**_GROUPED, head_dim=8, final_logit_softcapping=2.0),
    "granite-scaled": lambda t: t.GraniteConfig(**_GROUPED, logits_scaling=4.0),
    "cohere-scaled": lambda t: t.CohereConfig(**_GROUPED, logit_scale=0.25),
    "gptj-with-bias": lambda t: t.GPTJConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=100, n_positions=64, rotary_dim=8, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "mixtral-routers": lambda t: t.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few positions, so that a tiny batch takes several."""
    monkeypatch.setattr(_chunked, "CHUNK_ELEMENTS", 5 * 100)
    monkeypatch.setattr(_chunked, "_FEWEST", 1)


def a_batch(task: Task) -> dict[str, torch.Tensor]:
    """Half of the positions are prompts."""
    batch = zoo.batch(task)
    batch["labels"][:, 1 : batch["labels"].shape[1] // 2] = -100
    return batch


def in_64_bits(model: Any) -> Any:
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"  # the grouped product of experts takes 32 bits at most
    return model.double().train()


def both(
    model: nn.Module, batch: dict[str, torch.Tensor], items: Any = None
) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    found = []
    for objective in (Supervised(), CHUNKED):
        model.zero_grad()
        loss, outputs = objective.loss(model, batch, items)
        loss.backward()
        assert (outputs["logits"] is None) == (objective is CHUNKED)
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    return found


def assert_equal(found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> None:
    (plain, one), (chunked, other) = found
    # transformers takes the cross-entropy in 32 bits also where the model is in 64.
    torch.testing.assert_close(chunked.double(), plain.double(), atol=1e-6, rtol=1e-5)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("items", [None, torch.tensor(37)], ids=["mean", "share"])
@pytest.mark.parametrize(
    ("architecture", "task"), [*((a, "causal-lm") for a in WRITES), ("t5", "seq2seq"), ("bart", "seq2seq")]
)
def test_loss_and_gradient_are_the_plain_ones(architecture: str, task: str, items: Any) -> None:
    model = in_64_bits(zoo.build(architecture, Task.named(task)))
    assert_equal(both(model, a_batch(Task.named(task)), items))


@pytest.mark.parametrize("name", TAILS)
def test_what_a_model_does_to_its_logits_is_done_to_chunks_too(name: str) -> None:
    torch.manual_seed(0)
    model = in_64_bits(
        transformers.AutoModelForCausalLM.from_config(TAILS[name](transformers), attn_implementation="eager")
    )
    assert_equal(both(model, a_batch(Task.named("causal-lm"))))
    assert model not in _vocabulary._CHANGES_LOGITS, "or the logits of all targets are made at once"


def test_an_unknown_change_of_the_logits_is_obeyed_for_the_targets_alone() -> None:
    model = zoo.build("llama", Task.named("causal-lm")).double().train()
    forward = type(model).forward

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            out = forward(self, input_ids=input_ids, attention_mask=attention_mask)
            out["logits"] = out["logits"] ** 3 + 0.1
            if labels is not None:
                out["loss"] = self.loss_function(out["logits"], labels, vocab_size=100)
            return out

    model.__class__ = Odd
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
    batch = a_batch(Task.named("causal-lm"))
    assert_equal(both(model, batch))
    assert seen[-1] == int(batch["labels"][:, 1:].ne(-100).sum())


@pytest.mark.parametrize(
    "method", [Lora(r=4, target_modules=["q_proj", "lm_head"]), Lora(r=4), Full()], ids=["lora-on-head", "lora", "full"]
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [False, True])
def test_adapters_on_the_output_layer_and_tied_weights_learn_alike(method: Any, tied: bool) -> None:
    task = Task.named("causal-lm")
    config = zoo.config("llama")
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    try:
        model = tunekit.prepare(transformers.AutoModelForCausalLM.from_config(config), method, task)
    except TunekitError:
        pytest.skip("the method does not take this output layer")
    model = model.double().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    found = both(model, a_batch(task))
    assert_equal(found)
    assert any("lm_head" in n for n in found[1][1]) == (
        (method.slug == "full" and not tied) or "lm_head" in str(getattr(method, "target_modules", ""))
    )


def test_soft_prompts_before_the_text_move_no_target() -> None:
    task = Task.named("causal-lm")
    model = (
        tunekit.prepare(zoo.build("llama", task), tunekit.methods.PromptTuning(num_virtual_tokens=3), task)
        .double()
        .train()
    )
    assert_equal(both(model, a_batch(task)))


def test_a_batch_without_a_target_teaches_nothing() -> None:
    model = zoo.build("llama", Task.named("causal-lm")).train()
    batch = zoo.batch(Task.named("causal-lm"))
    batch["labels"].fill_(-100)
    loss, _ = CHUNKED.loss(model, batch, torch.tensor(5))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_under_autocast_the_chunks_compute_as_the_model_does() -> None:
    model, batch = zoo.build("llama", Task.named("causal-lm")).train(), a_batch(Task.named("causal-lm"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, _ = Supervised().loss(model, batch)
    runs = model.forward

    def as_accelerate(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return runs(*args, **kwargs)

    model.forward = as_accelerate  # type: ignore[method-assign]
    seen: list[torch.dtype] = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    loss, _ = CHUNKED.loss(model, batch)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(loss, plain, atol=2e-3, rtol=2e-3)


def test_an_evaluation_has_its_logits() -> None:
    model, batch = zoo.build("llama", Task.named("causal-lm")).eval(), a_batch(Task.named("causal-lm"))
    loss, outputs = CHUNKED.loss(model, batch)
    assert outputs["logits"].shape == (*batch["labels"].shape, 100)
    torch.testing.assert_close(loss, Supervised().loss(model, batch)[0])


def test_the_gradient_of_half_precision_weights_is_added_up_in_full() -> None:
    head = nn.Linear(8, 50, bias=False).bfloat16()
    states, targets = torch.randn(4000, 8).bfloat16().requires_grad_(), torch.randint(0, 50, (4000,))

    def piece(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(s).float(), t, reduction="sum")

    (want,) = torch.autograd.grad(piece(states, targets), head.weight)
    _chunked.fused_sum(piece, states, targets, [head.weight], 7).backward()
    error = (head.weight.grad.float() - want.float()).abs().max() / want.float().abs().max()
    assert error < 0.01


def test_no_more_than_a_chunk_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunked, "CHUNK_ELEMENTS", 64 * 4000)
    config = zoo.config("llama")
    config.vocab_size = 4000
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    peaks = {}
    for objective in (Supervised(), CHUNKED):
        for rows in (8, 32):
            ids = torch.randint(3, 4000, (rows, 64))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as made:
                objective.loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})[
                    0
                ].backward()
            peaks[objective.loss_kernel, rows] = max(e.cpu_memory_usage for e in made.events())
            model.zero_grad()
    assert peaks["plain", 32] > 3 * peaks["plain", 8]
    assert peaks["chunked", 32] < peaks["plain", 8]


# ------------------------------------------------------------------------------------------------------------- plans
ROWS: dict[str, list[dict[str, str]]] = {
    "causal-lm": [{"prompt": "what is up ?" * (1 + i % 3), "completion": " the moon" * (1 + i % 4)} for i in range(12)],
    "seq2seq": [{"source": f"{'red' * (1 + i % 3)} sun", "target": "blue sun" * (1 + i % 2)} for i in range(12)],
}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("task", ROWS)
def test_a_run_learns_the_same_by_either_kernel(
    task: str, packing: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if packing and task != "causal-lm":
        pytest.skip("only a causal-lm packs")
    folder = request.getfixturevalue({"causal-lm": "tiny_decoder", "seq2seq": "tiny_seq2seq"}[task])
    seen = []
    for kernel in ("plain", "chunked"):
        plan = tunekit.Plan(
            model=folder, task=task, method=Full(), learning_rate=0.1, optim="sgd", max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            warmup=0.0, loss_kernel=kernel, output_dir=str(tmp_path / kernel), packing=packing, max_length=40,
        )  # fmt: skip
        trainer = tunekit.trainer(plan, train_dataset=ROWS[task], eval_dataset=ROWS[task][:4], disable_tqdm=True, logging_steps=1, save_strategy="no", load_best_model_at_end=False)  # fmt: skip
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.train()
        logs = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        seen.append(
            (
                logs,
                trainer.evaluate()["eval_loss"],
                {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
            )
        )
    assert seen[1][0] == pytest.approx(seen[0][0], abs=1e-5)
    assert seen[1][1] == pytest.approx(seen[0][1], abs=1e-5)
    for name, weight in seen[0][2].items():
        torch.testing.assert_close(seen[1][2][name], weight, atol=1e-5, rtol=1e-4)


def test_where_it_cannot_be_it_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="plan-loss-kernel-task"):
        tunekit.Plan(model="m", task="sequence-classification", method=Full(), loss_kernel="chunked")
    with pytest.raises(InvalidError, match="plan-loss-kernel-objective"):
        tunekit.Plan(model="m", task="causal-lm", method=Full(), loss_kernel="chunked", objective=tunekit.objectives.Distillation(teacher="t"))  # fmt: skip
    plan = tunekit.Plan(model=tiny_decoder, task="causal-lm", method=Full(), learning_rate=1e-3, loss_kernel="chunked", output_dir=str(tmp_path / "run"))  # fmt: skip
    with pytest.raises(TunekitError, match="loss-kernel-unused"):
        tunekit.trainer(plan, train_dataset=ROWS["causal-lm"], label_smoothing_factor=0.1)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_the_simulator_sees_flat_logits_and_every_product(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunked, "CHUNK_ELEMENTS", 2**20)
    zoo_config = zoo.config("llama")
    zoo_config.vocab_size, zoo_config.max_position_embeddings = 40_000, 512
    zoo_config.save_pretrained(tmp_path)
    plan = tunekit.Plan(
        model=str(tmp_path), task="causal-lm", method=Full(), max_length=256, per_device_train_batch_size=rows
    )
    plain, chunked = (tunekit.estimate_memory(plan.replace(loss_kernel=k), "24GB") for k in ("plain", "chunked"))
    assert chunked.parts.get("logits", 0) < 0.5 * plain.parts["logits"] if rows == 1 else 0.1 * plain.parts["logits"]
    times = [tunekit.estimate_time(plan.replace(loss_kernel=k), "24GB") for k in ("plain", "chunked")]
    assert times[1].step_flops == pytest.approx(times[0].step_flops, rel=0.02)
