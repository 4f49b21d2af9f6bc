"""Training from a cache of the teacher's answers beside training with the teacher: seconds a step, and where both end.

    python benchmarks/distillation_speed.py --data ../shared/data

Two equal students of a small decoder, one with the teacher beside it and one with the top 256 log-probabilities of 1,000 words
out of a cache (so weak a teacher spreads its belief: `teacher_mass_in_cache` says how much of it they hold), take every step on the same batch in turns, in one process; who goes first alternates. The teacher has three
times the student's parameters and is trained here for a minute. Both students are then scored by the same objective, with the
teacher beside them, on rows that neither has seen. `--prepare` only trains the teacher and fills the cache, into `--folder`,
so that the timing can be run alone later. Writes benchmarks/results/distillation_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distillation_speed.json"
WORDS, WIDTH, LENGTH, ROWS = 1_000, 128, 64, 800
LAYERS = {"student": 3, "teacher": 10}
WARM, TOP = 5, 256


def tokenizer(text: str, folder: Path) -> None:
    """A byte-pair tokenizer of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    inner.train_from_iterator([text], trainers.BpeTrainer(vocab_size=WORDS, special_tokens=["<pad>", "</s>"], show_progress=False))  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def model(folder: Path, layers: int, seed: int) -> int:
    """A new decoder in a folder; returns its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    made = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, intermediate_size=352,
            vocab_size=WORDS, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=1, tie_word_embeddings=True,
        )
    )  # fmt: skip
    made.save_pretrained(folder)
    return sum(p.numel() for p in made.parameters())


def plan(folder: Path, name: str, objective: Any, steps: int, rate: float) -> Any:
    """Full fine-tuning of one of the models."""
    import tunekit

    return tunekit.Plan(
        model=str(folder / name), task="causal-lm", method=tunekit.methods.Full(), objective=objective, max_length=LENGTH,
        output_dir=str(folder / "run"), per_device_train_batch_size=8, max_steps=steps, learning_rate=rate, seed=0,
    )  # fmt: skip


def objective(folder: Path, cached: bool) -> Any:
    """The same distillation with the teacher beside, or from the cache."""
    import tunekit

    where = {"cache": str(folder / f"answers-{TOP}"), "top_k": TOP} if cached else {}
    return tunekit.objectives.Distillation(teacher=str(folder / "taught"), hard_weight=0.2, temperature=1.0, **where)


def prepare(data: Path, folder: Path, teacher_steps: int) -> None:
    """Rows, tokenizer, both models, the trained teacher and the cache, where they are not there yet."""
    import tunekit

    done = folder / f"answers-{TOP}" / "done"
    if done.is_file():
        return
    lines = (data / "tinyshakespeare" / "train.jsonl").read_text("utf-8").splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines)
    words = text.split()
    rows = [{"text": " ".join(words[i * 40 : i * 40 + 40])} for i in range(ROWS + 100)]
    (folder / "rows.json").write_text(json.dumps(rows))
    sizes = {}
    for name, layers in LAYERS.items():
        sizes[name] = model(folder / name, layers, seed=layers)
        tokenizer(text, folder / name)
    (folder / "sizes.json").write_text(json.dumps(sizes))
    if not (folder / "taught" / "model.safetensors").is_file():
        trainer = tunekit.trainer(plan(folder, "teacher", None, teacher_steps, 2e-3), train_dataset=rows[:ROWS], disable_tqdm=True, save_strategy="no", overwrite=True)  # fmt: skip
        trainer.train()
        trainer.save_model(str(folder / "taught"))
    tunekit.teach(plan(folder, "student", objective(folder, True), 1, 1e-3), train_dataset=rows[:ROWS])
    done.write_text("")


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """Both students, step by step in turns."""
    import torch

    import tunekit

    rows = json.loads((folder / "rows.json").read_text())
    trainers = {
        name: tunekit.trainer(plan(folder, "student", objective(folder, name == "cached"), steps, 2e-3), train_dataset=rows[:ROWS], disable_tqdm=True, save_strategy="no", overwrite=True)
        for name in ("online", "cached")
    }  # fmt: skip
    batches = {name: list(t.get_train_dataloader()) for name, t in trainers.items()}
    for t in trainers.values():
        t.create_optimizer_and_scheduler(steps)
        t.model.train()
        t.current_gradient_accumulation_steps = 1
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    losses: dict[str, list[float]] = {name: [] for name in trainers}
    for i in range(steps):
        for name in ("online", "cached") if i % 2 else ("cached", "online"):
            t, batch = trainers[name], batches[name][i % len(batches[name])]
            start = time.perf_counter()
            loss = t.training_step(t.model, dict(batch), None)
            torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)
            t.optimizer.step()
            t.lr_scheduler.step()
            t.optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(float(loss))
    same = all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*batches.values(), strict=True))
    assert same, "both must learn from the same batches in the same order"
    online = trainers["online"]
    held = {name: _held_out(online, t.model, rows[ROWS:]) for name, t in trainers.items()}
    median = {name: statistics.median(found[WARM:]) for name, found in seconds.items()}
    sizes = json.loads((folder / "sizes.json").read_text())
    return {
        "steps": steps, "parameters": sizes, "teacher_over_student": sizes["teacher"] / sizes["student"],
        "median_step_seconds": median, "ratio_of_medians": median["online"] / median["cached"],
        "median_of_paired_ratios": statistics.median(a / b for a, b in zip(seconds["online"][WARM:], seconds["cached"][WARM:], strict=True)),
        "first_train_loss": {n: v[0] for n, v in losses.items()},
        "last_train_loss": {n: statistics.mean(v[-20:]) for n, v in losses.items()}, "held_out_loss": held, "top_k": TOP, "teacher_mass_in_cache": _mass(batches["cached"]),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _mass(batches: list[Any]) -> float:
    """The share of the teacher's belief that lies in the words of the cache, over the tokens that are learnt."""
    kept = [b["teacher_tail"][b["teacher_tail"] != 0] for b in batches]
    return statistics.mean(1 - float(tail.exp().mean()) for tail in kept)


def _held_out(judge: Any, student: Any, rows: list[dict[str, Any]]) -> float:
    """The online objective of a student on rows that were not trained on."""
    import torch

    import tunekit

    made = plan(Path(judge.args.output_dir).parent, "student", judge.learning_objective, 1, 1e-3)
    encoded = tunekit.trainer(made, train_dataset=rows, model=student, disable_tqdm=True, save_strategy="no", overwrite=True)  # fmt: skip
    student.eval()
    with torch.no_grad():
        found = [float(judge.learning_objective.loss(student, batch)[0]) for batch in encoded.get_train_dataloader()]
    return statistics.mean(found)


def main() -> None:
    """Prepares what is missing, measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, help="Where teacher and cache are kept.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(args.data, folder, args.teacher_steps)
        if args.prepare:
            return
        told = measure(folder, args.steps)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
