"""The metrics in a plain Trainer: every row once, over batches, evaluations and ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from tunekit.data.collate import collator
from tunekit.data.encode import encode
from tunekit.metrics import metrics
from tunekit.task import Task

WORDS = "good bad fine poor great awful red blue sun moon".split()


def made(task: str, folder: str) -> tuple[Any, Dataset, Any, tuple[str, ...]]:
    """A tiny model with some rows of its task; nine of them, so that no batch size divides them."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [" ".join(WORDS[: 2 + i % 7]) for i in range(9)]
    names: tuple[str, ...] = ()
    match task:
        case "causal-lm":
            model = AutoModelForCausalLM.from_pretrained(folder)
            data = {"text": texts}
        case "token-classification":
            names = ("O", "B-x", "I-x")
            model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3)
            data = {"tokens": [t.split() for t in texts], "tags": [[names[(i + j) % 3] for j in range(len(t.split()))] for i, t in enumerate(texts)]}  # fmt: skip
        case _:
            names = ("a", "b", "c")
            model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
            data = {"text": texts, "label": [i % 3 for i in range(9)]}
    rows = Dataset.from_dict(data)
    encoded = encode(rows, Task.named(task), tokenizer, columns={c: c for c in data}, label_names=names).dataset
    return model, encoded, tokenizer, names


def trainer(task: str, folder: str, output: str, batch: int) -> Trainer:
    model, rows, tokenizer, names = made(task, folder)
    compute, preprocess = metrics(Task.named(task), None, names)
    arguments = TrainingArguments(
        output_dir=output, per_device_eval_batch_size=batch, per_device_train_batch_size=4, batch_eval_metrics=True,
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, max_steps=4, eval_steps=2,
        eval_strategy="steps", save_strategy="no", logging_strategy="no", learning_rate=0.0,
    )  # fmt: skip
    return Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
        data_collator=collator(Task.named(task), tokenizer), compute_metrics=compute,
        preprocess_logits_for_metrics=preprocess,
    )  # fmt: skip


def at_once(task: str, folder: str) -> dict[str, float]:
    """The scores of all rows in one batch, without a Trainer."""
    model, rows, tokenizer, names = made(task, folder)
    compute, preprocess = metrics(Task.named(task), None, names)
    batch = collator(Task.named(task), tokenizer)(list(rows))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return compute(_prediction(preprocess(logits, batch["labels"]), batch["labels"]), compute_result=True)


def _prediction(predictions: Any, labels: Any) -> Any:
    from transformers import EvalPrediction

    return EvalPrediction(predictions, labels)


CASES = [
    ("sequence-classification", "tiny_encoder"),
    ("token-classification", "tiny_encoder"),
    ("causal-lm", "tiny_decoder"),
]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_a_trainer_reports_what_one_pass_over_all_rows_gives(
    task: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    expected = at_once(task, folder)
    for batch in (2, 4, 16):
        found = trainer(task, folder, str(tmp_path), batch).evaluate()
        for name, value in expected.items():
            assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-5), (batch, name)


def test_evaluations_while_training_and_after_it_are_equal(tmp_path: Path, tiny_encoder: str) -> None:
    host = trainer("sequence-classification", tiny_encoder, str(tmp_path), 4)
    host.train()
    seen = [entry for entry in host.state.log_history if "eval_accuracy" in entry]
    assert len(seen) == 2
    after = host.evaluate()
    assert [e["eval_f1_macro"] for e in (*seen, after)] == [after["eval_f1_macro"]] * 3


def test_predictions_keep_their_logits_for_classes(tmp_path: Path, tiny_encoder: str) -> None:
    host = trainer("sequence-classification", tiny_encoder, str(tmp_path), 4)
    found = host.predict(host.eval_dataset)  # type: ignore[arg-type]
    assert found.predictions.shape == (9, 3)


RANK = """
import faulthandler, json, sys
faulthandler.dump_traceback_later(150, exit=True)  # a rank that waits for ever would outlive the test
sys.path.insert(0, sys.argv[1])
from test_metrics_in_trainer import trainer
found = {}
for task, folder in json.loads(sys.argv[2]):
    host = trainer(task, folder, sys.argv[3], 2)
    found[task] = host.evaluate()
if host.args.process_index == 0:
    json.dump(found, open(sys.argv[3] + "/found.json", "w"))
"""


@pytest.mark.slow
def test_two_ranks_count_every_row_once(tmp_path: Path, tiny_encoder: str, tiny_decoder: str) -> None:
    folders = {"tiny_encoder": tiny_encoder, "tiny_decoder": tiny_decoder}
    cases = [(task, folders[kind]) for task, kind in CASES]
    (tmp_path / "run.py").write_text(RANK)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(tmp_path / "run.py"),
        str(Path(__file__).parent), json.dumps(cases), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for task, folder in cases:
        for name, value in at_once(task, folder).items():
            assert found[task][f"eval_{name}"] == pytest.approx(value, rel=1e-5), (task, name)
