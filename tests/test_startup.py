"""Starting is cheap: what `import tunekit` and the command line load is counted, and their CPU time is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from source_tree import ROOT

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "numpy", "pandas", "importlib.metadata"}

REPORT = """
import json, sys, time
heavy = sorted(set({heavy!r}) & set(sys.modules))
print(json.dumps({{"heavy": heavy, "count": len(sys.modules), "cpu_seconds": time.process_time()}}))
"""


def fresh(code: str, *paths: Path, cwd: Path = ROOT) -> dict:
    """Runs code in a new interpreter and tells what it had loaded and used by then."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    command = [sys.executable, "-c", code + REPORT.format(heavy=sorted(HEAVY))]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("code", "budget_seconds"),
    [
        ("import tunekit", 0.15),
        ("import tunekit; tunekit.Plan, tunekit.Finding, tunekit.Workload, tunekit.Advice", None),
        (
            "import tunekit; tunekit.methods.Full, tunekit.methods.Lora, tunekit.Method, tunekit.objectives.Supervised",
            None,
        ),
        ("import tunekit; tunekit.Plan.from_dict({'model': 'm', 'task': 'causal-lm', 'method': 'lora'})", None),
        (
            "import sys\nsys.argv = ['tunekit', '--help']\nfrom tunekit.cli.main import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass",
            0.3,
        ),
        ("import tunekit.advisor.simulate, tunekit.advisor.ask, tunekit.advisor.observe", None),
    ],
)
def test_the_light_parts_load_nothing_heavy(code: str, budget_seconds: float | None) -> None:
    bare = fresh("")
    seen = fresh(code)
    budget = f" (budget {budget_seconds})" if budget_seconds else ""
    print(f"{code!r}: {seen['cpu_seconds']:.3f} s of CPU in all{budget}, bare Python {bare['cpu_seconds']:.3f} s")
    assert seen["heavy"] == []


def test_importing_the_face_loads_few_modules() -> None:
    assert fresh("import tunekit")["count"] - fresh("import pathlib")["count"] <= 10


def test_the_face_loads_on_first_use_and_says_what_it_has_not() -> None:
    import tunekit

    assert "Plan" in dir(tunekit)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        tunekit.nonsense  # noqa: B018


def test_another_project_of_the_same_name_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tunekit-9.9.dist-info").mkdir()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        fresh("import tunekit", tmp_path)
    last = caught.value.stderr.splitlines()[-1]
    assert last.startswith("ImportError: the distribution `tunekit`")
    assert "pip uninstall -y tunekit tunekit-hf" in last


def test_subpackages_are_found_from_any_folder(tmp_path: Path) -> None:
    assert fresh("import tunekit.advisor.rule, tunekit.callbacks", cwd=tmp_path)["heavy"] == []
