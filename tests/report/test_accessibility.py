"""Reports and the documentation's pages have no serious finding of axe, in light and dark, wide and narrow."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from report import axe
from report.test_other_pages import FACTS, second
from report.test_report import ADVICE, RECORD

from tunekit.report import write_advice_report, write_comparison, write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(axe.missing()), reason=f"needs {axe.missing()}")]
WAYS = ({}, {"dark": True}, {"width": 390})
RICH = {
    **second(),
    "trained_tokens": [[{"text": "a question", "trained": False}, {"text": " and its answer", "trained": True}]],
    "confusion": {"names": ["no", "yes"], "counts": [[0, 0, 30], [0, 1, 3], [1, 1, 20]]},
    "samples": [{"text": "a row", "expected": "yes", "predicted": "no", "probability": 0.5}],
}


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["advice", "run", "comparison"])
def test_a_report_has_no_serious_finding(kind: str, how: dict, tmp_path: Path) -> None:
    advice = {**ADVICE, "workload": FACTS}
    pages = {
        "advice": lambda: write_advice_report(advice, tmp_path / "advice.html"),
        "run": lambda: write_report(RICH, advice, tmp_path)[0],
        "comparison": lambda: write_comparison([RECORD, RICH], ["runs/a", "runs/b"], tmp_path)[0],
    }
    assert axe.serious(pages[kind](), **how) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip('needs mkdocs (`pip install "tunekit-hf[docs]"`)')
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], cwd=axe.ROOT, check=True, timeout=250
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("name", ["index", "choosing", "methods/lora", "errors", "commands", "api/index", "matrix"])
def test_a_page_of_the_documentation_has_no_serious_finding(name: str, how: dict, site: Path) -> None:
    assert axe.serious(site / f"{name}.html", **how) == []


def test_axe_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text('<html><head><title>a</title></head><body><main><h1>a</h1><img src="x.png"></main></body></html>')
    assert any("image-alt" in line for line in axe.serious(page))
