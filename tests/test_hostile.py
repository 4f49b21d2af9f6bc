"""Files that mean harm: nothing in them is executed, nothing outside is written, and each is refused under a code."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tunekit
import zoo
from tunekit.cli.main import app
from tunekit.errors import TunekitError
from tunekit.task import Task

CLS = "sequence-classification"


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"the sun {i}", "label": i % 2}) + "\n" for i in range(12)))  # fmt: skip
    return tmp_path


def plan_file(here: Path, **more: Any) -> str:
    values = {"model": "model", "task": CLS, "method": "full", "output_dir": "out", "data": {"path": "rows.jsonl"}, "max_steps": 1}  # fmt: skip
    (here / "plan.json").write_text(json.dumps({"kind": "tunekit-plan", "schema": 1, **values, **more}))
    return "plan.json"


def refused(here: Path, *line: str) -> str:
    before = set(here.rglob("*"))
    result = CliRunner().invoke(app, [*line], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert set(here.rglob("*")) == before
    return result.stderr


def copied(source: str, here: Path) -> Path:
    return Path(shutil.copytree(source, here / "model"))


@pytest.mark.parametrize("command", ["train", "check"])
def test_pickled_weights_of_a_model_are_refused_and_run_nothing(command: str, tiny_encoder: str, here: Path) -> None:
    folder, mark = copied(tiny_encoder, here), here / "harmed"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harm(mark)}, folder / "pytorch_model.bin")
    assert "[model-unreadable]" in refused(here, command, plan_file(here))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(mark)))
    assert "[model-unreadable]" in refused(here, command, plan_file(here))
    assert not mark.exists()


@pytest.mark.parametrize("line", [("advise", "./model", "rows.jsonl"), ("train", "plan.json"), ("check", "plan.json"), ("estimate", "plan.json")])  # fmt: skip
def test_a_model_with_code_of_its_own_is_refused_and_its_code_not_run(line: tuple[str, ...], tiny_encoder: str, here: Path) -> None:  # fmt: skip
    folder = copied(tiny_encoder, here)
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "harm.Config", "AutoModelForSequenceClassification": "harm.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "harmful", "auto_map": mapped}))
    (folder / "harm.py").write_text(f"open({str(here / 'harmed')!r}, 'w')\n")
    plan_file(here)
    before = sorted(p.name for p in here.iterdir())
    result = CliRunner().invoke(app, [*line], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert "[model-" in result.stderr, result.stderr
    assert sorted(p.name for p in here.iterdir()) == before


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", "..", "", "x\x00y", "a.b"])
def test_a_name_of_an_adapter_that_leads_out_of_its_folder_is_refused(name: str) -> None:
    method = tunekit.methods.BottleneckAdapter(reduction_factor=4)
    model = tunekit.prepare(zoo.build("bert", Task.named(CLS)), method, CLS)
    with pytest.raises(TunekitError):
        tunekit.add_adapter(model, name, method)
    assert tunekit.adapter_names(model) == ("default",)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", "", "a.b"])
def test_so_is_one_of_pefts(name: str, tmp_path: Path) -> None:
    model = tunekit.prepare(zoo.build("bert", Task.named(CLS)), tunekit.methods.Lora(r=2), CLS)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(TunekitError):
        tunekit.add_adapter(model, name, tmp_path / "saved")


def adapter(folder: Path, **changes: Any) -> Path:
    model = tunekit.prepare(zoo.build("bert", Task.named(CLS)), tunekit.methods.Lora(r=2), CLS)
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [{"r": 10**12}, {"r": -1}, {"r": "x"}, {"target_modules": ["../x"]}, {"target_modules": "(a+)+$"}, {"peft_type": "os.system"}, {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}}],
    ids=str,
)  # fmt: skip
def test_a_hostile_adapter_configuration_is_refused_or_harmless(changes: dict[str, Any], tmp_path: Path) -> None:
    base = zoo.build("bert", Task.named(CLS))
    before = resident()
    try:
        tunekit.load(base, adapter(tmp_path / "saved", **changes))
    except TunekitError:
        assert not any("lora" in n for n, _ in base.named_modules())
    assert resident() - before < 2**30


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 10**9}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**13}, {"num_hidden_layers": -1}, {"hidden_size": "x"}, {"num_attention_heads": 0}],
    ids=str,
)  # fmt: skip
@pytest.mark.timeout(120)
def test_absurd_sizes_of_a_model_are_answered_without_allocating_them(changes: dict[str, Any], tiny_encoder: str, here: Path) -> None:  # fmt: skip
    folder = copied(tiny_encoder, here)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    before = resident()
    for line in (
        ["advise", "./model", "rows.jsonl", "--method", "full", "--hardware", "24GB"],
        ["train", plan_file(here)],
    ):
        result = CliRunner().invoke(app, line)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code in ((0, 2) if line[0] == "advise" else (2,)), result.output
    assert resident() - before < 2**30


@pytest.mark.parametrize(
    "changes",
    [{"max_length": 10**18}, {"per_device_train_batch_size": 10**15}, {"gradient_accumulation_steps": 10**18}, {"num_processes": 10**9}, {"max_steps": 10**30}, {"seed": 10**40}, {"num_train_epochs": 1e308}, {"callbacks": ["progress"] * 100_000}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
@pytest.mark.timeout(120)
def test_absurd_figures_of_a_plan_end_in_an_answer_or_in_words(changes: dict[str, Any], tiny_encoder: str, here: Path) -> None:  # fmt: skip
    copied(tiny_encoder, here)
    before = resident()
    result = CliRunner().invoke(app, ["estimate", plan_file(here, **changes), "--hardware", "24GB"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 2), result.output
    assert resident() - before < 2**30


def test_a_plan_of_gigabytes_is_not_read(here: Path) -> None:
    with open(here / "plan.yaml", "wb") as file:
        file.truncate(3 * 2**30)  # a hole: nothing on the disk
    assert "[plan-file-unreadable]" in refused(here, "estimate", "plan.yaml")


def test_a_zipped_file_that_stands_for_gigabytes_is_not_unzipped(tiny_encoder: str, here: Path) -> None:
    copied(tiny_encoder, here)
    with gzip.open(here / "rows.jsonl.gz", "wb") as file:
        for _ in range(300):
            file.write(b" " * 2**20)
    before = resident()
    message = refused(here, "advise", "./model", "rows.jsonl.gz")
    assert "[data-unreadable]" in message
    assert resident() - before < 2**28


def nested() -> bytes:
    return b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "label": 0}\n'


def long_number() -> bytes:
    return b'{"text": "a", "label": ' + b"9" * 100_000 + b"}\n"


@pytest.mark.parametrize("make", [nested, long_number])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rows_that_break_the_reader_are_one_message(make: Callable[[], bytes], name: str, tiny_encoder: str, here: Path) -> None:  # fmt: skip
    copied(tiny_encoder, here)
    (here / name).write_bytes(make())
    assert "[data-unreadable]" in refused(here, "advise", "./model", name)
