"""The sdist and the wheel made of it, installed into a fresh environment and used away from the tree.

    python tests/wheel_smoke.py        (or `make wheel-smoke`)

The fresh environment borrows the dependencies of the one that runs this, so that no index is asked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist", "demo-out", "runs", "wt")


def run(*command: object, cwd: Path) -> str:
    """What a command prints; its whole output where it fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TUNEKIT_CALIBRATION": "off"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(work: Path) -> tuple[Path, Path]:
    """The sdist of a copy of the tree, and the wheel built from that sdist."""
    copy = work / "tree"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", copy, cwd=work)
    (sdist,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
    return sdist, wheel


def installed(wheel: Path, work: Path) -> Path:
    """The `bin` folder of a fresh environment that holds the wheel, and this environment's packages behind it."""
    home = work / "fresh"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=work,
    )
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def used(bin_folder: Path, work: Path) -> None:
    """Imports every subpackage, asks for advice, and looks at what it wrote."""
    here = work / "elsewhere"
    here.mkdir()
    where = "import tunekit, tunekit.advisor.rule as r, tunekit.callbacks as c; print(tunekit.__file__, r.__file__, c.__file__)"
    for path in run(bin_folder / "python", "-c", where, cwd=here).split():
        assert Path(path).is_relative_to(bin_folder.parent), f"{path} is not the installed one"
    tunekit = bin_folder / "tunekit"
    assert run(tunekit, "--version", cwd=here).startswith("tunekit ")
    assert {m["slug"] for m in json.loads(run(tunekit, "methods", "--json", cwd=here))} > {"lora", "prefix-tuning"}
    config = {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}  # fmt: skip
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(json.dumps(config))
    asked = (
        "advise model --task sequence-classification --num-examples 500 --num-labels 2 --mean-tokens 20 --hardware 24GB"
    )
    print(run(tunekit, *asked.split(), "--method", "lora", "--save", "plan.yaml", "--report", "advice.html", cwd=here))
    run(tunekit, "estimate", "plan.yaml", "--hardware", "24GB", cwd=here)
    assert "<html" in (here / "advice.html").read_text("utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-smoke-") as folder:
        work = Path(folder)
        sdist, wheel = built(work)
        used(installed(wheel, work), work)
        print(f"{sdist.name} and {wheel.name}: built, installed, used")


if __name__ == "__main__":
    main()
