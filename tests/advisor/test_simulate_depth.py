"""A shallow trace, extended, is the whole model's trace: the same peak, parts, allocations and work."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from simulated import SHAPE, step
from transformers import PretrainedConfig

import zoo
from tunekit.advisor.simulate.depth import keep
from tunekit.advisor.simulate.peak import peak
from tunekit.advisor.simulate.record import Recorded, Subject, record_at, skeleton
from tunekit.contracts import Method
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.task import Task

DEPTHS = {
    "t5": {"num_layers": 8, "num_decoder_layers": 7},
    "bart": {"encoder_layers": 8, "decoder_layers": 7},
    "gpt2": {"n_layer": 8},
    "distilbert": {"n_layers": 8},
}
TASKS = {"t5": "seq2seq", "bart": "seq2seq", "modernbert": "token-classification"}
TASKS |= dict.fromkeys(("bert", "roberta", "electra", "deberta-v2", "distilbert"), "sequence-classification")
ONE_BLOCK = {"albert"}
"""Its blocks are one and the same: there is nothing to cut."""


def deep(architecture: str, depth: int = 13) -> PretrainedConfig:
    """A tiny configuration with many blocks."""
    config = zoo.config(architecture)
    plain = config.to_dict() | DEPTHS.get(architecture, {"num_hidden_layers": depth})
    for derived in ("layer_types", "no_rope_layers"):
        plain.pop(derived, None)
    return type(config)(**plain)


def subject(config: PretrainedConfig, task: str, quantization: str | None = None) -> Subject:
    return Subject(
        config_json=json.dumps(config.to_dict(), default=str), task=Task.named(task), num_labels=3, problem_type=None,
        dtype="float32", attn_implementation=None, quantization=quantization,
    )  # fmt: skip


def both(architecture: str, method: Method, **changes: object) -> tuple[Recorded, Recorded]:
    asked = subject(deep(architecture), TASKS.get(architecture, "causal-lm"), changes.pop("quantization", None))  # type: ignore[arg-type]
    shallow, whole = (record_at(asked, method, None, SHAPE, step(**changes), whole=w) for w in (False, True))
    assert any(not stack.whole for stack in skeleton(asked, "short")[1]), "nothing was cut"
    return shallow, whole


def assert_equal(shallow: Recorded, whole: Recorded) -> None:
    assert peak(shallow.timeline) == peak(whole.timeline)
    assert in_order(shallow) == in_order(whole)
    different = np.flatnonzero(shallow.timeline.sizes != whole.timeline.sizes)
    assert len(different) <= 2, "all but each step's list of gradient norms, four bytes a parameter, is the same"
    assert whole.timeline.sizes[different].sum() < 4096
    assert work(shallow) == work(whole)
    assert shallow.total_parameters == whole.total_parameters
    assert shallow.trainable_parameters == whole.trainable_parameters


def in_order(recorded: Recorded) -> list[tuple[int, ...]]:
    """Births in order, each with what was freed before it; the order of frees among themselves decides nothing."""
    gaps: list[list[int]] = [[]]
    for event in recorded.timeline.events.tolist():
        if event >= 0:
            gaps.append([event])
        else:
            gaps[-1].append(event)
    return [(*gap[:1], *sorted(gap[1:])) for gap in gaps]


def work(recorded: Recorded) -> Counter[object]:
    done: Counter[object] = Counter()
    for moment, cost, count in recorded.timeline.ops:
        if moment != "clip":
            done[moment, cost] += count
    return done


@pytest.mark.parametrize("method", [Full(), Lora(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", [a for a in zoo.ARCHITECTURES if a not in ONE_BLOCK])
def test_extended_trace_equals_the_whole_one(architecture: str, method: Method) -> None:
    assert_equal(*both(architecture, method))


@pytest.mark.parametrize(
    "changes",
    [{"checkpoints": True}, {"device": "cuda"}, {"mixed_precision": "bf16", "device": "cuda"}, {"accumulates": True}],
)
def test_extension_holds_however_the_step_is_taken(changes: dict[str, object]) -> None:
    assert_equal(*both("llama", Lora(r=4), **changes))


def test_extension_holds_for_the_loop_that_keeps_its_cache() -> None:
    assert_equal(*both("llama", Lora(r=4), loop="peft-benchmark", device="cuda"))


def test_extension_holds_on_a_quantised_base() -> None:
    assert_equal(*both("llama", Lora(r=4), quantization="nf4", device="cuda"))


def test_blocks_of_several_kinds_keep_every_neighbourhood() -> None:
    kinds = ["local", "local", "global"] * 8
    kept = keep(kinds)
    around = {tuple(kinds[i - 1 : i + 2]) for i in range(2, len(kinds) - 2)}
    short = [kinds[i] for i in kept]
    assert around <= {tuple(short[i - 1 : i + 2]) for i in range(1, len(short) - 1)}
    assert len(kept) < len(kinds) / 2


def test_few_blocks_are_all_kept() -> None:
    assert keep(["a"] * 4) == (0, 1, 2, 3)
