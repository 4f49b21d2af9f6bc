"""Templates, label words, rows and plans of the tests of prompt learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from tunekit.data.collate import collator
from tunekit.methods.full import Full
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import Plan
from tunekit.task import Task

TASK = Task.named("sequence-classification")
ROWS = [{"text": f"the {['red', 'blue'][i % 2]} sun {i % 50}", "label": ["no", "yes"][i % 2]} for i in range(32)]
ONE_TOKEN = {"no": ("bad", "poor"), "yes": ("good",)}
SPLIT = {"no": ("bad",), "yes": ("good fine", "great")}
SPLIT_TWICE = {"no": ("bad", "blue moon"), "yes": ("good fine", "great")}
TEMPLATES = {
    "encoder": ("{text} it was {mask} .".replace(" it", " saw"), "a {mask} moon : {text}"),
    "decoder": ("{text} was {mask}", "question : {text} answer : {mask}".replace("question :", "what :")),
    "seq2seq": ("{text} was {mask}", "what : {text} answer {mask}"),
}
SIDES = tuple(TEMPLATES)


def prompt(side: str = "encoder", verbalizer: Any = None, **settings: Any) -> PromptLearning:
    return PromptLearning(**{"templates": TEMPLATES[side], "verbalizer": verbalizer or ONE_TOKEN, **settings})


def load(folder: str, side: str) -> tuple[Any, Any]:
    import transformers

    form = prompt(side).learnt_as(TASK, side)  # type: ignore[arg-type]
    return getattr(transformers, form.auto_class).from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def encoded(objective: PromptLearning, tokenizer: Any, side: str, rows: Any = ROWS, **settings: Any) -> Any:
    names = settings.pop("label_names", ("no", "yes"))
    columns = {"text": "text", "label": "label"}
    return objective.encode(Dataset.from_list(rows), TASK, tokenizer, side=side, columns=columns, label_names=names, problem_type="single_label_classification", **settings)  # type: ignore[arg-type]  # fmt: skip


def batch_of(objective: PromptLearning, tokenizer: Any, side: str, rows: Any = ROWS[:5], **settings: Any) -> Any:
    made = encoded(objective, tokenizer, side, rows, **settings).dataset
    return objective.collate([made[i] for i in range(len(made))], collator(TASK, tokenizer))


def a_plan(model: str, objective: PromptLearning, output: Path, **changes: Any) -> Plan:
    values = {
        "learning_rate": 2e-3,
        "max_steps": 60,
        "method": Full(),
        "warmup": 0.0,
        "output_dir": str(output),
        **changes,
    }
    return Plan(model=model, task="sequence-classification", objective=objective, **values)
