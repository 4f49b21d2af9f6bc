"""The wheel holds the tree: every file of the three folders, under the name it is imported by, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from source_tree import FOLDERS, ROOT

LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree by the declared backend."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_BEHIND)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return path


def expected() -> set[str]:
    names = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            inner = path.relative_to(ROOT / folder)
            if path.is_file() and "__pycache__" not in inner.parts and not any(p.startswith(".") for p in inner.parts):
                names.add("/".join([*package.split("."), *inner.parts]))
    return names


def test_every_file_of_the_tree_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert inside == expected()


def test_the_wheel_carries_licence_name_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    assert wheel.name.startswith("tunekit_hf-")
    meta = {n.split(".dist-info/")[1]: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    assert "Apache License" in meta["licenses/LICENSE"]
    assert "tunekit = tunekit.cli.main:main" in meta["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in meta["METADATA"]


def test_the_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import tunekit.advisor.rule as r, tunekit.callbacks as c, tunekit; print(r.__file__, c.__file__, tunekit.Plan)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    rule, callbacks, _ = done.stdout.split(maxsplit=2)
    assert Path(rule).is_relative_to(tmp_path)
    assert Path(callbacks).is_relative_to(tmp_path)
