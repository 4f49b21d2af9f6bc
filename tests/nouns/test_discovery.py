"""A method is found by its file or by the entry point of another package; nothing is listed anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.discovery import PACKAGES, everything, find, slugs
from tunekit.errors import InvalidError

PLANTED = '''
class {name}:
    """A thing of somebody else's."""

    slug = "{slug}"
'''


def distribution(folder: Path, name: str, points: dict[str, str], files: dict[str, str]) -> Path:
    """An installed distribution as pip leaves it: a `.dist-info` beside its modules."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[tunekit.methods]\n{slug} = {target}" for slug, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for path, text in files.items():
        (folder / path).write_text(text)
    return folder


def ask(code: str, *paths: Path) -> object:
    """The value that the last line of `code` prints, from an interpreter that sees `paths`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", "import json\nfrom tunekit.discovery import *\n" + code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", PACKAGES)
def test_everything_of_a_kind_carries_its_slug(kind: str) -> None:
    found = everything(kind)
    assert tuple(found) == slugs(kind) == tuple(sorted(found))
    for slug, thing in found.items():
        assert getattr(thing, "slug", slug) == slug
        assert find(kind, slug) is thing


def test_a_file_in_the_folder_is_a_method(tmp_path: Path) -> None:
    (tmp_path / "my_method.py").write_text(PLANTED.format(name="MyMethod", slug="my-method"))
    (tmp_path / "_helper.py").write_text("x = 1")
    code = (
        "import tunekit.methods\n"
        f"tunekit.methods.__path__.append({str(tmp_path)!r})\n"
        "print(json.dumps([find('method', 'my-method').__name__, tunekit.methods.MyMethod.slug, '-helper' in slugs('method')]))"
    )
    assert ask(code) == ["MyMethod", "my-method", False]


def test_an_entry_point_of_another_package_is_a_method(tmp_path: Path) -> None:
    text = PLANTED.format(name="Foreign", slug="foreign")
    place = distribution(tmp_path, "planted", {"foreign": "planted_module:Foreign"}, {"planted_module.py": text})
    code = (
        "import tunekit\n"
        "names = [find('method', 'foreign').__name__, tunekit.methods.Foreign.__module__]\n"
        "print(json.dumps([*names, 'foreign' in slugs('method'), 'Foreign' in dir(tunekit.methods)]))"
    )
    assert ask(code, place) == ["Foreign", "planted_module", True, True]


def test_a_file_of_ours_wins_over_an_entry_point_of_the_same_name(tmp_path: Path) -> None:
    place = distribution(
        tmp_path, "planted", {"lora": "planted_module:Lora"}, {"planted_module.py": "class Lora: pass"}
    )
    assert ask("print(json.dumps(find('method', 'lora').__module__))", place) == "tunekit.methods.lora"


def test_a_broken_plugin_is_named_with_the_package_to_blame(tmp_path: Path) -> None:
    place = distribution(tmp_path, "planted", {"foreign": "planted_module:Absent"}, {"planted_module.py": ""})
    code = (
        "try:\n    find('method', 'foreign')\n"
        "except Exception as e:\n    print(json.dumps([type(e).__name__, list(e.codes), str(e)]))"
    )
    kind, codes, text = ask(code, place)
    assert (kind, codes) == ("InvalidError", ["method-plugin-broken"])
    assert "pip uninstall planted" in text


def test_finding_a_method_of_ours_reads_no_distribution() -> None:
    code = "import sys\nfind('method', 'lora')\nprint(json.dumps('importlib.metadata' in sys.modules))"
    assert ask(code) is False


@pytest.mark.parametrize("kind", PACKAGES)
def test_an_unknown_name_lists_or_names_what_is_near(kind: str) -> None:
    with pytest.raises(InvalidError) as caught:
        find(kind, "no-such-thing-at-all")
    assert caught.value.codes == (f"{kind}-unknown",)
    with pytest.raises(InvalidError, match="Did you mean `lora`"):
        find("method", "lor")


@pytest.mark.parametrize("package", ["methods", "objectives", "callbacks"])
def test_a_class_that_does_not_exist_is_a_missing_attribute(package: str) -> None:
    import importlib

    module = importlib.import_module(f"tunekit.{package}")
    assert not hasattr(module, "NoSuchThing")
    assert not hasattr(module, "__wrapped__")
