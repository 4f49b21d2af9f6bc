"""A tie is settled by training: the better learner comes first, the others stay where they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import tunekit
from tunekit.advice import Advice
from tunekit.errors import InvalidError, MissingError
from tunekit.probing import probe

ROWS = [{"text": f"{'good fine' if i % 2 else 'bad poor'} film {i}", "label": ["neg", "pos"][i % 2]} for i in range(60)]


@pytest.fixture
def tied(tiny_encoder: str) -> Advice:
    """Two plans in a tie, the one that cannot learn (its rate is nearly nothing) first, and a third below them."""
    advice = tunekit.advise(tiny_encoder, ROWS, hardware="cpu", methods=["full", "lora", "bitfit"])
    by = {e.plan.method.slug: e for e in advice.ranked}
    lame = dataclasses.replace(by["lora"], plan=by["lora"].plan.replace(learning_rate=1e-12), tie=0)
    able = dataclasses.replace(by["full"], plan=by["full"].plan.replace(learning_rate=2e-3), tie=0)
    return dataclasses.replace(advice, ranked=(lame, able, dataclasses.replace(by["bitfit"], tie=1)))


def test_the_one_that_learns_comes_first_and_what_was_measured_is_said(tied: Advice) -> None:
    settled, probed = probe(tied, ROWS, steps=40)
    assert [e.plan.method.slug for e in settled.ranked] == ["full", "lora", "bitfit"]
    assert [p.entry.plan.method.slug for p in probed] == ["full", "lora"]
    assert probed[0].score >= probed[1].score
    assert probed[0].loss < probed[1].loss
    assert probed[0].measured == "accuracy"
    assert settled.ranked[0].plan == tied.ranked[1].plan, "the plan itself is not that of the probe"
    (finding,) = (f for f in settled.findings if f.code == "probe")
    assert "40 steps" in finding.seen
    assert "40 steps on real rows" in " ".join(str(settled).split())
    assert settled.to_dict()["ranked"][0]["findings"][-1]["code"] == "probe"


def test_what_stands_alone_is_not_trained(tied: Advice) -> None:
    alone = dataclasses.replace(tied, ranked=tied.ranked[2:])
    settled, probed = probe(alone, ROWS, steps=5)
    assert probed == ()
    assert settled.ranked == alone.ranked
    assert settled.findings[-1].code == "probe"


def test_a_probe_that_cannot_be_is_one_clear_error(tied: Advice) -> None:
    with pytest.raises(MissingError, match="probe-data"):
        probe(tied)
    with pytest.raises(InvalidError, match="probe-rows"):
        probe(tied, ROWS[:4])
    with pytest.raises(InvalidError, match="2 problems"):
        probe(tied, ROWS, steps=0, candidates=1)
    with pytest.raises(MissingError, match="nothing-fits"):
        probe(dataclasses.replace(tied, ranked=()), ROWS)


def test_nothing_is_left_behind(tied: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    probe(tied, ROWS, steps=1)
    assert list(tmp_path.iterdir()) == []
