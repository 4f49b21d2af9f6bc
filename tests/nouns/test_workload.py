"""The question: frozen facts, checked where a person may write them, with a digest that every process agrees on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.errors import InvalidError
from tunekit.task import Task
from tunekit.workload import GOALS, DataFacts, Hardware, ModelFacts, Workload


def workload(**changes: object) -> Workload:
    facts = ModelFacts(
        name="tiny", config_json='{"hidden_size": 8}', model_type="bert", side="encoder", num_parameters=100, num_layers=2,
        hidden_size=8, vocab_size=50, head_names=(("sequence-classification", ("classifier",)),),
    )  # fmt: skip
    made = Workload(
        model=facts,
        data=DataFacts(num_examples=10, num_labels=2, columns=(("text", "sentence"),)),
        task=Task.named("sequence-classification"),
        hardware=Hardware(device="cpu", name="cpu", memory_bytes=2**33),
    )
    return dataclasses.replace(made, **changes)


def test_the_digest_changes_with_every_fact() -> None:
    base = workload()
    others = [
        workload(goal="memory"),
        workload(max_length=64),
        workload(task=Task.named("token-classification")),
        workload(data=dataclasses.replace(base.data, num_labels=3)),
        workload(data=dataclasses.replace(base.data, columns=(("text", "title"),))),
        workload(model=dataclasses.replace(base.model, config_json="{}")),
        workload(hardware=dataclasses.replace(base.hardware, memory_bytes=2**34)),
    ]
    assert len({base.digest(), *(o.digest() for o in others)}) == len(others) + 1
    assert workload().digest() == base.digest()


def test_the_digest_is_the_same_under_every_hash_seed() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_workload; print(test_workload.workload().digest())"
    here = os.path.dirname(__file__)
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, here],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    ]  # fmt: skip
    assert {workload().digest(), *runs} == {workload().digest()}
    assert len(workload().digest()) == 16


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"num_examples": -1}, ("data-negative",)),
        ({"num_examples": 1.5}, ("data-type",)),
        ({"num_labels": 0, "num_leaked": -2}, ("data-negative", "data-negative")),
        ({"lengths": (3, 1)}, ("data-lengths-order",)),
        ({"problem_type": "ranking"}, ("data-type",)),
    ],
)
def test_data_facts_given_by_hand_are_checked(changes: dict, codes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError) as caught:
        DataFacts(**{"num_examples": 5, **changes})
    assert caught.value.codes == codes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_devices": 0}, "hardware-negative"),
        ({"device": "tpu"}, "hardware-type"),
        ({"memory_bytes": "24GB"}, "hardware-type"),
    ],
)
def test_hardware_given_by_hand_is_checked(changes: dict, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Hardware(**{"device": "cuda", "name": "24GB", "memory_bytes": 24 * 2**30, **changes})
    assert caught.value.codes == (code,)


def test_every_goal_can_be_asked_for_and_no_other() -> None:
    assert [workload(goal=g).goal for g in GOALS] == list(GOALS)
    with pytest.raises(InvalidError, match="`quality`, `balanced`"):
        workload(goal="fast")


def test_facts_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        workload().data.num_examples = 3  # type: ignore[misc]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300), st.integers(0, 100))
def test_a_quantile_is_the_smallest_length_that_so_many_rows_do_not_exceed(lengths: list[int], percent: int) -> None:
    facts = DataFacts(num_examples=len(lengths), lengths=tuple(sorted(lengths)))
    quantile = facts.quantile_tokens(percent / 100)
    within = [n for n in lengths if n <= quantile]
    below = [n for n in lengths if n < quantile]
    assert len(within) * 100 >= percent * len(lengths)
    assert percent == 0 or len(below) * 100 < percent * len(lengths)
    assert facts.quantile_tokens(1.0) == facts.max_tokens == max(lengths)


def test_no_lengths_and_no_labels_are_said_so() -> None:
    facts = DataFacts(num_examples=5)
    assert (facts.mean_tokens, facts.max_tokens, facts.quantile_tokens(0.9), facts.examples_per_class) == (
        0.0,
        0,
        0,
        None,
    )
    assert workload().model.head_of(Task.named("causal-lm")) == ()
    assert workload().model.config == {"hidden_size": 8}
    assert Hardware(device="cuda", name="x", memory_bytes=1, num_devices=2, num_machines=3).total_devices == 6
