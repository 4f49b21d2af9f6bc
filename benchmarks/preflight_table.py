"""Thirty mistakes in plain scripts: what `tunekit.check` says to each, beside HF Trainer, TRL's SFTTrainer and `peft-doctor`.

python benchmarks/preflight_table.py                     what is done is not repeated; --table only prints (kept in results/preflight_table.md)
python benchmarks/preflight_table.py --doctor FOLDER     site-packages of an environment with `peft-doctor` (pip install peft-doctor)

The scripts are those of tests/preflight. HF Trainer and SFTTrainer really run two steps. Of each, what it also says to the same
script without the mistake does not count. SFTTrainer is given the scripts that write text; `peft-doctor` gets the live model,
rows, arguments, tokenizer and PEFT configuration (`diagnose_peft`), errors and warnings count.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "preflight_table.json"
for folder in (ROOT / "tests", ROOT / "tests" / "preflight"):
    sys.path.insert(0, str(folder))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

CODES = (
    "labels-missing", "supervision-none", "supervision-rows", "supervision-little", "truncation-cuts", "stop-token-masked",
    "stop-token-missing", "double-bos", "padding-id-missing", "padding-side", "labels-range", "labels-constant", "labels-order",
    "rows-leaked", "rows-duplicated", "trainable-none", "trainable-fp16", "head-frozen", "trainable-unsaved", "targets-unmatched",
    "optimizer-misses", "optimizer-strangers", "learning-rate-implausible", "length-over-context", "tokens-over-vocabulary",
    "checkpointing-prefix", "checkpointing-no-input-gradients", "tied-weights", "output-in-use", "weights-not-finite", "resume-data",
    "resume-method",
)  # fmt: skip
"""Those of the planted mistakes that a CPU can really run."""
CLEAN = (
    "classification, full", "classification, PEFT's LoRA", "classification with a decoder", "causal LM, full", "causal LM, LoRA",
    "causal LM, LoRA, checkpointing", "causal LM, prompt tuning",
)  # fmt: skip


def cases() -> dict[str, Callable[[Path], Any]]:
    import test_clean_scripts as clean
    import test_planted_mistakes as planted

    return {
        **{f"clean: {n}": clean.CLEAN[n] for n in CLEAN},
        "clean: resumed": planted.resumed,
        **{c: planted.PLANTED[c] for c in CODES},
    }


def heard(act: Callable[[], Any]) -> list[str]:
    """What somebody at the console would learn: warnings, log lines from `warning` on, and the error that ends it."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keep = Keep(logging.WARNING)
    loggers = [logging.getLogger(n) for n in (None, "transformers", "peft", "accelerate", "trl", "datasets")]
    for logger in loggers:
        logger.addHandler(keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            act()
        except BaseException as e:
            said.append(f"stops: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
    for logger in loggers:
        logger.removeHandler(keep)
    return list(dict.fromkeys([*said, *(str(w.message) for w in caught)]))


def sft(made: Any, folder: Path, tokenizer: Any) -> Any:
    """The same rows, model and collator in TRL's trainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    theirs = made.args
    names = ("activation_checkpointing", "activation_checkpointing_kwargs")
    more = {n: getattr(theirs, n) for n in names if getattr(theirs, n, None)}
    args = SFTConfig(
        str(folder), report_to="none", use_cpu=True, bf16=False, max_steps=2, learning_rate=theirs.learning_rate, max_length=None,
        **more,
    )  # fmt: skip
    return SFTTrainer(
        made.model, args=args, train_dataset=Dataset.from_list([dict(r) for r in made.train_dataset]), data_collator=made.data_collator,
        processing_class=tokenizer,
    )  # fmt: skip


def doctor(made: Any) -> list[str]:
    from peft_doctor.diagnostics import diagnose_peft

    peft = getattr(made.model, "peft_config", {}).get("default")
    report = diagnose_peft(
        model=made.model, tokenizer=made.processing_class, peft_config=peft, training_args=made.args,
        train_dataset=made.train_dataset, eval_dataset=made.eval_dataset,
    )  # fmt: skip
    return [i.code for i in report.issues if i.severity in ("warning", "error", "critical")]


def look(make: Callable[[Path], Any], with_doctor: bool) -> dict[str, Any]:
    """What each says to one script."""
    from conftest import make_tokenizer
    from transformers import AutoTokenizer

    import tunekit

    folder = Path(tempfile.mkdtemp())
    built: list[Any] = []
    before = heard(lambda: built.append(make(folder)))
    made = built[0]
    found: dict[str, Any] = {"tunekit": [f.code for f in tunekit.check(made)]}
    if with_doctor:
        found["peft-doctor"] = doctor(made)
    if any(kind in type(made.model).__name__ for kind in ("CausalLM", "LMHead")):
        make_tokenizer(folder / "tokenizer", chat=True)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        again: list[Any] = []
        heard(lambda: again.append(make(folder / "trl")))
        found["trl"] = heard(lambda: sft(again[0], folder / "sft", tokenizer).train()) if again else ["not built"]
    resume = made.args.resume_from_checkpoint or None
    found["trainer"] = before + heard(lambda: made.train(resume_from_checkpoint=resume))
    return found


def forked(make: Callable[[Path], Any], with_doctor: bool) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            text = json.dumps(look(make, with_doctor))
        except BaseException as e:
            text = json.dumps({"failed": repr(e)[:300]})
        with os.fdopen(write, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def plain(text: str) -> str:
    """A message without what differs between runs."""
    return re.sub(r"[\d.]+|/\S+", "#", text)


def usual(results: dict[str, Any], code: str, who: str) -> set[str]:
    """What it says to clean scripts of the same kind: those that write text, or those that classify."""
    writes = "trl" in results[code]
    same = [
        r for n, r in results.items()
        if n.startswith("clean") and ("trl" in r) == writes and ("prompt" not in n or code == "checkpointing-prefix")
    ]  # fmt: skip
    return {plain(m) for r in same for m in r.get(who, [])}


def table(results: dict[str, Any]) -> str:
    head = ("mistake", "tunekit", "HF Trainer", "TRL SFTTrainer", "peft-doctor")
    lines, hits = [head, tuple("---" for _ in head)], dict.fromkeys(head[1:], 0)
    for code in (c for c in CODES if c in results):
        row = [f"`{code}`", "found" if code in results[code]["tunekit"] else "**missed**"]
        for who in ("trainer", "trl", "peft-doctor"):
            if who not in results[code]:
                row.append("-")
                continue
            new = [m for m in results[code][who] if plain(m) not in usual(results, code, who)]
            text = next((m for m in new if m.startswith("stops")), new[0] if new else "silent")
            row.append(re.sub(r"\s+", " ", text)[:90].replace("|", "/"))
        for name, cell in zip(head[1:], row[1:], strict=True):
            hits[name] += cell not in ("silent", "-", "**missed**")
        lines.append(tuple(row))
    tried = {n: sum(line[i + 1] != "-" for line in lines[2:]) for i, n in enumerate(head[1:])}
    lines.append(("says something", *(f"{hits[n]} of {tried[n]}" for n in head[1:])))
    clean = {n: r for n, r in results.items() if n.startswith("clean")}
    kinds = [len({plain(m) for r in clean.values() for m in r.get(w, [])}) for w in ("trainer", "trl", "peft-doctor")]
    false = sum(len(r["tunekit"]) for r in clean.values())
    lines.append(("on clean scripts", f"{false} findings", *(f"{n} kinds of message, not counted" for n in kinds)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doctor", metavar="FOLDER")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.doctor:
        sys.path.append(asked.doctor)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, make in () if asked.table else cases().items():
        if name not in results:
            results[name] = forked(make, bool(asked.doctor))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
