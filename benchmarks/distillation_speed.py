"""Training from a cache of the teacher's answers beside training with the teacher: seconds a step, and where both end.

    python benchmarks/distillation_speed.py --data ../shared/data

Two equal students of a small decoder, one with the teacher beside it and one with the teacher's likeliest 64 of 1,000 words out
of a cache, take every step on the same batch in turns, in one process; who goes first alternates. The teacher has three
times the student's parameters and is trained here on the same rows (descriptions of restaurants with what they are made of: e2e_nlg_clean),
since a cache of few words is for a teacher that knows its subject: `teacher_mass_in_cache` says how much of its belief they hold.
Both students are then scored by the same objective, with the teacher beside them, on rows that nobody has seen. A third one
of the same size takes the same steps on the labels alone: what a step costs at least, and what the teacher is worth. `--prepare` only trains
the teacher and fills the cache, into `--folder`, so that the timing can be run alone later; what was broken off goes on.
`--rows shakespeare` takes text that nobody can foresee, on which a small teacher is unsure. Writes benchmarks/results/distillation_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distillation_speed.json"
WORDS, WIDTH, LENGTH, ROWS, HELD_OUT = 1_000, 160, 64, 3_200, 300
LAYERS = {"student": 3, "teacher": 10}
ARMS = ("online", "cached", "labels")
WARM, LAST = 5, 30


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
            hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, intermediate_size=432,
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


def objective(folder: Path, arm: str, top: int) -> Any:
    """The same distillation with the teacher beside, or from the cache; None is the labels alone."""
    import tunekit

    if arm == "labels":
        return None
    where = {"cache": str(folder / f"answers-{top}"), "top_k": top} if arm == "cached" else {}
    return tunekit.objectives.Distillation(teacher=str(folder / "taught"), hard_weight=0.2, temperature=1.0, **where)


def texts(data: Path, kind: str) -> list[str]:
    """The rows' texts in a seeded order."""
    if kind == "shakespeare":
        lines = (data / "tinyshakespeare" / "train.jsonl").read_text("utf-8").splitlines()
        words = " ".join(json.loads(line)["text"] for line in lines).split()
        found = [" ".join(words[i : i + 40]) for i in range(0, len(words), 40)]
    else:
        lines = (data / "e2e_nlg_clean" / "train.jsonl").read_text("utf-8").splitlines()
        found = ["{source} | {target}".format(**json.loads(line)) for line in lines]
    random.Random(7).shuffle(found)
    return found


def prepare(data: Path, folder: Path, kind: str, teacher_steps: int, top: int) -> None:
    """Rows, tokenizer, both models, the trained teacher and the cache, where they are not there yet."""
    import tunekit

    every = texts(data, kind)
    rows = [{"text": text} for text in every[: ROWS + HELD_OUT]]
    (folder / "rows.json").write_text(json.dumps(rows))
    if not (folder / "sizes.json").is_file():
        sizes = {}
        for name, layers in LAYERS.items():
            sizes[name] = model(folder / name, layers, seed=layers)
            tokenizer("\n".join(every), folder / name)
        (folder / "sizes.json").write_text(json.dumps(sizes))
    if not (folder / "taught" / "model.safetensors").is_file():
        made = plan(folder, "teacher", None, teacher_steps, 2e-3).replace(output_dir=str(folder / "teaching"))
        trainer = tunekit.trainer(
            made, train_dataset=rows[:ROWS], disable_tqdm=True, save_strategy="steps", save_steps=50, overwrite=True,
            log_level="error",
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=tunekit.last_checkpoint(made.output_dir))
        trainer.save_model(str(folder / "taught"))
    tunekit.teach(plan(folder, "student", objective(folder, "cached", top), 1, 1e-3), train_dataset=rows[:ROWS])


def measure(folder: Path, steps: int, top: int) -> dict[str, Any]:
    """The students, step by step in turns."""
    import torch

    import tunekit

    rows = json.loads((folder / "rows.json").read_text())
    trainers = {
        arm: tunekit.trainer(plan(folder, "student", objective(folder, arm, top), steps, 2e-3), train_dataset=rows[:ROWS], disable_tqdm=True, save_strategy="no", overwrite=True)
        for arm in ARMS
    }  # fmt: skip
    batches = {arm: list(t.get_train_dataloader()) for arm, t in trainers.items()}
    assert _same(batches), "all must learn from the same batches in the same order"
    for t in trainers.values():
        t.create_optimizer_and_scheduler(steps)
        t.model.train()
        t.current_gradient_accumulation_steps = 1
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for i in range(steps):
        for arm in ARMS if i % 2 else ARMS[::-1]:
            start = time.perf_counter()
            loss = _step(trainers[arm], batches[arm][i % len(batches[arm])])
            seconds[arm].append(time.perf_counter() - start)
            losses[arm].append(float(loss))
    judge = trainers["online"]
    held = {arm: _held_out(judge, t.model, rows[ROWS:]) for arm, t in trainers.items()}
    median = {arm: statistics.median(found[WARM:]) for arm, found in seconds.items()}
    sizes = json.loads((folder / "sizes.json").read_text())
    return {
        "steps": steps, "parameters": sizes, "teacher_over_student": sizes["teacher"] / sizes["student"], "threads": torch.get_num_threads(),
        "top_k": top, "teacher_mass_in_cache": _mass(batches["cached"]), "median_step_seconds": median,
        "ratio_of_medians": median["online"] / median["cached"],
        "median_of_paired_ratios": statistics.median(a / b for a, b in zip(seconds["online"][WARM:], seconds["cached"][WARM:], strict=True)),
        "first_train_loss": {arm: v[0] for arm, v in losses.items()}, "last_train_loss": {arm: statistics.mean(v[-LAST:]) for arm, v in losses.items()},
        "held_out_loss": held, "held_out_cached_over_online": held["cached"] / held["online"] - 1,
    }  # fmt: skip


def _same(batches: dict[str, list[Any]]) -> bool:
    import torch

    return all(
        torch.equal(one["input_ids"], other["input_ids"]) for one, *rest in zip(*batches.values(), strict=True) for other in rest
    )  # fmt: skip


def _step(t: Any, batch: Any) -> Any:
    import torch

    loss = t.training_step(t.model, dict(batch), None)
    torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)
    t.optimizer.step()
    t.lr_scheduler.step()
    t.optimizer.zero_grad()
    return loss


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
    parser.add_argument("--rows", choices=("restaurants", "shakespeare"), default="restaurants")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--top", type=int, default=64)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(args.data, folder, args.rows, args.teacher_steps, args.top)
        if args.prepare:
            return
        told = {"rows": args.rows, "teacher_steps": args.teacher_steps, **measure(folder, args.steps, args.top)}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
