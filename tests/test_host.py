"""The host table: every plan field lands somewhere, under a name that the installed transformers knows."""

from __future__ import annotations

import dataclasses

import pytest

from tunekit.errors import InvalidError
from tunekit.fields import hints
from tunekit.host import ELSEWHERE, HOST_FIELDS, host_values, training_arguments
from tunekit.methods.full import Full
from tunekit.plan import Plan


def plan(**changes: object) -> Plan:
    return Plan(model="gpt2", task="causal-lm", method=Full()).replace(**changes)


def test_every_plan_field_is_mapped_or_named_as_acting_elsewhere() -> None:
    assert {f.ours for f in HOST_FIELDS} | set(ELSEWHERE) == set(hints(Plan))
    assert not {f.ours for f in HOST_FIELDS} & set(ELSEWHERE)


def test_every_mapped_field_exists_in_the_installed_transformers() -> None:
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    for field in HOST_FIELDS:
        assert known & set(field.theirs), field


@pytest.mark.parametrize("newest", [True, False])
def test_checkpointing_takes_the_newest_name_that_is_known(newest: bool) -> None:
    known = {name for f in HOST_FIELDS for name in (f.theirs if newest else f.theirs[-1:])}
    values = host_values(plan(activation_checkpointing=True), frozenset(known))
    assert values["activation_checkpointing" if newest else "gradient_checkpointing"] is True


def test_arguments_carry_the_plan(tmp_path: object) -> None:
    made = training_arguments(
        plan(output_dir=str(tmp_path), warmup=0.1, max_steps=7, learning_rate=1e-3, seed=5), evaluates=True, cpu=True
    )
    assert (made.max_steps, made.learning_rate, made.seed, made.get_warmup_steps(100)) == (7, 1e-3, 5, 10)
    assert made.load_best_model_at_end
    assert made.metric_for_best_model == "eval_loss"


def test_a_field_that_the_plan_owns_is_refused_as_keyword() -> None:
    with pytest.raises(InvalidError, match=r"plan\.replace\(learning_rate") as caught:
        training_arguments(plan(), evaluates=False, cpu=True, overrides={"learning_rate": 1.0, "loging_steps": 5})
    assert caught.value.codes == ("host-field-owned", "host-field-unknown")
    assert "logging_steps" in str(caught.value)
