"""Every rule that is installed, found by itself: its examples, its source, its points."""

from __future__ import annotations

import math

import pytest

from tunekit.advisor.judge import judge, rules
from tunekit.advisor.rule import Question, Rule
from tunekit.finding import Finding

RULES = sorted(rules().items())
ALL = pytest.mark.parametrize(("slug", "rule"), RULES, ids=[slug for slug, _ in RULES])


def found(rule: Rule, question: Question) -> Finding:
    finding = rule.judge(question)
    assert finding is not None, f"{rule.slug} should fire on {question.plan.method} with {question.workload.data}"
    return finding


@ALL
def test_a_rule_fires_on_its_examples_under_its_own_name(slug: str, rule: Rule) -> None:
    assert rule.slug == slug
    if not rule.fires():
        pytest.skip("needs the method that the rule is about")
    assert {found(rule, q).code for q in rule.fires()} == {slug}


@ALL
def test_a_rule_is_silent_on_its_counterexamples(slug: str, rule: Rule) -> None:
    assert rule.silent()
    assert [rule.judge(q) for q in rule.silent()] == [None] * len(rule.silent())


@ALL
def test_a_rule_says_where_it_comes_from_and_why(slug: str, rule: Rule) -> None:
    assert len(rule.source) > 20
    for q in rule.fires():
        finding = found(rule, q)
        assert finding.source == rule.source
        assert finding.why
        assert "\n" not in finding.seen
        assert len(finding.seen) <= 120, "it has to read as one line of the table"


@ALL
def test_points_move_a_plan_the_way_the_severity_says(slug: str, rule: Rule) -> None:
    for q in rule.fires():
        finding = found(rule, q)
        assert math.isfinite(finding.points)
        moves = finding.severity in ("favours", "disfavours")
        assert moves or finding.points == 0
        assert finding.points > 0 or finding.severity != "favours"
        assert finding.points <= 0 or finding.severity == "favours"


@ALL
def test_a_rule_is_pure(slug: str, rule: Rule) -> None:
    assert [rule.judge(q) for q in rule.fires()] == [rule.judge(q) for q in rule.fires()]


@ALL
def test_no_rule_looks_at_the_names_of_model_or_data(slug: str, rule: Rule) -> None:
    import dataclasses

    for q in (*rule.fires(), *rule.silent()):
        model = dataclasses.replace(q.workload.model, name="glue/mnli", revision="x")
        named = dataclasses.replace(q, workload=dataclasses.replace(q.workload, model=model, data_source="glue/mnli"))
        assert rule.judge(named) == rule.judge(q)


def test_judge_puts_what_rules_a_plan_out_first_and_the_weightiest_next() -> None:
    (too_big,) = rules()["fits-memory"].fires()
    w, p = too_big.workload, too_big.plan
    findings = judge(w, p, too_big.memory, too_big.duration)
    assert findings[0].code == "fits-memory"
    rest = [abs(f.points) for f in findings if f.severity != "error"]
    assert rest == sorted(rest, reverse=True)


def test_rules_about_memory_are_silent_before_anything_was_simulated() -> None:
    (too_big,) = rules()["fits-memory"].fires()
    assert "fits-memory" not in {f.code for f in judge(too_big.workload, too_big.plan)}
