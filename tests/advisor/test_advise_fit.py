"""How settings are sought: on a machine whose memory and time are known formulas, so that the best choice is known too."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.advisor.fit import Fitted, Screened, Simulator, divisors, fit, fits, floor_bytes, stages
from tunekit.advisor.propose import make_plan, max_length, propose
from tunekit.advisor.rule import GIB, example
from tunekit.discovery import find
from tunekit.errors import InvalidError
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.plan import Plan
from tunekit.sharding import sharding_faults
from tunekit.task import Task
from tunekit.workload import Hardware, Workload


class Machine:
    """Static bytes and bytes a row, known exactly; checkpointing keeps a tenth of a row and computes a third more.

    Rows go through in the same time however they are split, once a micro-batch keeps the device busy.
    """

    def __init__(self, static_gib: float = 2.0, row_gib: float = 1.0) -> None:
        self.static, self.row, self.calls = static_gib, row_gib, 0

    def memory(self, workload: Workload, plan: Plan) -> MemoryEstimate:
        self.calls += 1
        static = self.static * {"float32": 1.0, "bfloat16": 0.5, "float16": 0.5}[plan.dtype]
        static *= 0.3 if plan.quantization else 1.0
        static /= plan.num_processes if plan.sharding == "zero3" else 1
        rows = plan.per_device_train_batch_size * (0.1 if plan.activation_checkpointing else 1.0)
        size = int((static + self.row * rows) * GIB)
        return MemoryEstimate(
            parts={"all": size}, allocated_bytes=size, reserved_bytes=size, device_bytes=size, interval=(size, size),
            moment="backward", trainable_parameters=1, total_parameters=2,
        )  # fmt: skip

    def duration(self, workload: Workload, plan: Plan) -> TimeEstimate:
        assert fits(workload, self.memory(workload, plan)), "durations are only worth knowing of what fits"
        self.calls -= 1
        seconds = self.seconds(workload, plan)
        return TimeEstimate(
            step_seconds=1, num_steps=100, total_seconds=seconds, interval=(seconds, seconds), tokens_per_second=1
        )

    @property
    def simulator(self) -> Simulator:
        return Simulator(memory=self.memory, duration=self.duration, screen=self.screen)

    def screen(self, workload: Workload, plan: Plan) -> Screened:
        self.calls -= 1
        return Screened(least_bytes=self.memory(workload, plan).interval[1], seconds=self.seconds(workload, plan))

    def seconds(self, workload: Workload, plan: Plan) -> float:
        idle = max(1.0, 256 / (plan.per_device_train_batch_size * workload.data.mean_tokens))
        return 100.0 * (1.33 if plan.activation_checkpointing else 1.0) * (1.1 if plan.quantization else 1.0) * idle


def workload(gib: float = 24, devices: int = 1, **changes: Any) -> Workload:
    base = example("lora", num_parameters=changes.pop("num_parameters", 110_000_000)).workload
    card = Hardware(device="cuda", name="card", memory_bytes=int(gib * GIB), num_devices=devices)
    return dataclasses.replace(base, hardware=card, **changes)


def fitted(machine: Machine, method: str = "lora", **facts: Any) -> Fitted:
    asked = workload(**facts)
    return fit(asked, make_plan(asked, find("method", method)()), machine.simulator)


def test_the_whole_batch_is_taken_at_once_where_it_fits() -> None:
    machine = Machine(row_gib=0.1)
    found = fitted(machine)
    assert found.fits
    assert found.plan.gradient_accumulation_steps == 1
    assert not found.plan.activation_checkpointing
    assert machine.calls == 1


def test_rows_per_step_stay_as_the_recipe_has_them() -> None:
    wanted = find("method", "lora")().recipe(workload()).effective_batch_size
    for row in (0.1, 1.7, 9.0, 21.0):
        assert fitted(Machine(row_gib=row)).plan.effective_batch_size == wanted


def test_the_shorter_of_two_ways_is_taken() -> None:
    plain = fitted(Machine(row_gib=1.5))
    assert not plain.plan.activation_checkpointing
    assert plain.plan.gradient_accumulation_steps > 1
    cramped = fitted(Machine(row_gib=19.0))
    assert cramped.plan.activation_checkpointing


def test_memory_is_saved_by_four_bits_only_when_sixteen_do_not_do() -> None:
    facts = {"num_parameters": 8 * 10**9}
    assert fitted(Machine(static_gib=16, row_gib=0.1), **facts).plan.quantization is None
    assert fitted(Machine(static_gib=60, row_gib=0.1), **facts).plan.quantization == "nf4"


def test_several_devices_hold_whole_copies_first_and_share_when_they_must() -> None:
    assert fitted(Machine(row_gib=0.1), devices=4).plan.sharding == "ddp"
    shared = fitted(Machine(static_gib=60, row_gib=0.1), devices=4, num_parameters=8 * 10**9)
    assert shared.plan.sharding == "zero3"
    assert shared.plan.quantization is None


def test_a_quantised_base_is_divided_last_and_counts_whole_since_it_is_quantised_before() -> None:
    asked = workload(devices=4, num_parameters=8 * 10**9)
    tried = list(stages(asked, make_plan(asked, find("method", "lora")())))
    assert [(p.quantization, p.sharding) for p in tried[-2:]] == [("nf4", "ddp"), ("nf4", "zero3")]
    assert [f for p in tried for f in sharding_faults(p)] == []
    copied, divided = tried[-2:]
    assert floor_bytes(asked, divided) == floor_bytes(asked, copied)
    assert fitted(Machine(static_gib=200, row_gib=0.1), devices=4, num_parameters=8 * 10**9).plan == divided.replace(
        per_device_train_batch_size=4, per_device_eval_batch_size=8
    )


def test_the_hosts_memory_is_used_last_and_only_where_it_is_known_to_hold_the_state() -> None:
    asked = workload(devices=4, num_parameters=8 * 10**9)
    full = make_plan(asked, find("method", "full")())
    roomy = dataclasses.replace(asked, hardware=dataclasses.replace(asked.hardware, host_memory_bytes=200 * GIB))
    tight = dataclasses.replace(asked, hardware=dataclasses.replace(asked.hardware, host_memory_bytes=100 * GIB))
    assert [p.offload for p in stages(roomy, full)][-3:] == [None, "optimizer", "parameters"]
    assert {p.offload for p in stages(asked, full)} == {p.offload for p in stages(tight, full)} == {None}
    assert {p.offload for p in stages(roomy, make_plan(roomy, find("method", "lora")()))} == {None}
    assert [f for p in stages(roomy, full) for f in sharding_faults(p)] == []


def test_the_goal_speed_looks_for_the_shortest_run_of_all_settings() -> None:
    facts = {"gib": 6.0, "num_parameters": 110_000_000}
    usual = fitted(Machine(static_gib=5.7, row_gib=2.0), **facts)
    quick = fitted(Machine(static_gib=5.7, row_gib=2.0), goal="speed", **facts)
    assert (usual.plan.dtype, quick.plan.dtype) == ("float32", "bfloat16")
    assert usual.duration is not None
    assert quick.duration is not None
    assert quick.duration.total_seconds < usual.duration.total_seconds


def test_what_does_not_fit_comes_back_at_its_smallest_with_the_bytes() -> None:
    found = fitted(Machine(static_gib=500))
    assert not found.fits
    assert found.plan.per_device_train_batch_size == 1
    assert found.plan.activation_checkpointing
    assert found.memory is not None
    assert found.memory.device_bytes > workload().hardware.memory_bytes


def test_hopeless_stages_are_not_simulated() -> None:
    machine = Machine(static_gib=500)
    found = fitted(machine, num_parameters=400 * 10**9)
    assert not found.fits
    assert machine.calls == 1, "only the smallest settings, to say how much is missing"


def test_full_fine_tuning_is_never_quantised() -> None:
    asked = workload(num_parameters=8 * 10**9)
    assert {p.quantization for p in stages(asked, make_plan(asked, find("method", "full")()))} == {None}


def test_the_goal_memory_takes_one_row_at_a_time_and_offers_four_bits_beside() -> None:
    found = fitted(Machine(row_gib=0.1), goal="memory")
    assert found.plan.per_device_train_batch_size == 1
    assert found.plan.activation_checkpointing
    plans, _ = propose(workload(goal="memory"), ["lora", "full"])
    assert [(p.method.slug, p.quantization) for p in plans] == [("lora", None), ("lora", "nf4"), ("full", None)]


def test_precision_follows_the_device_and_what_is_trained() -> None:
    lora, full = find("method", "lora")(), find("method", "full")()
    big = workload(num_parameters=8 * 10**9)
    old = dataclasses.replace(big, hardware=dataclasses.replace(big.hardware, bf16=False))
    cpu = dataclasses.replace(big, hardware=Hardware(device="cpu", name="cpu", memory_bytes=GIB))
    seen = [(p.dtype, p.mixed_precision) for p in (make_plan(w, m) for w in (big, old, cpu) for m in (lora, full))]
    assert seen == [
        ("bfloat16", "bf16"), ("float32", "bf16"), ("float16", "fp16"), ("float32", "fp16"), ("float32", None), ("float32", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "demanded", "context", "expected"),
    [
        ((10, 20, 30), None, 512, 32),
        ((10,) * 999 + (4000,), None, 512, 16),
        ((600, 900), None, 512, 512),
        ((10, 20), 300, 512, 300),
        ((), None, 512, 512),
        ((), None, None, None),
    ],
)
def test_truncation_spares_all_rows_but_odd_outliers(
    lengths: tuple[int, ...], demanded: int | None, context: int | None, expected: int | None
) -> None:
    base = workload()
    asked = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, context_length=context),
        data=dataclasses.replace(base.data, lengths=lengths),
        max_length=demanded,
    )
    assert max_length(asked) == expected


def test_rows_are_held_out_where_nobody_did_and_there_are_enough() -> None:
    shares = []
    for rows, held_out in ((1000, 0), (1000, 50), (50, 0)):
        data = dataclasses.replace(workload().data, num_examples=rows, num_eval_examples=held_out)
        spec = make_plan(workload(data=data, data_source="rows.csv"), find("method", "lora")()).data
        assert spec is not None
        shares.append(spec.eval_share)
    assert shares == [0.1, 0.0, 0.0]


def test_unknown_methods_are_all_named() -> None:
    with pytest.raises(InvalidError) as e:
        propose(workload(), ["lroa", "full", "nothing"])
    assert e.value.codes == ("method-unknown", "method-unknown")
    assert "`lora`" in str(e.value)


@given(
    gib=st.floats(1, 200), static=st.floats(0.1, 150), row=st.floats(0.01, 50), devices=st.sampled_from([1, 2, 3, 8]),
    size=st.sampled_from([10**8, 8 * 10**9]), method=st.sampled_from(["lora", "full"]),
    goal=st.sampled_from(["balanced", "speed", "memory"]),
)  # fmt: skip
def test_what_is_said_to_fit_does_and_more_memory_never_hurts(
    gib: float, static: float, row: float, devices: int, size: int, method: str, goal: str
) -> None:
    def found(memory: float) -> Fitted:
        return fitted(Machine(static, row), method, gib=memory, devices=devices, num_parameters=size, goal=goal)

    here, larger = found(gib), found(1.5 * gib)
    asked = workload(gib=gib, devices=devices, num_parameters=size)
    if here.fits:
        assert here.memory is not None
        assert fits(asked, here.memory)
        assert larger.fits
        assert larger.duration is not None
        assert here.duration is not None
        if goal == "speed":
            assert larger.duration.total_seconds <= here.duration.total_seconds
    assert here.plan.method == find("method", method)()


@given(n=st.integers(1, 400))
def test_divisors_divide_and_start_with_the_number_itself(n: int) -> None:
    found = divisors(n)
    assert found[0] == n
    assert found[-1] == 1
    assert all(n % d == 0 for d in found)
    assert found == sorted(found, reverse=True)


def test_the_floor_is_below_what_any_plan_needs() -> None:
    asked = workload(num_parameters=10**9)
    plan = make_plan(asked, find("method", "full")())
    assert floor_bytes(asked, plan) == 16 * 10**9
    half = plan.replace(dtype="bfloat16", mixed_precision=None)
    assert floor_bytes(asked, half) == 8 * 10**9
    assert floor_bytes(asked, half.replace(num_processes=4, sharding="zero3")) == 2 * 10**9
    assert Task.named(plan.task) == asked.task


def kept(plan_of: str = "partial", **changes: Any) -> str:
    """What a plan proposes of the answers of frozen layers, for a hundred rows of 20 tokens and many epochs."""
    data = dataclasses.replace(workload().data, num_examples=100, lengths=(20,) * 100)
    return make_plan(workload(**{"data": data, **changes}), find("method", plan_of)()).frozen_activations


def test_answers_of_frozen_layers_are_kept_where_that_saves_much() -> None:
    assert kept() == "cached"
    many = dataclasses.replace(workload().data, num_examples=5_000_000, lengths=(400,) * 100)
    assert kept(data=many) == "recomputed"  # some two epochs, and more than memory has
    assert kept(devices=2) == "recomputed"
    assert kept("lora") == "recomputed"
    shallow = dataclasses.replace(workload().model, num_layers=2)
    assert kept(model=shallow) == "recomputed"  # nothing is frozen


def test_answers_of_frozen_layers_are_not_kept_where_nothing_says_how_many_there_are() -> None:
    unknown = dataclasses.replace(workload().data, lengths=())
    assert kept(data=unknown) == "recomputed"
    written = dataclasses.replace(workload().model, side="seq2seq")
    assert kept(model=written) == "recomputed"
