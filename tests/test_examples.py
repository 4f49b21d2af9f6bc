"""Every example runs offline, from its own folder's files, in a process of its own. A few of them always, all of them by `make examples`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "small")
ALWAYS = ("by_hand_and_through_tunekit", "lora_instructions")
STEPS = {"by_hand_and_through_tunekit": 20}
EXPECTED = {
    "advice_for_70b": r"== 2x8xH100\n.*rows a device\n.*GiB a device",
    "by_hand_and_through_tunekit": r"by hand +mean loss (\d\.\d{4})\nthrough a plan +mean loss \1\n",
    "lora_instructions": r"LoRA .*\n.*\nQLoRA .*",
    "prefix_tuning_table_to_text": r"before: loss .*\ntrains .*\nafter: loss .* of 20 tables as wanted",
    "prompt_learning": r"no label seen: +accuracy .*\n.*fill in +accuracy .*\n.*new head +accuracy",
    "zero3": r"reopened in one process: Peft",
    "callbacks_in_your_trainer": r"plain Trainer: finished.*\nSFTTrainer: finished",
    "adapters_and_fusion": r"fusion of three .*\n.*opinion \d\.\d+ punctuation",
}
"""What an example must say at the least; the others must say something."""


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_an_example_runs_offline_and_says_what_it_found(name: str, tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--steps", str(STEPS.get(name, 3))]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    said = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("{'train_runtime'")) + "\n"
    assert re.search(EXPECTED.get(name, r"\S"), said), said


def test_the_table_of_examples_names_every_one() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert set(re.findall(r"\]\((\w+)\.py\)", text)) == set(EXAMPLES)


def test_every_example_asks_a_question_and_says_how_it_is_run() -> None:
    for name in EXAMPLES:
        head = (FOLDER / f"{name}.py").read_text("utf-8").split('"""')[1]
        assert "?" in head.splitlines()[0], name
        assert f"python examples/{name}.py" in head, name
