"""The catalogue of checkpoints: every configuration builds, without weights, the published number of parameters."""

from __future__ import annotations

from typing import Any

import pytest

import tunekit
from tunekit.advisor.checkpoints import checkpoints, configuration, follows_instructions
from tunekit.advisor.observe.model import model_facts
from tunekit.errors import MissingError

KNOWN = checkpoints()
QUICK = ("gpt2", "google/flan-t5-small", "bert-base-uncased", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-405B")


def counted(name: str) -> tuple[int, int]:
    """(parameters that transformers builds, what is published less what is shared in the build)."""
    entry: Any = KNOWN[name]
    return model_facts(configuration(name)).num_parameters, entry["parameters"] - entry.get("separate", 0)


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_has_the_published_number_of_parameters(name: str) -> None:
    built, published = counted(name)
    assert built == published


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({min(n for n, e in KNOWN.items() if e is entry) for entry in KNOWN.values()}))
def test_every_checkpoint_has_the_published_number_of_parameters(name: str) -> None:
    built, published = counted(name)
    assert built == published


def test_the_catalogue_covers_the_families_that_people_fine_tune() -> None:
    kinds = {entry["config"]["model_type"] for entry in KNOWN.values()}
    wanted = {
        "llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "t5", "bart",
        "bert", "roberta", "deberta-v2", "distilbert", "electra", "modernbert", "albert", "xlm-roberta", "deepseek_v2",
    }  # fmt: skip
    assert wanted <= kinds
    assert len({id(entry) for entry in KNOWN.values()}) >= 90


def test_advice_by_id_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.advisor.observe.model._unreachable", lambda: "no network in this test")
    monkeypatch.setattr("tunekit.advisor.observe.model.hub_reachable", lambda: False)
    advice = tunekit.advise(
        "meta-llama/Llama-3.2-1B-Instruct", task="causal-lm", num_examples=5000, mean_tokens=100, hardware="24GB", methods=["lora"]
    )  # fmt: skip
    assert advice.best is not None
    assert advice.best.plan.model == "meta-llama/Llama-3.2-1B-Instruct"
    assert advice.workload.model.is_instruct
    assert advice.workload.model.num_parameters == 1_235_814_400


def test_an_id_that_the_catalogue_lacks_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.advisor.observe.model._unreachable", lambda: "no network in this test")
    with pytest.raises(MissingError, match="model-unreachable"):
        model_facts("nobody/nothing-at-all")
    assert not follows_instructions("meta-llama/Llama-3.1-8B")
