"""Every command does what it says, in words and in JSON, on a pipe and in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunekit.cli.main import COMMANDS, app


def call(*args: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def as_json(*args: object) -> Any:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty rows of two classes, eight of them for evaluation."""
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [json.dumps({"text": f"the {'good' if i % 2 else 'bad'} sun {i}", "label": "yn"[i % 2]}) for i in range(40)]
    (folder / "train.jsonl").write_text("\n".join(lines[:32]))
    (folder / "validation.jsonl").write_text("\n".join(lines[32:]))
    return folder


@pytest.fixture
def plan(tiny_encoder: str, rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    asked = ("advise", tiny_encoder, rows, "--hardware", "24GB", "--method", "lora", "--save", path)
    assert call(*asked).exit_code == 0
    return path


def test_help_names_every_command_and_each_has_an_example() -> None:
    text = call("--help").stdout
    for name in COMMANDS:
        assert name in text
        assert f"Example: tunekit {name}" in " ".join(call(name, "--help").stdout.split())


def test_every_command_gives_json_and_those_of_a_plan_take_changes() -> None:
    import typer

    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        options = {o for p in group.commands[name].params for o in p.opts}
        assert "--json" in options, name
        assert ("changes" in options) == (name in ("estimate", "calibrate", "check", "train", "launch", "teach")), name


@pytest.mark.parametrize(
    ("typed", "position", "offered"), [("tunekit ad", 1, "advise"), ("tunekit launch --dr", 2, "--dry-run")]
)
def test_the_shell_completes_commands_and_options(typed: str, position: int, offered: str) -> None:
    env = {**os.environ, "_TUNEKIT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(position)}
    done = subprocess.run([sys.executable, "-m", "tunekit"], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [offered]


def test_the_version_is_told() -> None:
    import tunekit

    assert call("--version").stdout == f"tunekit {tunekit.__version__}\n"


def test_help_brings_in_no_heavy_package() -> None:
    code = (
        "import sys; sys.argv = ['tunekit', '--help']\n"
        "from tunekit.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'yaml', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_advise_prints_what_the_public_face_answers(tiny_encoder: str, rows: Path) -> None:
    import tunekit

    given = ("advise", tiny_encoder, rows, "--hardware", "24GB", "--method", "lora", "--method", "full")
    answer = tunekit.advise(tiny_encoder, str(rows), hardware="24GB", methods=["lora", "full"])
    assert as_json(*given) == json.loads(answer.to_json())
    assert call(*given).stdout.strip() == str(answer).strip()


def test_advise_needs_no_rows_where_facts_are_told(tiny_decoder: str) -> None:
    told = as_json(
        "advise", tiny_decoder, "--num-examples", 500, "--mean-tokens", 30, "--hardware", "24GB", "--method", "lora"
    )
    assert told["workload"]["data"]["num_examples"] == 500
    assert told["ranked"]


def test_columns_are_taken_by_name(tiny_encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"sun {i}", "z": "ab"[i % 2], "r": f"moon {i}"}) for i in range(20)))
    given = (
        "advise",
        tiny_encoder,
        path,
        "--task",
        "sequence-classification",
        "--hardware",
        "24GB",
        "--method",
        "lora",
    )
    told = as_json(*given, "--column", "text=q", "--column", "label=z")
    assert dict(told["workload"]["data"]["columns"]) == {"text": "q", "label": "z"}


@pytest.mark.parametrize("name", ["rows.csv", "marked.csv", "utf16.csv", "parts"])
def test_rows_of_every_make_give_the_same_facts(tiny_encoder: str, tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [{"text": f"the {'schöne' if i % 2 else 'trübe'} Tag {i}", "label": "yn"[i % 2]} for i in range(12)]
    path = tmp_path / name
    if name == "parts":
        path.mkdir()
        for i in range(0, 12, 4):
            pq.write_table(pa.Table.from_pylist(lines[i : i + 4]), path / f"part-{i:02}.parquet")
    else:
        encoding = {"rows.csv": "utf-8", "marked.csv": "utf-8-sig", "utf16.csv": "utf-16"}[name]
        path.write_text("text;label\n" + "".join(f"{r['text']};{r['label']}\n" for r in lines), encoding)
    asked = ("advise", tiny_encoder, path, "--hardware", "24GB", "--method", "bitfit")
    data = as_json(*asked)["workload"]["data"]
    assert (data["num_examples"], data["label_names"], data["class_counts"]) == (12, ["n", "y"], [6, 6])
    assert data["columns"] == [["text", "text"], ["label", "label"]]
    assert data["num_duplicates"] == 0


def test_the_saved_plan_is_the_first_of_the_advice_and_can_be_estimated(plan: Path) -> None:
    from tunekit.plan import Plan

    estimated = as_json("estimate", plan, "--hardware", "24GB")
    assert estimated["plan"] == json.loads(json.dumps(Plan.load(plan).to_dict()))
    assert estimated["fits"] is True
    assert sum(estimated["memory"]["parts"].values()) == estimated["memory"]["allocated_bytes"]
    text = call("estimate", plan, "--hardware", "24GB").stdout
    assert "used on the device" in text
    assert "steps of" in text


def test_estimate_says_that_a_plan_changed_by_hand_needs_more(plan: Path) -> None:
    small = as_json("estimate", plan, "--hardware", "24GB", "per_device_train_batch_size=2")
    large = as_json("estimate", plan, "--hardware", "24GB", "per_device_train_batch_size=32", "method.r=16")
    assert large["plan"]["method"]["r"] == 16
    assert large["memory"]["allocated_bytes"] > small["memory"]["allocated_bytes"]


def test_check_finds_nothing_wrong_with_the_advised_plan_and_a_planted_mistake(plan: Path) -> None:
    told = as_json("check", plan)
    assert [f for f in told["findings"] if f["severity"] == "error"] == []
    refused = CliRunner().invoke(app, ["check", str(plan), "num_processes=2", "sharding=ddp"])
    assert refused.exit_code == 2
    assert "[world-size]" in refused.stderr
    assert not (plan.parent / "runs").exists()


def test_train_then_report_from_a_plan_file(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("train", plan, f"output_dir={out}", "num_train_epochs=1")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert "peak memory" in result.stdout
    assert "{'loss'" not in result.output, "the host's own lines"
    assert {"record.json", "plan.yaml", "adapter_config.json"} <= {p.name for p in out.iterdir()}
    reported = call("report", out)
    assert reported.exit_code == 0
    assert "LoRA" in (out / "report.html").read_text("utf-8")
    assert json.loads((out / "report.json").read_text("utf-8"))["run"]["status"] == "finished"


def test_train_goes_on_where_an_output_folder_may_be_overwritten(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    result = call("train", plan, f"output_dir={out}", "max_steps=1", "--overwrite", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"]["done"] == 1
    assert (out / "mine.txt").read_text() == "keep"


def test_report_takes_the_advice_along(plan: Path, tmp_path: Path, tiny_encoder: str, rows: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"kind": "tunekit-run", "status": "finished"}))
    told = call("advise", tiny_encoder, rows, "--hardware", "24GB", "--method", "full", "--json").stdout
    (tmp_path / "advice.json").write_text(told)
    result = as_json("report", record, "--advice", tmp_path / "advice.json", "--output", tmp_path / "page")
    assert "Full fine-tuning" in Path(result["html"]).read_text("utf-8")


def test_methods_lists_every_method_with_its_publication() -> None:
    from tunekit.discovery import slugs

    listed = as_json("methods")
    assert [m["slug"] for m in listed] == list(slugs("method"))
    assert all(m["reference"] and m["summary"] for m in listed)
    assert "lora" in call("methods").stdout


def everything_to_explain() -> list[str]:
    from tunekit.advisor.variants import VARIANTS
    from tunekit.discovery import slugs

    return [
        "plan",
        "data",
        *VARIANTS,
        *(s for kind in ("method", "objective", "rule", "callback") for s in slugs(kind)),
    ]


@pytest.mark.parametrize("topic", everything_to_explain())
def test_everything_can_be_explained(topic: str) -> None:
    told = as_json("explain", topic)
    assert told["text"]
    assert all(s["text"] for s in told.get("settings", {}).values() if topic in ("lora",))
    assert topic in call("explain", topic).stdout


def test_a_setting_is_explained_with_type_default_and_words() -> None:
    told = as_json("explain", "plan.warmup")
    assert told == {"topic": "plan.warmup", "type": told["type"], "default": 0.06, "text": told["text"]}
    assert "share of all steps" in told["text"]
    assert "must be given" in call("explain", "plan.model").stdout


@pytest.mark.parametrize("width", [60, 100])
def test_words_are_whole_at_every_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for topic in ("lora", "tokenizer-missing", "fits-memory", "qlora"):
        told = as_json("explain", topic)
        shown = call("explain", topic).stdout
        long = [line for line in shown.splitlines() if len(line) > width]
        assert all(">>>" in line or " " not in line.strip() for line in long), long
        for words in (told["text"], told.get("reference", "")):
            assert "".join(words.split()) in "".join(shown.split()), "nothing is lost"


def test_a_well_known_name_is_explained_by_what_a_plan_writes() -> None:
    assert as_json("explain", "qlora")["plan"] == {"method": {"kind": "lora"}, "quantization": "nf4"}
    assert '"use_dora": true' in call("explain", "dora").stdout


def test_a_rule_is_explained_with_its_source_and_what_it_says() -> None:
    told = as_json("explain", "fits-memory")
    assert told["reference"]
    assert told["examples"][0]["code"] == "fits-memory"


def run(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tunekit", *args], capture_output=True, text=True, **more)


def test_the_module_runs_as_a_program_and_a_pipe_gets_no_colours(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | {"TERM": "xterm-256color"}
    done = run("methods", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m tunekit explain plan | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_a_run_that_stopped_early_says_so_and_whose_weights_it_kept(plan: Path, tmp_path: Path) -> None:
    # At this rate nothing is learnt, so that the first evaluation stays the best one.
    how = ("learning_rate=1e-12", "early_stopping_patience=1", "num_train_epochs=4", "eval_interval=null")
    result = call("train", plan, *how, f"output_dir={tmp_path / 'out'}")
    assert result.exit_code == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    kept, done, planned = (record["steps"][k] for k in ("kept", "done", "planned"))
    assert kept == record["best"]["step"] == record["final"]["step"] < done < planned
    assert record["final"]["epoch"] == record["evaluations"][0]["epoch"]
    said = " ".join(result.stdout.split())
    assert f"{done} of {planned} steps in " in said
    assert f"the weights kept are those of step {kept}, the best by accuracy" in said
    assert said.count("accuracy 0.") == 1, "the last scores are told once"
    assert f"those of step {kept}, the best by accuracy" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_is_interrupted_while_it_saves_ends_with_130_and_keeps_whole_checkpoints_only(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunekit.saving
    from tunekit.checkpoint import last_checkpoint

    out, seal, sealed = tmp_path / "out", tunekit.saving.seal, []

    def interrupted_the_second_time(folder: Path, **values: Any) -> None:
        sealed.append(folder.name)
        if len(sealed) == 2:
            assert (folder / "trainer_state.json").is_file(), "the checkpoint is written, and not yet in its place"
            signal.raise_signal(signal.SIGINT)
        seal(folder, **values)

    monkeypatch.setattr(tunekit.saving, "seal", interrupted_the_second_time)
    result = call("train", plan, "num_train_epochs=5", "early_stopping_patience=null", f"output_dir={out}")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr
    way_on = f"tunekit train {plan} num_train_epochs=5 early_stopping_patience=null output_dir={out} --resume"
    assert result.stderr.rstrip().endswith(f"interrupted; `{way_on}` goes on from {sealed[0]}")
    assert [p.name for p in out.glob("checkpoint-*")] == sealed[:1]
    assert last_checkpoint(out) == str(out / sealed[0])


@pytest.mark.slow
def test_an_interruption_ends_with_130_and_no_traceback(plan: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tunekit",
            "train",
            str(plan),
            "num_train_epochs=100000",
            f"output_dir={tmp_path / 'out'}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
