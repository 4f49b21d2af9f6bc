"""Plans: complete on disk, readable for good, strict about every key, and told of all their faults at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunekit.errors import InvalidError, MissingError, OccupiedError, TunekitError, UnreadableError
from tunekit.fields import hints
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives.distillation import Distillation
from tunekit.objectives.supervised import Supervised
from tunekit.plan import HOST_NAMES, SCHEMA, DataSpec, Dtype, Plan, Quantization
from tunekit.task import TASKS

GOLDEN = Path(__file__).parent.parent / "golden"

GOLDEN_PLAN = Plan(
    model="sentence-transformers/all-MiniLM-L6-v2",
    revision="main",
    task="sequence-classification",
    problem_type="single_label_classification",
    data=DataSpec(
        path="rows/train.jsonl", eval_path="rows/validation.jsonl", columns={"text": "utterance", "label": "intent"},
        label_names=("card arrival", "Überweisung"), template=None, fingerprint="0123456789abcdef",
    ),
    output_dir="runs/golden",
    optim="adamw_torch",
    method=Lora(r=16, lora_alpha=32),
    objective=Supervised(),
    max_length=64,
    mixed_precision="bf16",
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    learning_rate=1e-4,
    warmup=0.1,
    num_train_epochs=6.0,
    callbacks=("progress",),
)  # fmt: skip
"""What the golden files of schema 1 say. The files are never written again; a new schema gets files of its own."""


def plan(**changes: Any) -> Plan:
    return Plan(model="gpt2", task="causal-lm", method=Full()).replace(**changes)


def faults(call: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidError) as caught:
        call(*args, **kwargs)
    return caught.value.codes


# ---------------------------------------------------------------------------------------------- to disk and back


@pytest.mark.parametrize("name", ["plan_v1.yaml", "plan_v1.json"])
def test_a_plan_file_of_the_first_schema_stays_readable(name: str) -> None:
    assert Plan.load(GOLDEN / name) == GOLDEN_PLAN


@pytest.mark.parametrize("name", ["plan_v1.yaml", "plan_v1.json"])
def test_what_is_written_today_holds_all_that_the_golden_file_holds(name: str) -> None:
    golden = yaml.safe_load((GOLDEN / name).read_text("utf-8"))
    today = yaml.safe_load(GOLDEN_PLAN.to_yaml()) if name.endswith("yaml") else json.loads(GOLDEN_PLAN.to_json())
    assert list(today)[: len(golden)] == list(golden)
    assert {k: v for k, v in today.items() if k in golden and k not in ("method", "data", "objective")} == {
        k: v for k, v in golden.items() if k not in ("method", "data", "objective")
    }
    for part in ("method", "data", "objective"):
        assert golden[part].items() <= today[part].items()


PLANS = st.builds(
    Plan,
    model=st.text(min_size=1).filter(str.strip),
    task=st.sampled_from([t.name for t in TASKS]),
    method=st.builds(Lora, r=st.integers(1, 64)) | st.just(Full()),
    data=st.none()
    | st.builds(
        DataSpec, path=st.text(), columns=st.dictionaries(st.text(), st.text()), template=st.none() | st.text()
    ),
    learning_rate=st.floats(1e-12, 1e3),
    warmup=st.floats(0, 1e4) | st.integers(0, 1000),
    max_steps=st.none() | st.integers(1, 10**12),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(get_args(Dtype)),
    activation_checkpointing=st.booleans(),
    callbacks=st.lists(st.text(), max_size=3),
)


@given(PLANS)
def test_every_plan_reads_back_equal_from_yaml_and_json(made: Plan) -> None:
    assert Plan.from_dict(yaml.safe_load(made.to_yaml())) == made
    assert Plan.from_dict(json.loads(made.to_json())) == made
    assert Plan.from_dict(made.to_dict()) == made


@pytest.mark.parametrize("name", ["p.yaml", "p.yml", "p.json", "p.JSON", "deep/er/p.yaml"])
def test_a_saved_plan_loads_equal_and_leaves_nothing_beside_it(tmp_path: Path, name: str) -> None:
    path = GOLDEN_PLAN.save(tmp_path / name)
    assert Plan.load(path) == GOLDEN_PLAN
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_json_plan_is_strict_json(tmp_path: Path) -> None:
    text = GOLDEN_PLAN.save(tmp_path / "p.json").read_text("utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_saving_refuses_to_overwrite_something_else(tmp_path: Path) -> None:
    path = plan().save(tmp_path / "p.yaml")
    plan().save(path)
    with pytest.raises(OccupiedError, match="overwrite=True") as caught:
        plan(seed=1).save(path)
    assert caught.value.codes == ("plan-file-exists",)
    assert Plan.load(path) == plan()
    assert Plan.load(plan(seed=1).save(path, overwrite=True)).seed == 1


def test_saving_over_a_file_that_is_no_text_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OccupiedError):
        plan().save(tmp_path / "p.yaml")


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "p.yaml"):
        with pytest.raises(UnreadableError) as caught:
            plan().save(path)
        assert caught.value.codes == ("plan-file-unwritable",)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(MissingError, match="tunekit advise") as caught:
            Plan.load(path)
        assert caught.value.codes == ("plan-file-missing",)


@pytest.mark.parametrize(
    "content",
    [
        b"a: [1", b"\xff\xfe\x00", b"a: !!python/object/apply:os.system ['true']", b"? {a: 1}\n: 2", b"{" * 1500, b"a: 1\n---\nb: 2",
    ],
    ids=["cut off", "no text", "an object", "a mapping as key", "too deep", "two documents"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["p.yaml", "p.json"])
def test_a_file_that_is_no_plain_mapping_of_values_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TunekitError) as caught:
        Plan.load(tmp_path / name)
    assert caught.value.codes[0].startswith("plan-")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("content", ["", "just text", "- a\n- b", "3"])
def test_a_file_that_holds_no_mapping_says_what_a_plan_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    assert faults(Plan.load, tmp_path / "p.yaml") == ("plan-shape",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.yaml", "model: a\nseed: 1\nseed: 2\n"),
        ("p.yaml", "model: a\nmethod:\n  kind: lora\n  r: 1\n  r: 2\n"),
        ("p.json", '{"model": "a", "seed": 1, "seed": 2}'),
    ],
)
def test_a_key_that_stands_twice_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert faults(Plan.load, tmp_path / name) == ("plan-field-twice",)


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_newer_schema_is_refused_with_the_way_out() -> None:
    later = {**plan().to_dict(), "schema": SCHEMA + 1}
    with pytest.raises(InvalidError, match="Upgrade tunekit-hf") as caught:
        Plan.from_dict(later)
    assert caught.value.codes == ("plan-schema",)
    assert faults(Plan.from_dict, {**plan().to_dict(), "schema": "one"}) == ("plan-schema",)
    assert faults(Plan.from_dict, {**plan().to_dict(), "kind": "tunekit-record"}) == ("plan-kind",)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InvalidError, match="Did you mean `learning_rate`"):
        plan(learning_rat=1e-4)
    with pytest.raises(InvalidError, match="Did you mean `lora_alpha`"):
        Plan.from_dict({"model": "a", "task": "causal-lm", "method": {"kind": "lora", "lora_alpa": 3}})
    with pytest.raises(InvalidError, match="Did you mean `template`"):
        Plan.from_dict({"model": "a", "task": "causal-lm", "method": "full", "data": {"path": "x", "templat": "{a}"}})


@pytest.mark.parametrize("name", HOST_NAMES)
def test_a_hosts_own_field_name_is_answered_with_ours(name: str) -> None:
    with pytest.raises(InvalidError, match="has a name of its own for it") as caught:
        plan(**{name: 1})
    assert caught.value.codes == ("plan-host-field",)


def test_the_answers_to_host_names_name_real_fields() -> None:
    for name, answer in HOST_NAMES.items():
        ours = answer.split("`")[1].split(":")[0]
        assert ours in hints(Plan), (name, answer)
        assert name not in hints(Plan)


def test_all_faults_are_told_at_once() -> None:
    wrong = {
        "model": "a", "bf16": True, "learning_rat": 1, "seed": "x", "max_length": 0, "task": "ner",
        "method": {"kind": "lora", "r": 0, "rank": 3}, "data": {"path": 3},
    }  # fmt: skip
    assert {
        "plan-host-field", "plan-unknown-field", "plan-type", "plan-max-length", "task-unknown", "lora-unknown-field", "data-type",
    } <= set(faults(Plan.from_dict, wrong))  # fmt: skip


def test_faults_of_type_and_of_range_come_together() -> None:
    assert set(faults(plan, seed="x", max_length=0, learning_rate=0)) == {
        "plan-type",
        "plan-max-length",
        "plan-learning-rate",
    }


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidError) as caught:
        Plan.from_dict({"seed": 3})
    assert [f.seen for f in caught.value.findings] == ["no `model`", "no `task`", "no `method`"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": " "}, "plan-model"),
        ({"max_length": 0}, "plan-max-length"),
        ({"per_device_train_batch_size": 0}, "plan-per-device-train-batch-size"),
        ({"gradient_accumulation_steps": -1}, "plan-gradient-accumulation-steps"),
        ({"learning_rate": 0}, "plan-learning-rate"),
        ({"learning_rate": float("nan")}, "plan-type"),
        ({"learning_rate": float("inf")}, "plan-type"),
        ({"weight_decay": -0.1}, "plan-weight-decay"),
        ({"warmup": -1}, "plan-warmup"),
        ({"num_train_epochs": 0}, "plan-num-train-epochs"),
        ({"max_steps": 0}, "plan-max-steps"),
        ({"seed": -1}, "plan-seed"),
        ({"seed": 2**32}, "plan-seed"),
        ({"task": "sequence-clasification"}, "task-unknown"),
        ({"dtype": "bf16"}, "plan-type"),
        ({"quantization": "int4"}, "plan-type"),
        ({"packing": True, "task": "seq2seq"}, "plan-packing-task"),
        ({"frozen_activations": "cached", "packing": True, "task": "causal-lm"}, "plan-activations-packing"),
        ({"frozen_activations": "cached", "num_processes": 2, "sharding": "ddp"}, "plan-activations-processes"),
        (
            {"frozen_activations": "cached", "objective": Distillation(teacher="t")},
            "plan-activations-objective",
        ),
        ({"problem_type": "regression"}, "plan-problem-type-task"),
        ({"quantization": "nf4"}, "plan-quantized-base"),
        ({"num_processes": 2}, "plan-sharding-missing"),
        ({"sharding": "ddp"}, "plan-sharding-single"),
        ({"num_processes": 3, "num_machines": 2, "sharding": "ddp"}, "plan-machines"),
        ({"offload": "optimizer"}, "plan-offload-sharding"),
        ({"offload": "parameters", "sharding": "zero2", "num_processes": 2}, "plan-offload-stage"),
        ({"callbacks": "progress"}, "plan-type"),
        ({"method": "lora"}, "plan-type"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_way_out(changes: dict, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        plan(**changes)
    assert caught.value.codes == (code,)
    assert all(f.fix for f in caught.value.findings)


@pytest.mark.parametrize("quantization", get_args(Quantization))
def test_a_frozen_base_may_be_quantised(quantization: str) -> None:
    assert plan(method=Lora(), quantization=quantization).quantization == quantization


# ---------------------------------------------------------------------------------------------- what is accepted


def test_numbers_as_people_write_them_in_yaml_are_numbers(tmp_path: Path) -> None:
    text = "model: a\ntask: causal-lm\nmethod: lora\nlearning_rate: 1e-4\nweight_decay: 1E-2\nwarmup: 100\n"
    (tmp_path / "p.yaml").write_text(text)
    made = Plan.load(tmp_path / "p.yaml")
    assert (made.learning_rate, made.weight_decay, made.warmup) == (1e-4, 0.01, 100.0)
    assert made.method == Lora()


def test_short_forms_of_the_parts_are_understood() -> None:
    made = Plan.from_dict(
        {"model": "a", "task": "causal-lm", "method": "full", "objective": "supervised", "data": "rows.jsonl"}
    )
    assert (made.method, made.objective, made.data) == (Full(), Supervised(), DataSpec(path="rows.jsonl"))


def test_an_enumeration_of_the_hosts_is_written_as_its_value() -> None:
    from transformers.training_args import OptimizerNames

    made = plan(optim=OptimizerNames.ADAMW_TORCH)
    assert type(made.optim) is str
    assert Plan.from_dict(yaml.safe_load(made.to_yaml())) == made


def test_replacing_gives_a_copy_and_checks_it() -> None:
    base = plan()
    assert base.replace(seed=1).seed == 1
    assert base.seed == 42
    with pytest.raises(dataclasses.FrozenInstanceError):
        base.seed = 3  # type: ignore[misc]


def test_the_effective_batch_counts_accumulation_and_processes() -> None:
    made = plan(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_processes=2, sharding="ddp")
    assert made.effective_batch_size == 24
