"""The dry run: the longest batch really goes forward, backward and through the optimizer, and nothing is changed by it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, error, note, warning
from tunekit.reload import reloaded
from tunekit.rewind import rewound

if TYPE_CHECKING:
    import torch
    from torch import nn

STEPS = 2
"""LoRA's first factor has a zero gradient in the first step, since the second one is zero."""
_MOST_ROWS = 20_000
_SHOWN = 3


def dry_run(trainer: Any) -> tuple[Finding, ...]:
    """Trains the longest batch for two steps and puts everything back: weights, optimizer, gradients, random numbers.

    Two codes always say how it went: `dry-run-passed` with what was proved and measured, or `dry-run-skipped`.

    Args:
        trainer: Any child of `transformers.Trainer`, before `train()`, in one process.

    Returns:
        `dry-run-failed`, `dry-run-out-of-memory`, `loss-not-finite`, `gradient-missing`, `gradient-zero`, `frozen-moved`,
        `weights-unmoved`, `reload-differs`, `reload-failed`; and one of the two above.
    """
    from tunekit.preflight import untouched_random_numbers

    why = _cannot(trainer)
    if why:
        return (note("dry-run-skipped", "no dry run", why),)
    with untouched_random_numbers(), _silent():
        try:
            batch = longest_batch(trainer)
        except Exception as e:
            return (
                error("dry-run-failed", "a batch of the longest rows", f"it cannot be made: {_words(e)}", _COLLATOR),
            )
        if batch is None:
            return (note("dry-run-skipped", "no dry run", "the rows are a stream, which can be read only once"),)
        return _tried(trainer, batch)


_COLLATOR = "look at the collator and at the columns of these rows"


def _cannot(trainer: Any) -> str:
    kind = str(getattr(trainer.args.distributed_state, "distributed_type", ""))
    if trainer.args.world_size > 1 or kind.endswith(("DEEPSPEED", "FSDP", "MEGATRON_LM")):
        return "it runs in one process with whole weights"
    if trainer.train_dataset is None:
        return "there are no rows to train on"
    if any(p.device.type == "meta" for p in trainer.model.parameters()):
        return "the weights are not loaded"
    return ""


def _tried(trainer: Any, batch: Mapping[str, Any]) -> tuple[Finding, ...]:
    from tunekit.out_of_memory import is_out_of_memory

    with tempfile.TemporaryDirectory(prefix="tunekit-dry-run-") as folder:
        try:
            with rewound(trainer) as kept:
                found, peak = _trained(trainer, batch, kept)
                wanted = logits(trainer, _few(batch))
                trainer.save_model(folder, _internal_call=True)
        except Exception as e:
            if is_out_of_memory(e):
                fix = "halve `per_device_train_batch_size` and double `gradient_accumulation_steps`, or switch activation checkpointing on"
                return (error("dry-run-out-of-memory", _shape(batch), "the longest batch does not fit", fix),)
            return (error("dry-run-failed", _shape(batch), f"one step of it fails: {_words(e)}", "the message is that of the model or of its loss"),)  # fmt: skip
        found += _loads(trainer, batch, folder, wanted)
    if all(f.severity == "note" for f in found):
        learning = sum(p.requires_grad for p in trainer.model.parameters())
        rest = sum(1 for _ in trainer.model.parameters()) - learning
        found.append(
            note(
                "dry-run-passed", f"{STEPS} steps of {_shape(batch)}",
                f"gradients reach all {learning} trainable tensors, {rest} frozen ones stayed, everything is back as it was; "
                f"measured peak {peak / 2**30:.2f} GiB",
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda f: f.severity != "error"))


def _trained(trainer: Any, batch: Mapping[str, Any], kept: dict[int, torch.Tensor]) -> tuple[list[Finding], int]:
    """Two steps; what they show, and the peak."""
    import torch

    from tunekit.callbacks._peak import PeakMemory

    model, args = trainer.model, trainer.args
    if getattr(args, "activation_checkpointing", False):
        settings = {k: v for k, v in dict(args.activation_checkpointing_kwargs or {}).items() if k not in ("every_n_layers", "offload")}  # fmt: skip
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings or None)
    elif getattr(args, "gradient_checkpointing", False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    optimizer = trainer.optimizer or trainer.create_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] or args.learning_rate  # a warm-up begins at 0
    peak = PeakMemory("cuda" if args.device.type == "cuda" else "cpu")
    peak.start()
    reached: dict[str, bool] = {}
    losses = []
    for _ in range(STEPS):
        losses.append(_step(trainer, batch, optimizer))
        for name, p in model.named_parameters():
            if p.requires_grad and p.grad is not None:
                reached[name] = reached.get(name, False) or bool(p.grad.detach().any())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak.stop()
    found = list(_gradients(model, reached)) + list(_moves(model, reached, kept))
    if not all(map(torch.isfinite, losses)):
        found = [error("loss-not-finite", f"the loss of {_shape(batch)} is {losses[0]:g}, then {losses[-1]:g}", "every weight it reaches becomes no number", "look at these rows, lower the learning rate, or use bfloat16 for float16")]  # fmt: skip
    measured = peak.bytes()
    return found, measured.get("reserved_bytes", measured["device_bytes"])


def _step(trainer: Any, batch: Mapping[str, Any], optimizer: Any) -> torch.Tensor:
    """Forward and backward as the Trainer does them."""
    model = trainer.model
    model.train()
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    inputs = trainer._prepare_inputs(dict(batch))
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, inputs).mean()
    # Half precision without the scaler that training has: small gradients would round to zero.
    scale = 1024.0 if trainer.args.fp16 else 1.0
    (loss * scale).backward()
    for p in model.parameters() if scale != 1.0 else ():
        if p.grad is not None:
            p.grad.div_(scale)
    return loss.detach()


def _gradients(model: nn.Module, reached: Mapping[str, bool]) -> Iterator[Finding]:
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    missing, zero = [n for n in learning if n not in reached], [n for n in learning if reached.get(n) is False]
    if missing:
        yield error(
            "gradient-missing", f"{len(missing)} of {len(learning)} trainable tensors get no gradient: {_some(missing)}",
            "the loss does not depend on them (DistributedDataParallel would wait for them and fail)",
            "freeze them, or look for what cuts them off (`detach`, re-entrant checkpointing, an unused head)",
        )  # fmt: skip
    if zero:
        yield warning(
            "gradient-zero", f"the gradient of {len(zero)} of {len(learning)} trainable tensors is zero in {STEPS} steps: {_some(zero)}",
            "they learn nothing from the longest rows", "for experts that no token was sent to this is right; else look at the loss",
        )  # fmt: skip


def _moves(model: nn.Module, reached: Mapping[str, bool], kept: dict[int, torch.Tensor]) -> Iterator[Finding]:
    import torch

    with torch.no_grad():
        still = {n: torch.equal(p.cpu(), kept[id(p)]) for n, p in model.named_parameters()}
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and not still[n]]
    unmoved = [n for n, p in model.named_parameters() if p.requires_grad and reached.get(n) and still[n]]
    if frozen:
        yield error(
            "frozen-moved", f"{len(frozen)} frozen tensors changed: {_some(frozen)}", "what was to stay is overwritten in silence",
            "look for a hook or a callback that writes weights, and for parameters in the optimizer that were frozen later",
        )  # fmt: skip
    if unmoved:
        yield error(
            "weights-unmoved", f"{len(unmoved)} trainable tensors get gradients and do not move: {_some(unmoved)}",
            "the optimizer does not hold them, or the step is rounded away in their dtype",
            "make the optimizer after the model is prepared; keep what learns in float32",
        )  # fmt: skip


def _loads(trainer: Any, batch: Mapping[str, Any], folder: str, wanted: dict[str, torch.Tensor]) -> list[Finding]:
    """Whether a fresh model with what was saved answers as the trained one did."""
    import torch

    try:
        fresh = reloaded(trainer.model, folder)
    except Exception as e:
        return [error("reload-failed", "what was saved", f"it cannot be loaded again: {_words(e)}", "look at the names and sizes of what is saved")]  # fmt: skip
    if fresh is None:
        return [note("reload-untested", "saving and loading", "the base cannot be loaded or rebuilt here, so that was not tried")]  # fmt: skip
    got = logits(trainer, _few(batch), fresh)
    for name, value in wanted.items():
        mine = got[name]
        most = float((mine - value).abs().max()) if mine.shape == value.shape else float("inf")
        coarse = next(trainer.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        if not most <= (2e-2 if coarse else 1e-4) * max(1.0, float(value.abs().max())):
            return [
                error(
                    "reload-differs", f"saved and loaded again, `{name}` differs by {most:.3g}", "something that was learnt is not saved, or not read back",
                    "name what learns in `modules_to_save`; after resizing or untying embeddings set the configuration too",
                )
            ]  # fmt: skip
    return []


def logits(trainer: Any, batch: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """What the model answers to a batch in evaluation mode, in float32 on the host."""
    import torch

    model = trainer.model if model is None else model
    model.eval()
    inputs = trainer._prepare_inputs(dict(batch))
    with torch.no_grad():
        out = model(**inputs)
    found = {k: v for k, v in out.items() if "logits" in k and isinstance(v, torch.Tensor)}
    return {k: v.detach().float().cpu() for k, v in (found or {"loss": out["loss"]}).items()}


def longest_batch(trainer: Any) -> Mapping[str, Any] | None:
    """The longest rows of the training set, as many as a batch has, after the collator; None of a stream."""
    from tunekit.preflight import collator_of

    rows = trainer.train_dataset
    try:
        count = len(rows)
    except (TypeError, NotImplementedError):
        return None
    if not count or not hasattr(rows, "__getitem__"):
        return None
    order = sorted(range(0, count, -(-count // _MOST_ROWS)), key=lambda i: _length(rows[i]), reverse=True)
    picked = [rows[i] for i in order[: trainer.args.per_device_train_batch_size]]
    made = collator_of(trainer)([dict(r) if isinstance(r, Mapping) else r for r in picked])
    return dict(made)


def _length(row: Any) -> int:
    """Of the tokens where there are any, else of the longest thing in the row."""
    if not isinstance(row, Mapping):
        return 0
    values = [row["input_ids"]] if "input_ids" in row else list(row.values())
    return max((sum(map(len, v)) if isinstance(v, list) and v and isinstance(v[0], list) else len(v) for v in values if hasattr(v, "__len__")), default=0)  # fmt: skip


def _few(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Two rows are enough to compare answers."""
    return {k: v[:2] if getattr(v, "ndim", 0) else v for k, v in batch.items()}


def _shape(batch: Mapping[str, Any]) -> str:
    shapes = [tuple(v.shape) for v in batch.values() if getattr(v, "ndim", 0)]
    most = max(shapes, key=len, default=())
    return f"a batch of {' x '.join(map(str, most))}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{n}`" for n in names[:_SHOWN]) + rest


def _words(e: Exception) -> str:
    first = next((line for line in str(e).splitlines() if line.strip()), "")
    return f"{type(e).__name__}: {first[:200]}"


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and reports of saving and loading, which are of no interest to anybody here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
