"""Rows joined to one: every example stays by itself, whatever stands beside it, or the plan is refused."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

import tunekit
import zoo
from tunekit.data.collate import collator
from tunekit.data.fill import filled, num_fillers
from tunekit.data.packing import best_fit, marked, pack, row_sizes
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.joining import lies_flat, told_apart
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.packable import mixing_fault, packing_fault
from tunekit.task import Task

TASK = Task.named("causal-lm")
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
_SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64, "pad_token_id": 0}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OTHERS: dict[str, Any] = {
    "mistral": lambda t: t.MistralConfig(**_GROUPED, sliding_window=4),
    "qwen2": lambda t: t.Qwen2Config(**_GROUPED),
    "gemma2": lambda t: t.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=4, final_logit_softcapping=5.0),
    "cohere2": lambda t: t.Cohere2Config(**_GROUPED, sliding_window=4),
    "llama4": lambda t: t.Llama4TextConfig(**_GROUPED, head_dim=8, num_local_experts=2, intermediate_size_mlp=64, attention_chunk_size=4),
    "olmo2": lambda t: t.Olmo2Config(**_GROUPED),
    "phi": lambda t: t.PhiConfig(**_GROUPED),
    "starcoder2": lambda t: t.Starcoder2Config(**_GROUPED, residual_dropout=0.0, embedding_dropout=0.0),
    "gpt_neox": lambda t: t.GPTNeoXConfig(**_SIZES),
    "gpt_bigcode": lambda t: t.GPTBigCodeConfig(**_GPT, **_NO_DROPOUT),
    "opt": lambda t: t.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=100, word_embed_proj_dim=32),
    "gptj": lambda t: t.GPTJConfig(**_GPT, rotary_dim=8),
    "bloom": lambda t: t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=100),
    "falcon": lambda t: t.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=100),
    "mpt": lambda t: t.MptConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=100, max_seq_len=64),
    "mamba": lambda t: t.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100),
    "minimax": lambda t: t.MiniMaxConfig(**_GROUPED, num_local_experts=2, head_dim=8),
    "falcon_h1": lambda t: t.FalconH1Config(**_GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
}  # fmt: skip
"""Architectures beside those of the zoo, some with windows shorter than an example."""
WRITES = ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral", "bert", "roberta", "electra", "bart")
PACKS = {"gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral", "mistral", "qwen2", "gemma2", "cohere2", "olmo2", "phi", "starcoder2", "gpt_neox", "gpt_bigcode"}  # fmt: skip
LATE: set[str] = set()
"""Those that only a run with weights finds out: in 5.17 a chunk of Llama 4 runs over the end of an example; those in between were not tried."""
(PACKS if Version(transformers.__version__) >= Version("5.23") else LATE).add("llama4")
EAGER = ("gemma2", "mpt", "gptj", "bloom", "mamba")
"""Those that transformers gives no other kernel."""
LENGTHS = (9, 4, 7, 2, 5, 12)


def build(name: str, kernel: str = "sdpa", device: str = "cpu") -> Any:
    torch.manual_seed(0)
    config = OTHERS[name](transformers) if name in OTHERS else zoo.config(name, "causal-lm")
    with torch.device(device):
        kernel = "eager" if name in EAGER else kernel
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
    model.config.use_cache = False  # as a Trainer sets it
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def examples(lengths: tuple[int, ...] = LENGTHS) -> datasets.Dataset:
    """Random rows, of which a part is a prompt."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 100, (n,), generator=draw).tolist() for n in lengths]
    labels = [[-100 if j < i % 3 else x for j, x in enumerate(row)] for i, row in enumerate(ids)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def losses(model: Any, batch: dict[str, torch.Tensor]) -> dict[tuple[int, ...], float]:
    """The summed loss of every example in a batch by its tokens."""
    given = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**given).logits.float()
    each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    found = {}
    for row in range(len(logits)):
        if "position_ids" in batch:
            starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), logits.shape[1]]
        else:
            starts = [0, int(batch["attention_mask"][row].sum())]
        for low, high in itertools.pairwise(starts):
            ids = tuple(batch["input_ids"][row, low:high].tolist())
            found[ids] = float(each[row, max(low - 1, 0) : high - 1].sum().detach())
    return found


def gradient(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    tunekit.objectives.Supervised().loss(model, batch, torch.tensor(30))[0].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kernel", "flat"), [("sdpa", False), ("eager", False), ("sdpa", True)], ids=["sdpa", "eager", "flat"]
)
@pytest.mark.parametrize("name", sorted(PACKS))
def test_every_example_has_the_loss_and_the_gradient_that_it_has_alone(
    name: str, kernel: str, flat: bool, minilm: PreTrainedTokenizerBase
) -> None:
    model, rows = build(name, kernel).train(), examples()
    joined = marked(rows) if flat else pack(rows, 16)
    alone = collator(TASK, minilm)(list(rows))
    together = collator(TASK, minilm, flat=flat)(list(joined))
    assert together["input_ids"].shape[0] == (1 if flat else 3)
    want, got = losses(model, alone), losses(model, together)
    for ids, loss in want.items():
        assert got[ids] == pytest.approx(loss, abs=1e-5, rel=1e-5)
    one, other = gradient(model, alone), gradient(model, together)
    assert one.keys() == other.keys()
    for parameter in one:
        torch.testing.assert_close(other[parameter], one[parameter], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [*WRITES, *OTHERS])
def test_what_does_not_keep_examples_apart_is_refused_without_weights_and_with_them(name: str) -> None:
    told = packing_fault(build(name, device="meta"))
    assert (told is None) == (name in PACKS | LATE)
    live = build(name)
    for parameter in live.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    was = {n: p.clone() for n, p in live.state_dict().items()}
    seen = mixing_fault(live)
    if told is None:
        assert (seen is not None) == (name in LATE)
    else:
        assert told.code == "packing-architecture"
        assert "packing: false" in told.fix
        # A GPT-J's own attention happens to take the right mask; that nothing promises.
        assert name == "gptj" or seen is not None
    assert all(torch.equal(was[n], p) for n, p in live.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_joined_rows_stay_apart_under_every_method_that_packs(name: str) -> None:
    for slug, method in zoo.methods().items():
        if not method.packs or (slug == "bitfit" and name != "gpt2"):  # the others have no bias
            continue
        model = tunekit.prepare(build(name), method, TASK)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        assert mixing_fault(model) is None, slug


# ------------------------------------------------------------------------------------------------------------- rows
def test_best_fit_puts_every_row_in_one_place_and_leaves_little_room() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = (torch.rand(5000, generator=draw) ** 3 * 500 + 1).int().tolist()
    groups = best_fit(sizes, 512, seed=1)
    assert sorted(i for group in groups for i in group) == list(range(5000))
    assert max(sum(sizes[i] for i in group) for group in groups) <= 512
    assert sum(sizes) / (512 * len(groups)) > 0.99
    assert best_fit(sizes, 512, seed=1) == groups
    assert best_fit(sizes, 512, seed=2) != groups


def test_a_row_that_is_too_long_stands_alone() -> None:
    assert sorted(best_fit([40, 3, 9, 10], 10)) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("indexed", [False, True])
def test_joined_rows_hold_the_tokens_and_targets_of_all_examples(indexed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = examples(tuple((torch.randint(1, 30, (1500,), generator=draw)).tolist()))
    rows = rows.select(range(1499, -1, -2)) if indexed else rows
    kept = copy.deepcopy(rows[:])
    joined = pack(rows, 32, seed=5)
    assert joined.column_names == ["input_ids", "labels", "position_ids"]
    assert max(row_sizes(joined)) <= 32
    found = []
    for row in joined:
        starts = [i for i, p in enumerate(row["position_ids"]) if p == 0]
        for low, high in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            assert row["position_ids"][low:high] == list(range(high - low))
            found.append((row["input_ids"][low:high], row["labels"][low:high]))
    want = [(ids, [-100, *labels[1:]]) for ids, labels in zip(kept["input_ids"], kept["labels"], strict=True)]
    assert sorted(found) == sorted(want)
    assert rows[:] == kept
    assert pack(rows, 32, seed=5)[:] == joined[:]


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(InvalidError, match="packing-labels"):
        pack(datasets.Dataset.from_dict({"input_ids": [[1, 2]]}), 8)


def test_ranks_get_whole_batches_of_joined_rows() -> None:
    made = filled(pack(examples(), 16), 4)
    assert len(made) == 4
    assert num_fillers(made) == 1
    assert row_sizes(made)[-1] == len(made[-1]["position_ids"])


def test_the_collator_can_be_sent_to_workers(minilm: PreTrainedTokenizerBase) -> None:
    collate = pickle.loads(pickle.dumps(collator(TASK, minilm, pad_to_multiple_of=8)))
    batch = collate(list(pack(examples(), 20)))
    assert batch["input_ids"].shape[1] == 24
    assert "attention_mask" not in batch


# ------------------------------------------------------------------------------------------------------------- plans
def plan(folder: str, output: Path, **changes: Any) -> tunekit.Plan:
    values = {
        "method": Full(),
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_steps": 1,
        "warmup": 0.0,
        "max_grad_norm": 0.0,
        "output_dir": str(output),
    }
    return tunekit.Plan(model=folder, task="causal-lm", **{**values, **changes})  # fmt: skip


ROWS = [{"prompt": "what is up ?" * (1 + i % 3), "completion": " the moon" * (1 + i % 4)} for i in range(12)]


@pytest.mark.parametrize("method", [Full(), Lora(r=4)], ids=["full", "lora"])
def test_a_step_on_joined_rows_is_the_step_on_padded_ones(method: Any, tiny_decoder: str, tmp_path: Path) -> None:
    seen = {}
    for packing, rows, accumulated in ((False, 12, 1), (True, 2, 2)):
        chosen = plan(tiny_decoder, tmp_path / str(packing), method=method, packing=packing, max_length=40, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated)  # fmt: skip
        torch.manual_seed(0)
        trainer = tunekit.trainer(chosen, train_dataset=ROWS, eval_dataset=ROWS[:4], disable_tqdm=True, save_strategy="no", eval_strategy="no", load_best_model_at_end=False)  # fmt: skip
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if packing:
            assert len(trainer.train_dataset) <= 4, "or one step does not see every row"
            assert "position_ids" in trainer.train_dataset.column_names
            assert "position_ids" not in trainer.eval_dataset.column_names
        trainer.train()
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        seen[packing] = (trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"], weights)
    assert seen[True][0] == pytest.approx(seen[False][0], abs=1e-5)
    assert seen[True][1] == pytest.approx(seen[False][1], abs=1e-4)
    for name, weight in seen[False][2].items():
        torch.testing.assert_close(seen[True][2][name], weight, atol=1e-5, rtol=1e-4)


def test_the_collator_is_all_that_a_plain_trainer_needs(minilm: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows, seen = examples(), {}
    for packing, size in ((False, 6), (True, 3)):
        chosen = tunekit.Plan(model="mine", task="causal-lm", method=Full(), learning_rate=1e-3, packing=packing)
        args = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=size, max_steps=1, use_cpu=True, report_to="none", logging_steps=1, disable_tqdm=True, save_strategy="no"
        )  # fmt: skip
        Trainer(
            model=build("llama"), args=args, train_dataset=pack(rows, 16) if packing else rows, data_collator=tunekit.collator(chosen, minilm)
        ).train()  # fmt: skip
        model = build("llama").train()
        batch = tunekit.collator(chosen, minilm)(list(pack(rows, 16) if packing else rows))
        seen[packing] = sum(losses(model, batch).values())
    assert seen[True] == pytest.approx(seen[False], rel=1e-5)


def test_rows_lie_flat_where_the_kernel_takes_examples_of_any_length(tiny_decoder: str, tmp_path: Path) -> None:
    padded = plan(tiny_decoder, tmp_path)
    flash = padded.replace(attn_implementation="flash_attention_2")
    assert lies_flat(flash)
    assert not lies_flat(padded)
    assert told_apart(padded, rows := examples(), build("llama")) is rows
    assert row_sizes(told_apart(flash, rows, build("llama"))) == list(LENGTHS)
    assert told_apart(flash, rows, build("opt")) is rows
    assert not lies_flat(flash.replace(method=tunekit.methods.PromptTuning()))


@pytest.mark.parametrize("name", ["opt", "mamba"])
def test_an_architecture_that_mixes_examples_is_refused_before_weights_are_read(name: str, tmp_path: Path) -> None:
    OTHERS[name](transformers).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"\[packing-architecture\].*packing: false"):
        tunekit.trainer(plan(str(tmp_path / "model"), tmp_path / "run", packing=True), train_dataset=ROWS)


def test_a_live_model_that_mixes_examples_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="packing-architecture"):
        tunekit.trainer(plan(tiny_decoder, tmp_path / "run", packing=True), model=build("opt"), train_dataset=ROWS)


def test_an_objective_that_reads_whole_texts_is_refused() -> None:
    with pytest.raises(InvalidError, match="plan-packing-objective"):
        tunekit.Plan(
            model="m", task="causal-lm", method=Full(), objective=tunekit.objectives.Distillation(teacher="t"), packing=True
        )  # fmt: skip
