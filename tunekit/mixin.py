"""TrainerMixin: what a callback cannot do. Composes with Trainer, Seq2SeqTrainer and TRL's SFTTrainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import rotate_checkpoints

from tunekit.attach import prepared
from tunekit.checkpoint import check_ranks, last_checkpoint
from tunekit.contracts import Objective
from tunekit.data.fill import num_fillers, real_rows
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.fsdp import by_blocks, held_back, share
from tunekit.objectives.supervised import Supervised, num_supervised
from tunekit.out_of_memory import (
    OomRecovery,
    agreed_by_ranks,
    average_gradients,
    is_out_of_memory,
    sharded_out_of_memory,
)
from tunekit.own_module import load_beside, own_parameters, save_beside
from tunekit.sampler import GroupedByLength, LongestFirst, row_lengths
from tunekit.saving import lost_worker, save_atomically
from tunekit.structure import unwrapped


class TrainerMixin:
    """The objective's loss, the method's optimizer groups and atomic checkpoints inside any Trainer.

    Put it before the trainer class. A checkpoint is written aside, flushed to the disk and renamed, so that a run that
    is killed leaves whole ones only; `train(resume_from_checkpoint=True)` takes the newest whole one. A batch that
    does not fit into memory is split in two and gives the same update (over DDP's ranks with `oom_over_ranks`; not under
    DeepSpeed, which fixes the micro-batch). On a model
    that `tunekit.prepare` returned, the optimizer gets the method's groups (LoRA+ and discriminative learning rates
    live there); on any other model nothing changes but the loss.

    Args:
        objective: What is minimised; `Supervised` when None.

    Example:
        >>> from transformers import Trainer
        >>> class MyTrainer(TrainerMixin, Trainer):
        ...     pass
    """

    optimizer: Any
    """The host's; None until it is asked for."""
    train_dataset: Any
    data_collator: Any
    _signature_columns: Any
    oom_over_ranks: bool = False
    """Whether several processes (DistributedDataParallel) recover together from a batch that does not fit: then gradients are
    shared after backward and not during it, and the ranks ask one another after every batch, which takes time."""
    _in_order: bool = False
    """Whether rows are being answered one by one, so that their order counts."""
    _aside: Path | None = None
    """Where the checkpoint that is being saved is written; None while none is."""

    def __init__(self, *args: Any, objective: Objective | None = None, **kwargs: Any) -> None:
        # Not `objective`: the host keeps the score of a hyperparameter search under that name.
        self.learning_objective = objective or Supervised()
        self.oom_recovery = OomRecovery()
        self._share = 1.0
        super().__init__(*args, **kwargs)
        by_blocks(self)
        if getattr(self.learning_objective, "loss_kernel", "plain") != "plain" and not self._own_loss_is_ours():
            raise UnsupportedError(
                error("loss-kernel-unused", "`loss_kernel: chunked` where another loss is computed", "a label smoother, a loss function, a trainer with a loss of its own or DataParallel takes its place", "leave that out, or set `loss_kernel: plain`")
            )  # fmt: skip
        if not self.learning_objective.plain_trainer:
            # The host asks whether the model's own loss takes the number of items; this loss does.
            self.model_accepts_loss_kwargs = True
        tokenizer, rows = getattr(self, "processing_class", None), self.train_dataset
        self.learning_objective.ready(self.model, tokenizer)  # type: ignore[attr-defined]
        taught = self.learning_objective.rows(rows, self.model, tokenizer) if rows is not None else None  # type: ignore[attr-defined]
        if taught is not rows:
            self.train_dataset = taught
            self.data_collator = partial(self.learning_objective.collate, collate=self.data_collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's loss, exact under accumulation and over ranks."""
        if self._share != 1.0 and num_items_in_batch is None:
            share, self._share = self._share, 1.0
            made = self.compute_loss(model, inputs, return_outputs, None)
            return (made[0] * share, made[1]) if return_outputs else made * share
        plain = isinstance(self.learning_objective, Supervised)
        if plain and not self._own_loss_is_ours():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        loss, outputs = self.learning_objective.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:  # type: ignore[attr-defined]
            loss = loss * self.accelerator.num_processes  # type: ignore[attr-defined]
        return (loss, outputs) if return_outputs else loss

    def _own_loss_is_ours(self) -> bool:
        """Whether the host would compute nothing but the model's own loss, so that ours stands in for it.

        A smoother, a loss function of the user's, a trainer with a loss of its own (TRL) and DataParallel keep theirs.
        """
        host = next(c for c in type(self).__mro__ if "compute_loss" in vars(c) and c is not TrainerMixin)
        smoothed = getattr(self, "label_smoother", None) is not None
        return host is Trainer and not smoothed and self.compute_loss_func is None and self.args.n_gpu <= 1  # type: ignore[attr-defined]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The host's step; a batch that does not fit is split in two, where the two halves give the same update."""
        host = super().training_step  # type: ignore[misc]
        ranks = self._recovers_over_ranks()
        if not self._splits_exactly(num_items_in_batch):
            try:
                return host(model, inputs, num_items_in_batch)
            except RuntimeError as e:
                if self._sharded() and is_out_of_memory(e):
                    raise sharded_out_of_memory(inputs, e) from e
                raise
        # Under DistributedDataParallel a rank that fails half-way would leave the others waiting. So the ranks run the
        # model inside, agree, and share the gradients at the end.
        inner = unwrapped(model) if ranks else model

        def part(piece: Any, share: float) -> torch.Tensor:
            self._share = share
            try:
                return host(inner, piece, num_items_in_batch)
            finally:
                self._share = 1.0

        def weigh(piece: Any) -> int:
            labels, items = piece.get("labels"), self.learning_objective.num_items(piece)
            if items is None and labels is not None and not labels.is_floating_point():
                items = num_supervised(model, labels)
            return int(items or 0) or max(len(v) for v in piece.values() if getattr(v, "ndim", 0))

        agree = agreed_by_ranks(self.args.device) if ranks else int  # type: ignore[attr-defined]
        loss = self.oom_recovery.run(self.state.global_step, inputs, part, model.zero_grad, weigh, agree)  # type: ignore[attr-defined]
        if ranks and self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            average_gradients(inner)
        return loss

    def _sharded(self) -> bool:
        return str(self.accelerator.distributed_type).endswith(("DEEPSPEED", "FSDP", "MEGATRON_LM"))  # type: ignore[attr-defined]

    def _recovers_over_ranks(self) -> bool:
        """Whether several processes agree on splitting."""
        return self.oom_over_ranks and self.args.world_size > 1 and not self._sharded()  # type: ignore[attr-defined]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The objective's own count where it has one, that of the model's loss where it is ours to weigh, or the host's.

        The host counts the first token of a row among the targets of GPT-2 and others whose loss it does not know.
        """
        counts = [self.learning_objective.num_items(batch) for batch in batch_samples]
        known = [c for c in counts if c is not None]
        if not known or len(known) < len(counts):
            theirs = super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
            plain = isinstance(self.learning_objective, Supervised) and self._own_loss_is_ours()
            if theirs is None or not plain or any("shift_labels" in batch for batch in batch_samples):
                return theirs
            known = [num_supervised(self.model, batch["labels"]) for batch in batch_samples]  # type: ignore[attr-defined]
        total = torch.stack(known).sum().to(device)
        shared = self.args.average_tokens_across_devices and self.args.world_size > 1  # type: ignore[attr-defined]
        return self.accelerator.gather(total).sum() if shared else total  # type: ignore[attr-defined]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None, **kwargs: Any
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """The host's, with the loss of a rank's own rows; rows without labels are answered by the objective."""
        if not self.learning_objective.own_rows or "labels" in inputs:
            made = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)  # type: ignore[misc]
            return (
                made if made[0] is None or not self._is_filled() else (self._loss_of_own_rows(model, inputs), *made[1:])
            )
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            logits = self.learning_objective.answer(model, inputs)["logits"]
        return None, None if prediction_loss_only else logits.detach(), None

    def _is_filled(self) -> bool:
        """Whether this is the last batch of an evaluation over ranks, which accelerate has filled with rows of others."""
        state = self.accelerator.gradient_state  # type: ignore[attr-defined]
        return bool(self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0)  # type: ignore[attr-defined]

    def _loss_of_own_rows(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The mean over the last rows of all ranks, each once: of the others the host takes the answers away, but not the loss.

        Every rank asks its model, for one row at least, since weights may be gathered at every forward pass.
        """
        size = max(len(v) for v in inputs.values() if getattr(v, "ndim", 0))
        own = real_rows(self.accelerator.gradient_state.remainder, self.args.process_index, size)  # type: ignore[attr-defined]
        part = {k: v[: max(1, own)] if getattr(v, "ndim", 0) and len(v) == size else v for k, v in inputs.items()}
        part, labels = self._prepare_inputs(part), part.get("labels")  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            mean = self.compute_loss(model, part, num_items_in_batch=None)
        items = self.learning_objective.num_items(part)
        if items is None and labels is not None and not labels.is_floating_point():
            items = num_supervised(model, labels)
        count = float(own if items is None else items) if own else 0.0
        pair = torch.stack([mean.float().detach() * count, torch.full_like(mean, count, dtype=torch.float32)])
        sums = self.accelerator.gather(pair[None]).sum(0)  # type: ignore[attr-defined]
        return sums[0] / sums[1]

    def _splits_exactly(self, num_items_in_batch: Any) -> bool:
        """Whether two halves of a batch add up to the update of the whole.

        DeepSpeed fixes the micro-batch, the host's own search for a batch size wants the error, and a loss of somebody
        else's may weigh as it likes.
        """
        args = self.args  # type: ignore[attr-defined]
        alone = args.world_size == 1 or self._recovers_over_ranks()
        ours = not isinstance(self.learning_objective, Supervised) or self._own_loss_is_ours()
        return alone and args.n_gpu <= 1 and not self._sharded() and ours and not args.auto_find_batch_size

    def create_accelerator_and_postprocess(self) -> None:
        """The host's; FSDP is turned on where accelerate leaves it out."""
        with held_back(self.args) as parallelism:  # type: ignore[attr-defined]
            super().create_accelerator_and_postprocess()  # type: ignore[misc]
        share(self, parallelism)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The host's optimizer over the method's parameter groups."""
        target = self.model if model is None else model  # type: ignore[attr-defined]
        attached = prepared(self.model)  # type: ignore[attr-defined]
        if self.optimizer is None and attached is not None and attached.method is not None:
            cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, target)  # type: ignore[attr-defined]
            if not {"params", "model", "optimizer_dict"} & set(kwargs):
                args = self.args  # type: ignore[attr-defined]
                groups = attached.method.parameter_groups(target, args.learning_rate, args.weight_decay)
                held = {id(p) for group in groups for p in group["params"]}
                if own := [p for p in own_parameters(target) if id(p) not in held]:
                    groups.append({"params": own, "lr": args.learning_rate, "weight_decay": 0.0})
                self.optimizer = cls(groups, **kwargs)
        return super().create_optimizer(model)  # type: ignore[misc]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The host's training; True resumes from the newest whole checkpoint, where the host would take a torn one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir) or True  # type: ignore[attr-defined]
        if isinstance(resume_from_checkpoint, str | Path):
            check_ranks(resume_from_checkpoint, self.args.world_size, divided=bool(self.args.deepspeed))  # type: ignore[attr-defined]
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        except RuntimeError as e:
            if lost := lost_worker(e, self.args.output_dir):  # type: ignore[attr-defined]
                raise lost from e
            raise

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, with nothing computed again below the first layer that learns.

        Checkpointing is switched on just before, and transformers (5.17 to 5.23) then lets the embeddings' output want a gradient,
        which the re-entrant form alone needs: backward would go through frozen layers down to the input.
        """
        settings = self.args  # type: ignore[attr-defined]
        how = getattr(settings, "activation_checkpointing_kwargs", None) or settings.gradient_checkpointing_kwargs or {}
        if not how.get("use_reentrant", True):
            for module in self.model.modules():  # type: ignore[attr-defined]
                if getattr(module, "_require_grads_hooks", None):
                    module.disable_input_require_grads()
        return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)  # type: ignore[misc]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The host's checkpoint, whole or not there. What is pushed to a hub while it is written goes the host's way."""
        args, state = self.args, self.state  # type: ignore[attr-defined]
        host = super()._save_checkpoint  # type: ignore[misc]
        if args.push_to_hub:
            host(model, trial)
            return

        def write(aside: Path) -> None:
            self._aside = aside
            try:
                host(model, trial)
                save_beside(self, aside / f"checkpoint-{state.global_step}")
            finally:
                self._aside = None

        folder = Path(self._get_output_dir(trial))
        save_atomically(self, folder, write)
        if args.should_save:
            rotate_checkpoints(
                output_dir=str(folder), save_total_limit=args.save_total_limit,
                best_model_checkpoint=state.best_model_checkpoint, use_mtime=True,
            )  # fmt: skip

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The host's, and what the objective itself had learnt."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        load_beside(self, Path(resume_from_checkpoint))

    def _set_signature_columns_if_needed(self) -> None:
        """The host drops columns that the model's forward does not know; those that the objective reads are kept."""
        missing = self._signature_columns is None
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if missing:
            self._signature_columns = [*(self._signature_columns or ()), *self.learning_objective.columns]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The host's, in the order of the rows: under `train_sampling_strategy="group_by_length"` the host sorts these too
        (transformers 5.17 to 5.23), and `predict` would answer for other rows than it was asked about."""
        self._in_order = True
        try:
            return super().get_test_dataloader(test_dataset)  # type: ignore[misc]
        finally:
            self._in_order = False

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In order for answers; else under `group_by_length` the longest first, where the host (transformers 5.17 to 5.23) sorts
        within a few batches of a random order, and not at all among fewer than eight batches of rows."""
        if eval_dataset is None or not hasattr(eval_dataset, "__len__"):
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[misc]
        if not self._in_order:
            grouped = self.args.train_sampling_strategy == "group_by_length"  # type: ignore[attr-defined]
            lengths = row_lengths(eval_dataset) if grouped else None
            return super()._get_eval_sampler(eval_dataset) if lengths is None else LongestFirst(lengths)  # type: ignore[misc]
        alone = self.args.world_size <= 1  # type: ignore[attr-defined]
        return torch.utils.data.SequentialSampler(eval_dataset) if alone else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """For `train_sampling_strategy="group_by_length"` a sampler that is right over ranks and after a resumption."""
        host = super()._get_train_sampler  # type: ignore[misc]
        args = self.args  # type: ignore[attr-defined]
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = row_lengths(rows) if args.train_sampling_strategy == "group_by_length" else None
        if lengths is None:
            return host(train_dataset)
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return GroupedByLength(lengths, step, seed, num_fillers(rows) if args.world_size > 1 else 0)


class TunekitTrainer(TrainerMixin, Trainer):
    """What `tunekit.trainer` returns for every task but seq2seq."""


class TunekitSeq2SeqTrainer(TrainerMixin, Seq2SeqTrainer):
    """What `tunekit.trainer` returns for seq2seq."""
