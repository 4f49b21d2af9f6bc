"""Bad plans, datasets and command lines, drawn by hypothesis; and what the command line must do with each of them.

python tests/generated_input.py 10000         draws so many and prints what came of them
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LONGEST_SECONDS = 60
PLAN = {
    "kind": "tunekit-plan", "schema": 1, "model": "MODEL", "task": "sequence-classification", "method": {"kind": "lora", "r": 2},
    "data": {"path": "rows.jsonl"}, "output_dir": "out", "max_steps": 1, "max_length": 16,
}  # fmt: skip
FIELDS = (
    "kind", "schema", "model", "revision", "task", "problem_type", "data", "output_dir", "method", "objective", "max_length",
    "packing", "dtype", "mixed_precision", "quantization", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "activation_checkpointing", "attn_implementation", "optim", "learning_rate", "weight_decay",
    "max_grad_norm", "lr_scheduler_type", "warmup", "num_train_epochs", "max_steps", "seed", "loss_kernel", "num_processes",
    "num_machines", "sharding", "offload", "offload_to", "callbacks", "frozen_activations", "eval_interval", "early_stopping_patience", "bf16", "load_in_4bit", "method.r", "method.kind",
    "method.target_modules", "data.path", "data.columns", "data.label_names", "data.eval_share", "data.template", "data.train_split",
    "method.lora_dropout", "objective.kind", "objective.teacher",
)  # fmt: skip
WORDS = (
    "lora", "full", "zero3", "fsdp", "nf4", "int8", "causal-lm", "seq2seq", "bf16", "auto", "cpu", "H100", "4x24GB", "0x0GB", "-1GB",
    "plan.yaml", "rows.jsonl", "rows.csv", "rows.json", "rows.parquet", "MODEL", "../..", "/", "~", "", " ", "null", "a/b", "a/b/c",
    "text=label", "label=", "=", "seed=[", "method.r=0", "learning_rate=-1", "{{text}}", "{% for %}", "distillation", "prefix-tuning",
    "sequence-classification", "token-classification", "question-answering", "multiple-choice", "1e400", "\x00", "rows.jsonl\x00",
    "http://localhost/x", "file:///etc/passwd", "plan.lora", "lora.r", "record.json", "out", "x" * 300,
)  # fmt: skip
COMMANDS = ("advise", "estimate", "check", "train", "launch", "report", "methods", "explain", "nonsense")
OPTIONS = (
    "--task", "--column", "--hardware", "--goal", "--method", "--num-examples", "--num-labels", "--mean-tokens", "--max-length",
    "--label-name", "--teacher", "--adapter", "--unlabelled", "--json", "--overwrite", "--resume", "--advice", "--num-machines",
    "--machine-rank", "--main-process-port", "--slurm", "--dry-run", "--bogus", "-x",
)  # fmt: skip
RAW = (
    b"", b"\x00", b"\xff\xfe\x00", b"[", b"- 1", b"a: b: c", b"!!python/object/apply:os.system ['touch pwned']",
    b"!!python/name:os.system", b"&a [*a]", b"? {a: 1}\n: 2", b"{" * 5000, b"[" * 5000, b"\xef\xbb\xbf{}", b"PK\x03\x04", b"null", b"1",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nmodel: *g",
    b"kind: tunekit-plan\nschema: 999999999999999999999\n", b"model: " + b"9" * 5000, b"seed: 0x" + b"f" * 4000, b"2026-99-99", b"<<: 1",
    b"%YAML 9.9\n---\n", b"model: !!binary xx", b"model: !!timestamp x", b"a: 1\na: 2",
)  # fmt: skip

simple = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.just(10**30), st.just(-(2**63)), st.floats(), st.text(max_size=20),
    st.sampled_from(WORDS), st.dates(),
)  # fmt: skip
junk = st.recursive(simple, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(FIELDS), x, max_size=4), max_leaves=6)  # fmt: skip
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=5,
)
columns = st.sampled_from(["text", "label", "labels", "prompt", "completion", "messages", "source", "target", "tokens", "tags", "question", "context", "answers", "choices", "input_ids", "text_pair", ""])  # fmt: skip
row = st.dictionaries(columns | st.text(max_size=5), plain, max_size=4)


@st.composite
def plans(draw: st.DrawFn) -> bytes:
    """A plan with something wrong in it, or no plan at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(RAW) | st.binary(max_size=60))
    made: dict[str, Any] = json.loads(json.dumps(PLAN))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(FIELDS) | st.text(max_size=10))
        head, _, tail = name.partition(".")
        if draw(st.integers(0, 9)) == 0:
            made.pop(head, None)
        elif tail and isinstance(made.get(head), dict):
            made[head][tail] = draw(junk)
        else:
            made[head] = draw(junk)
    text = yaml.safe_dump(made, allow_unicode=True).encode("utf-8", "surrogatepass")
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 11)) == 0 else text


@st.composite
def datasets(draw: st.DrawFn) -> tuple[str, bytes]:
    """A data file and what is in it."""
    name = draw(st.sampled_from(["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz", "rows.txt", "rows"]))  # fmt: skip
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return name, draw(st.sampled_from(RAW) | st.binary(max_size=80))
    rows = draw(st.lists(row, max_size=8))
    if kind < 4:
        good = [{"text": f"the sun {i}", "label": i % 2} for i in range(4)]
        rows = [{**g, **r} for g, r in zip(good, rows, strict=False)]
    if name in ("rows.csv", "rows.tsv"):
        text = "\n".join(",".join(str(v) for v in r.values()) for r in [{k: k for r in rows for k in r}, *rows])
    elif name == "rows.json":
        text = json.dumps(rows)
    else:
        text = "\n".join(map(json.dumps, rows))
    return name, text.encode("utf-8", "surrogatepass")


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments and options that fit or not."""
    word = st.sampled_from(WORDS) | st.text(max_size=12) | st.integers().map(str)
    line = [draw(st.sampled_from(COMMANDS))]
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            line.append(draw(word))
        else:
            line.append(draw(st.sampled_from(OPTIONS)))
            if draw(st.booleans()):
                line.append(draw(word))
    return line


def state(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Every file below a folder, with its size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else None for p in folder.rglob("*")}


class HangError(Exception):
    """A command that does not come to an end."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def command_of(app: Any) -> Any:
    """The command line, made once a process."""
    from typer.main import get_command

    return get_command(app)


def call(line: list[str]) -> tuple[int, str]:
    """Runs a command in this process, in this folder; its exit code and what it said."""
    from typer import testing
    from typer.testing import CliRunner

    from tunekit.cli.main import app

    line = [*line, "--dry-run"] if line[0] == "launch" and "--dry-run" not in line else line
    before = state(Path.cwd())
    # Typer reads all commands' signatures at each call, which takes longer than most of the commands.
    with limited(LONGEST_SECONDS), patch.object(testing, "_get_command", command_of):
        result = CliRunner().invoke(app, line)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        said = "".join(traceback.format_exception(result.exception))
        raise AssertionError(f"{line}: a traceback\n{said[-3000:]}")
    assert result.exit_code in (0, 2), (line, result.exit_code, result.output[-500:])
    # With the lines of code that an example in a docstring, which `explain` prints, leaves out.
    assert 'Traceback (most recent call last):\n  File "' not in result.output, (line, result.output[-2000:])
    asked = result.exit_code == 0 and line[0] in ("train", "launch", "report")
    assert asked or state(Path.cwd()) == before, (line, {*state(Path.cwd())} ^ {*before})
    return result.exit_code, result.output


@contextmanager
def folder(model: str) -> Iterator[Path]:
    """A folder of its own to run in."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="tunekit-generated-") as made:
        os.chdir(made)
        try:
            os.symlink(model, "MODEL")
            Path("rows.jsonl").write_text("".join(json.dumps({"text": f"the sun {i}", "label": i % 2}) + "\n" for i in range(6)))  # fmt: skip
            yield Path(made)
        finally:
            os.chdir(here)


def try_plan(model: str, plan: bytes, command: str) -> int:
    with folder(model):
        Path("plan.yaml").write_bytes(plan)
        return call([command, "plan.yaml"])[0]


def try_dataset(model: str, name: str, content: bytes, command: str) -> int:
    with folder(model):
        Path(name).write_bytes(content)
        Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, "data": {"path": name}}))
        return call(["advise", "MODEL", name, "--method", "lora"] if command == "advise" else [command, "plan.yaml"])[0]


def try_line(model: str, line: list[str]) -> int:
    with folder(model):
        Path("plan.yaml").write_text(yaml.safe_dump(PLAN))
        return call([x for x in line if x != "demo"])[0]


def properties(model: str, count: int, codes: Counter[str]) -> list[Any]:
    """Three properties over drawn input; `codes` takes down how each ended."""
    many = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )

    @many
    @given(plan=plans(), command=st.sampled_from(["estimate", "check", "train", "launch"]))
    def bad_plans(plan: bytes, command: str) -> None:
        codes[f"plan {try_plan(model, plan, command)}"] += 1

    @many
    @given(data=datasets(), command=st.sampled_from(["advise", "check", "train", "estimate"]))
    def bad_data(data: tuple[str, bytes], command: str) -> None:
        codes[f"data {try_dataset(model, *data, command)}"] += 1

    @many
    @given(line=lines())
    def bad_lines(line: list[str]) -> None:
        codes[f"line {try_line(model, line)}"] += 1

    return [bad_plans, bad_data, bad_lines]


def resident_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    count = int(sys.argv[1])
    from transformers import BertConfig, BertModel

    with tempfile.TemporaryDirectory() as made:
        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=160, max_position_embeddings=64
        )  # fmt: skip
        BertModel(config).save_pretrained(made)
        conftest.make_tokenizer(Path(made))
        codes: Counter[str] = Counter()
        failures = 0
        for prove in properties(made, -(-count // 3), codes):
            try:
                prove()
            except BaseException as e:
                if isinstance(e, KeyboardInterrupt):
                    raise
                failures += 1
                traceback.print_exc()
            print(prove.__name__, dict(codes), f"{resident_bytes() / 2**30:.2f} GiB", flush=True)
    print(json.dumps({"drawn": sum(codes.values()), "failed": failures, "ends": codes, "peak_bytes": resident_bytes()}))


if __name__ == "__main__":
    main()
