"""What the simulator says of packed batches: their real size, and as many steps as there are sequences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tunekit
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate.batches import batches
from tunekit.data.packing import best_fit
from tunekit.methods.full import Full
from tunekit.workload import DataFacts

LENGTHS = tuple(sorted([20, 30, 40, 50, 60, 70, 80, 100, 120, 200] * 40))
DATA = DataFacts(num_examples=4000, lengths=LENGTHS)


@pytest.fixture
def plan(tmp_path: Path) -> tunekit.Plan:
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 500,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4096, **sizes}))
    return tunekit.Plan(model=str(tmp_path), task="causal-lm", method=Full(), learning_rate=1e-3, max_length=256, per_device_train_batch_size=4)  # fmt: skip


def test_packed_batches_are_full_and_as_many_as_the_examples_make(plan: tunekit.Plan) -> None:
    made = batches(plan.replace(packing=True), model_facts(plan.model), DATA, "trainer")
    assert (made.longest.batch, made.longest.length, made.typical.length) == (4, 256, 256)
    assert made.longest.padded, "examples are kept apart by a mask"
    assert made.rows_per_example == len(best_fit(LENGTHS, 256)) / len(LENGTHS)
    assert 0.9 * 256 < made.mean_tokens <= 256


def test_packing_takes_fewer_and_longer_steps(plan: tunekit.Plan) -> None:
    padded, packed = (tunekit.estimate_time(p, "cpu", DATA) for p in (plan, plan.replace(packing=True)))
    assert packed.num_steps == -(-len(best_fit(LENGTHS, 256)) * 10 // 4) * int(plan.num_train_epochs)
    assert packed.num_steps < 0.5 * padded.num_steps
    assert packed.step_seconds > padded.step_seconds
    assert packed.tokens_per_second > 0
    memory = [tunekit.estimate_memory(p, "24GB", DATA).device_bytes for p in (plan, plan.replace(packing=True))]
    assert memory[1] > memory[0], "every sequence is full"


def test_without_a_longest_length_a_sequence_is_as_long_as_the_longest_row(plan: tunekit.Plan) -> None:
    made = batches(plan.replace(packing=True, max_length=None), model_facts(plan.model), DATA, "trainer")
    assert made.longest.length == 200


def test_the_chunked_loss_costs_what_its_targets_take(plan: tunekit.Plan) -> None:
    wide = {**json.loads((Path(plan.model) / "config.json").read_text()), "vocab_size": 50_000}
    (Path(plan.model) / "config.json").write_text(json.dumps(wide))
    chunked = plan.replace(loss_kernel="chunked", per_device_train_batch_size=64, max_length=512)
    flops = [
        tunekit.estimate_time(p, "24GB", replace(DATA, supervised_tokens=tokens)).step_flops
        for p, tokens in (
            (chunked, 77.0),
            (chunked, 19.0),
            (plan.replace(per_device_train_batch_size=64, max_length=512), 19.0),
        )
    ]
    assert flops[1] < 0.5 * flops[0], "the vocabulary is nearly all there is to this model"
    assert flops[2] > 0.95 * flops[0], "the plain loss multiplies every position"
