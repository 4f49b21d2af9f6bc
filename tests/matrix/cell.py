"""One cell, tried for real: trained by a plain `transformers.Trainer` that knows nothing of tunekit, saved, reloaded, compared."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import zoo
from matrix.cells import FUSION, METHODS, Cell
from tunekit.attach import load, merge, prepare
from tunekit.contracts import Method
from tunekit.errors import UnsupportedError
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.task import Task

STEPS, FEW = 40, 5
"""Optimizer steps of a cell; few suffice with checkpointing, whose gradients are compared with those without it."""
_LEARNING_RATES = {"rescaling": 5e-2, "prompts": 1e-1, "other": 5e-2}
_LEARNING_RATE = 1e-2
"""Prompts and rescalings are trained at several times the rate of the others, and prompts longer."""
_FALLS_TO = 0.85
"""Share of its start that the loss falls to on eight rows that can be learnt by heart."""
_NEAR = 1e-5
_USUAL, _USUAL_WORDS = 0.1, 0.4
"""Standard deviations of weights and of word vectors; most models are initialised with 0.02."""


@dataclass(kw_only=True, slots=True)
class Result:
    """What became of a cell: `works`, `refused`, `fails` (it raised) or `wrong` (it ran, and a promise does not hold)."""

    status: str
    code: str = ""
    """Of the refusal, the kind of error, or the broken promise."""
    seen: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Broken(AssertionError):
    """A promise that does not hold."""

    def __init__(self, promise: str, seen: object = "") -> None:
        super().__init__(f"{promise}: {seen}")
        self.promise, self.seen = promise, str(seen)


def tried(run: Callable[[], dict[str, float]]) -> Result:
    """What became of it; nothing but an interrupt gets through."""
    try:
        return Result(status="works", figures=run())
    except UnsupportedError as e:
        return Result(status="refused", code=e.findings[0].code, seen=e.findings[0].why)
    except Broken as e:
        return Result(status="wrong", code=e.promise, seen=e.seen)
    except Exception as e:
        place = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Result(status="fails", code=type(e).__name__, seen=f"{' '.join(str(e).split())[:160]} ({where})")


# ---------------------------------------------------------------------------------------------- our half
def run_cell(cell: Cell) -> tuple[Result, Result]:
    """The cell with checkpointing off, and on."""
    task = Task.named(cell.task)
    with quiet():
        off = tried(lambda: _ours(cell, task, checkpoints=False))
        on = tried(lambda: _ours(cell, task, checkpoints=True)) if off.status != "refused" else off
    return off, on


def _ours(cell: Cell, task: Task, *, checkpoints: bool) -> dict[str, float]:
    from matrix.cells import refusal

    if (refused := refusal(cell, checkpoints)) is not None:
        raise UnsupportedError(refused)
    with tempfile.TemporaryDirectory() as folder:
        method = with_adapters(cell, Path(folder)) if cell.method == FUSION else cell.settings
        return _kept(cell, task, method, prepare(base_of(cell), method, task), checkpoints)


def _kept(cell: Cell, task: Task, method: Method, model: nn.Module, checkpoints: bool) -> dict[str, float]:
    """The promises of a prepared model."""
    declared = method.trainable_names(model)
    says_the_head_learns(cell, declared, task)
    figures = promised_in_training(
        model, declared, task, method.family, checkpoints, may_rest=lambda name: _idle(name, task)
    )
    inputs = rows_of(task)
    if checkpoints:
        _same_gradients(model, inputs)
        return figures
    expected = zoo.logits(model, inputs)
    lines_up(expected, zoo.logits(base_of(cell), inputs))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load(base_of(cell), folder)
        near("saved and reloaded it answers the same", zoo.logits(again, inputs), expected)
    if not task.has_head:
        generates(model, base_of(cell), task)
    if method.merges:
        near("merged it answers as it did live", zoo.logits(merge(model), inputs), expected)
    return figures


def with_adapters(cell: Cell, folder: Path) -> Method:
    """AdapterFusion over two adapters of the cell's base, which say something."""
    names = ("first", "second")
    for seed, name in enumerate(names):
        model = prepare(base_of(cell), METHODS["bottleneck-adapter"], Task.named(cell.task))
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(_USUAL * torch.randn_like(p))
        model.save_pretrained(folder / name)
    return AdapterFusion(adapters=tuple(str(folder / name) for name in names))


def _idle(name: str, task: Task) -> bool:
    """What no token of so few reaches: experts, and the attention to a source in a decoder that is given none."""
    return "expert" in name or (task.name == "causal-lm" and "encoder_attn" in name)


def base_of(cell: Cell) -> nn.Module:
    """The tiny model with weights as large as training makes them, so that what reaches its last layer moves its answers."""
    model = zoo.build(cell.architecture, Task.named(cell.task))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                # Narrow word vectors are larger, so that a frozen output layer can prefer some words whatever its width.
                words = _USUAL_WORDS * (32 / p.shape[1]) ** 0.5
                wanted = words if p.shape[0] == model.config.vocab_size else _USUAL
                p.mul_(max(1.0, wanted / float(p.std())))
    return model


# ---------------------------------------------------------------------------------------------- promises
def rows_of(task: Task) -> dict[str, torch.Tensor]:
    """Eight rows with labels that can be learnt; text repeats three tokens, so that a few numbers are enough to learn it."""
    inputs = zoo.batch(task, rows=16 if task.name == "multiple-choice" else 8)
    if not task.has_head:
        ids = inputs["input_ids"]
        pattern = 5 + (torch.arange(ids.shape[0])[:, None] + torch.arange(ids.shape[1])[None]) % 3
        inputs["input_ids"] = torch.where(ids > 2, pattern, ids)
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return inputs


class Rows(Dataset):
    """Eight rows."""

    def __init__(self, task: Task) -> None:
        self._all = rows_of(task)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: values[i] for name, values in self._all.items()}


def promised_in_training(
    model: nn.Module,
    declared: frozenset[str],
    task: Task,
    family: str,
    checkpoints: bool,
    may_rest: Callable[[str], bool] = lambda name: False,
) -> dict[str, float]:
    """Trains by a plain Trainer and checks that the loss falls and exactly the declared parameters have changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    watch, rate = _Gradients(), _LEARNING_RATES.get(family, _LEARNING_RATE)
    with tempfile.TemporaryDirectory() as folder:
        steps = STEPS * (3 if family == "prompts" else 1)
        trainer = plain_trainer(
            model, task, folder, rate, FEW if checkpoints else steps, watch, checkpoints=checkpoints
        )
        start = trainer.evaluate()["eval_loss"]
        trainer.train()
        end = trainer.evaluate()["eval_loss"]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    if changed - declared:
        raise Broken("nothing else changes", sorted(changed - declared)[:3])
    if moved := [n for n, b in model.named_buffers() if n in buffers and not torch.equal(b, buffers[n])]:
        raise Broken("nothing else changes", moved[:3])
    if missing := sorted(n for n in watch.without if not may_rest(n)):
        raise Broken("every trainable tensor has a gradient", missing[:3])
    still = sorted(n for n in declared - watch.moved if not may_rest(n) and not _choiceless(n, task))
    if still:
        raise Broken("every gradient becomes non-zero within five steps", still[:3])
    if still := sorted(n for n in declared - changed if n in watch.moved):
        raise Broken("every declared parameter changes", still[:3])
    if not checkpoints and not end < _FALLS_TO * start:
        raise Broken("the loss falls well below its start", f"{start:.3f} to {end:.3f}")
    return {"start": round(start, 4), "end": round(end, 4)}


def _choiceless(name: str, task: Task) -> bool:
    """A bias that is added to every choice alike has no gradient."""
    return task.name == "multiple-choice" and name.endswith("bias") and "classifier" in name


class _Gradients:
    """Which trainable parameters had a gradient in the first step, and which a non-zero one in the first five."""

    def __init__(self) -> None:
        self.without: set[str] = set()
        self.moved: set[str] = set()


def plain_trainer(
    model: nn.Module, task: Task, folder: str, rate: float, steps: int, watch: _Gradients, *, checkpoints: bool
) -> Any:
    """transformers' own Trainer with its own optimizer."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
            if state.global_step == 0:
                watch.without = {n for n, p in wanted.items() if p.grad is None}
            if state.global_step < 5:
                watch.moved |= {n for n, p in wanted.items() if p.grad is not None and p.grad.any()}

    saving = (
        "activation_checkpointing"
        if hasattr(TrainingArguments, "activation_checkpointing")
        else "gradient_checkpointing"
    )
    args = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=rate, save_strategy="no",
        lr_scheduler_type="constant" if checkpoints else "linear", report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=3,
        dataloader_pin_memory=False, **{saving: checkpoints, f"{saving}_kwargs": {"use_reentrant": False} if checkpoints else None},
    )  # fmt: skip
    rows = Rows(task)
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, callbacks=[Look()])
    trainer.remove_callback(PrinterCallback)
    return trainer


def lines_up(found: torch.Tensor, base: torch.Tensor) -> None:
    """As many answers as the base gives: none for tokens that the user did not write."""
    if found.shape != base.shape:
        raise Broken("its answers line up with the input", f"{tuple(found.shape)} for {tuple(base.shape)}")


def says_the_head_learns(cell: Cell, declared: frozenset[str], task: Task, only_new: bool = False) -> None:
    """A new head is random: frozen, it is of no use. With `only_new` a pooler that came with the base does not count."""
    from tunekit.structure import base_name, head_parameters

    base = base_of(cell)
    heads = {n for n in head_parameters(base, task) if not (only_new and n.startswith(f"{base_name(base)}."))}
    plain = {
        n.removeprefix("base_model.model.").removeprefix("base_model.").replace(".modules_to_save.default", "")
        for n in declared
    }
    if missing := sorted(heads - plain):
        raise Broken("the head learns", missing[:3])


def near(promise: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest."""
    difference = float((found - expected).abs().max())
    if not difference <= _NEAR * max(1.0, float(expected.abs().max())):
        raise Broken(promise, f"{difference:.1e} apart")


def generates(model: nn.Module, base: nn.Module, task: Task) -> None:
    """Greedy continuation, longer than the prompt, and the first new token is the most likely one, as it is of the base."""
    inputs = rows_of(task)
    ids, mask = inputs["input_ids"][1:3], inputs["attention_mask"][1:3]
    written, says = _written(model, ids, mask, task)
    if not written.shape[1] > (ids.shape[1] if task.name == "causal-lm" else 1):
        raise Broken("it still generates", tuple(written.shape))
    # RoBERTa counts positions otherwise when it writes than when it reads.
    if not says and _written(base, ids, mask, task)[1]:
        raise Broken("it generates what its logits say", written[:, ids.shape[1] :].tolist())


def _written(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, task: Task) -> tuple[torch.Tensor, bool]:
    """What is written, and whether its first token is the most likely one."""
    model.eval()
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=2, do_sample=False)
    if task.name != "causal-lm":
        return out, True
    scores = zoo.logits(model, {"input_ids": ids, "attention_mask": mask})[:, -1]
    if (end := model.generation_config.eos_token_id) is not None:
        scores[:, end] = float("-inf")
    return out, torch.equal(out[:, ids.shape[1]], scores.argmax(-1))


def _same_gradients(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Gradients with checkpointing (the Trainer has turned it on) are those without it."""
    plain = copy.deepcopy(model)
    disable = getattr(plain, "activation_checkpointing_disable", None) or plain.gradient_checkpointing_disable
    disable()
    found = []
    for one in (model, plain):
        one.train()
        one.zero_grad()
        one(**inputs)["loss"].backward()
        found.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
    if found[0].keys() != found[1].keys():
        raise Broken("checkpointing leaves the gradients as they are", sorted(found[0].keys() ^ found[1].keys())[:3])
    for name in found[0]:
        largest = float(found[1][name].abs().max())
        if not torch.allclose(found[0][name], found[1][name], atol=1e-5 * max(1.0, largest), rtol=1e-4):
            raise Broken("checkpointing leaves the gradients as they are", name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    import logging
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
