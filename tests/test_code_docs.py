"""Every code that a message can carry is explained, with the words that the message has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tunekit
from tunekit.code_docs import OPEN, all_codes, said_under
from tunekit.discovery import everything

TESTS = Path(__file__).resolve().parent


def test_every_code_that_a_check_declares_is_known() -> None:
    missing = [code for check in everything("check").values() for code in check.codes if not said_under(code)]
    assert not missing


def test_every_code_that_the_tests_of_bad_input_see_is_known() -> None:
    seen = set(re.findall(r'refused\(\s*"([a-z0-9-]+)"', (TESTS / "cli" / "test_bad_input.py").read_text("utf-8")))
    assert len(seen) > 20
    assert not [code for code in sorted(seen) if not said_under(code)]


def one_of(text: str, alternatives: list[str]) -> bool:
    patterns = [re.escape(part).replace(re.escape(OPEN), ".*") for a in alternatives for part in a.split(" / ")]
    return any(re.fullmatch(p, text, re.DOTALL) for p in patterns)


@pytest.mark.parametrize(
    "values",
    [
        {"method": tunekit.methods.Full(), "quantization": "nf4"},
        {"method": tunekit.methods.Lora(), "max_length": 0, "seed": 2**40, "max_grad_norm": -1.0},
        {"method": tunekit.methods.Lora(), "num_processes": 2},
        {"method": tunekit.methods.Lora(), "packing": True, "task": "token-classification"},
    ],
)
def test_what_is_explained_is_what_the_message_says(values: dict) -> None:
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.Plan(**{"model": "a", "task": "causal-lm", **values})
    for finding in caught.value.findings:
        places = said_under(finding.code)
        for part in ("seen", "why", "fix"):
            assert one_of(getattr(finding, part), [getattr(p, part) for p in places]), (finding, part)


def test_a_name_that_is_put_into_a_code_is_left_open_in_the_list() -> None:
    assert [s.code for s in said_under("callback-unknown")] == ["*-unknown"]
    assert said_under("no-such-thing") == ()


def test_most_codes_say_why_and_what_to_do() -> None:
    mute = [code for code, places in all_codes().items() if not any(p.why or p.fix for p in places)]
    assert len(mute) < 10, mute


def test_explain_answers_for_a_code() -> None:
    from tunekit.cli.main import app

    told = CliRunner().invoke(app, ["explain", "plan-quantized-base", "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["places"][0]["why"] == "quantised weights cannot be trained"
    shown = CliRunner().invoke(app, ["explain", "plan-quantized-base"], catch_exceptions=False).stdout
    assert "fix: use `method: {kind: lora}`" in shown
