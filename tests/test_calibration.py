"""The user's own measurements: kept whole, read by every estimate for the device, and said in its reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunekit
import zoo
from tunekit import calibration
from tunekit.advisor.observe.hardware import hardware
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory, estimate_time
from tunekit.calibration import Measurement
from tunekit.errors import InvalidError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.workload import Hardware

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
MODEL = model_facts(zoo.config("bert"))
PLAN = Plan(model="x", task="sequence-classification", method=Full(), max_length=16, max_steps=10)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "deep" / "calibration.json"
    monkeypatch.setenv(calibration.FILE_VARIABLE, str(where))
    return where


def measured(what: str, ratio: float, device: str = "A10G") -> Measurement:
    return Measurement(device=device, what=what, predicted=100.0, measured=100.0 * ratio)


def test_the_file_lies_in_the_users_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(calibration.FILE_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert calibration.path() == tmp_path / "tunekit" / "calibration.json"
    monkeypatch.setenv(calibration.FILE_VARIABLE, "off")
    assert calibration.path() is None
    assert calibration.add([measured("memory", 1.1)]) is None
    assert calibration.read() == ()


def test_what_is_added_is_read_again_and_can_be_forgotten(file: Path) -> None:
    assert calibration.read() == ()
    first, second = measured("memory", 1.1), measured("step", 2.0)
    calibration.add([first])
    calibration.add([second])
    assert calibration.read() == (first, second)
    assert [p.name for p in file.parent.iterdir()] == ["calibration.json"], "nothing is left beside it"
    assert calibration.forget()
    assert not calibration.forget()
    assert calibration.read() == ()


def test_only_the_latest_are_kept() -> None:
    for k in range(60):
        calibration.add([measured("memory", 1 + k / 1000)])
    kept = calibration.read()
    assert len(kept) == 50
    assert kept[-1].ratio == pytest.approx(1.059)


def test_a_broken_file_is_an_error_that_says_so_and_stops_no_estimate(file: Path) -> None:
    before = estimate_memory(PLAN, CARD, model=MODEL)
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(InvalidError, match="calibration-broken"):
        calibration.read()
    assert estimate_memory(PLAN, CARD, model=MODEL) == before


def test_memory_is_multiplied_by_the_middle_ratio_and_says_so() -> None:
    before = estimate_memory(PLAN, CARD, model=MODEL)
    calibration.add([measured("memory", r) for r in (1.0, 1.2, 1.3)])
    after = estimate_memory(PLAN, CARD, model=MODEL)
    assert after.reserved_bytes == round(1.2 * before.reserved_bytes)
    assert after.device_bytes - after.reserved_bytes == before.device_bytes - before.reserved_bytes, "the context stays"
    assert after.parts == before.parts
    assert after.correction == 1.2
    assert "3 measured runs on A10G" in after.reasons[-1]
    assert after.interval[0] < after.device_bytes < after.interval[1]
    assert after.interval[1] / after.device_bytes >= 1.3 / 1.2, "what was seen lies in it"


def test_other_devices_stay_as_they_were() -> None:
    other = Hardware(device="cuda", name="H100", memory_bytes=80 * 2**30)
    before = estimate_memory(PLAN, other, model=MODEL), estimate_time(PLAN, other, model=MODEL)
    calibration.add([measured("memory", 1.5), measured("step", 1.5)])
    assert (estimate_memory(PLAN, other, model=MODEL), estimate_time(PLAN, other, model=MODEL)) == before


def test_time_is_multiplied_throughout() -> None:
    before = estimate_time(PLAN, CARD, model=MODEL)
    calibration.add([measured("step", 1.5)])
    after = estimate_time(PLAN, CARD, model=MODEL)
    for name in ("step_seconds", "total_seconds"):
        assert getattr(after, name) == pytest.approx(1.5 * getattr(before, name))
    assert after.tokens_per_second == pytest.approx(before.tokens_per_second / 1.5)
    assert sum(after.parts.values()) == pytest.approx(after.step_seconds)
    assert "a measured run on A10G" in after.reasons[-1]


def record(memory: dict[str, Any], seen: dict[str, Any], step: float = 1.0) -> dict[str, Any]:
    return {
        "status": "finished",
        "plan": {"model": "m", "method": {"kind": "full"}},
        "predicted": {"memory": memory, "duration": {"step_seconds": 1.0, "fidelity": "traced"}},
        "measured": {"memory": seen, "duration": {"step_seconds": step, "num_steps": 3}},
    }


def test_a_record_says_what_was_measured_before_any_correction() -> None:
    predicted = {"reserved_bytes": 240, "device_bytes": 300, "fidelity": "traced", "correction": 1.2}
    found = calibration.from_record(record(predicted, {"reserved_bytes": 220, "device_bytes": 999}, 1.1), "A10G")
    assert [(m.what, m.predicted, m.measured) for m in found] == [("memory", 200.0, 220), ("step", 1.0, 1.1)]


def test_what_cannot_be_the_same_workload_is_left_out() -> None:
    predicted = {"reserved_bytes": 240, "device_bytes": 300, "fidelity": "traced"}
    assert calibration.from_record(record(predicted, {"reserved_bytes": 1000}, 9.0), "A10G") == ()
    coarse = {**predicted, "fidelity": "coarse"}
    assert [m.what for m in calibration.from_record(record(coarse, {"reserved_bytes": 240}), "A10G")] == ["step"]
    assert calibration.from_record({**record(predicted, predicted), "status": "running"}, "A10G") == ()


def test_a_few_real_steps_are_taken_and_correct_later_estimates(rows_plan: Plan) -> None:
    found = tunekit.calibrate(rows_plan)
    assert {m.what for m in found} <= {"memory", "step"}
    assert calibration.read() == found
    here = hardware("auto")
    assert {m.device for m in found} == {here.name}
    memory = next(m for m in found if m.what == "memory")
    corrected = tunekit.estimate_memory(rows_plan, here)
    assert corrected.correction == memory.ratio
    assert not Path(rows_plan.output_dir).exists(), "the plan's folder is not touched"


def test_a_run_feeds_the_same_file(rows_plan: Plan) -> None:
    tunekit.run(rows_plan)
    assert any(m.what == "memory" and m.method == "lora" for m in calibration.read())


def test_one_step_is_no_measurement(rows_plan: Plan) -> None:
    with pytest.raises(InvalidError, match="calibrate-steps"):
        tunekit.calibrate(rows_plan, steps=1)


@pytest.fixture
def rows_plan(tiny_encoder: str, tmp_path: Path) -> Plan:
    """A tiny model and a few rows on disk."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the sun {i}", "label": i % 2}) + "\n" for i in range(32)))
    return Plan(
        model=tiny_encoder, task="sequence-classification", method=Lora(r=4), max_steps=4, max_length=32,
        per_device_train_batch_size=4, output_dir=str(tmp_path / "out"),
        data=tunekit.DataSpec(path=str(rows), columns={"text": "text", "label": "label"}),
    )  # fmt: skip


def test_the_command_measures_shows_and_forgets(rows_plan: Plan, file: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tunekit.cli.main import app

    run = CliRunner().invoke
    assert "nothing was measured yet" in run(app, ["calibrate"]).output
    rows_plan.save(tmp_path / "plan.yaml")
    done = run(app, ["calibrate", str(tmp_path / "plan.yaml"), "--steps", "4", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["file"] == str(file)
    assert said["new"] == said["measurements"] != []
    assert "memory is multiplied by" in run(app, ["calibrate"]).output
    assert "forgot" in run(app, ["calibrate", "--forget"]).output
    assert not file.exists()
