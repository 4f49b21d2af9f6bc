"""The only door to the host: a Plan becomes a prepared model, an optimizer, TrainingArguments and a Trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tunekit.activation_cache import keep_frozen_activations
from tunekit.admission import admit, check_divides, sharded_arguments
from tunekit.attach import prepare
from tunekit.data.collate import collator as task_collator
from tunekit.discovery import find
from tunekit.errors import raise_all
from tunekit.finding import error, warning
from tunekit.host import training_arguments
from tunekit.joining import lies_flat, told_apart
from tunekit.material import Material, gather
from tunekit.plan import Plan
from tunekit.pretrained import load_model, read_side
from tunekit.sharding import unmap, whole_weights
from tunekit.structure import side_of, task_model
from tunekit.task import Task
from tunekit.workload import Goal

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from tunekit.advice import Advice
    from tunekit.estimate import MemoryEstimate, TimeEstimate
    from tunekit.workload import DataFacts

_LOG = logging.getLogger(__name__)
Loop = Literal["trainer", "peft-benchmark"]


def trainer(
    plan: Plan,
    *,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    model: nn.Module | None = None,
    callbacks: Iterable[TrainerCallback] = (),
    overwrite: bool = False,
    **arguments: Any,
) -> Trainer:
    """A configured `transformers.Trainer` (or `Seq2SeqTrainer`) for a plan; call `.train()` on it.

    Args:
        plan: The plan. Its `data` is read where no dataset is given.
        train_dataset: Rows with the task's columns: a Dataset, a list of dicts, a path, or rows already tokenised.
        eval_dataset: The same for evaluation; with it each epoch (or `eval_interval`) is evaluated and the best one kept.
        model: A model to take over instead of loading `plan.model`: of the task's auto class, or already prepared.
        callbacks: Further callbacks, after those that the plan and its method name.
        overwrite: Whether an output folder that holds something may be written into.
        **arguments: `TrainingArguments` fields that the plan has no say in, such as `logging_steps`.

    Raises:
        TunekitError: everything that is wrong with the plan, the rows, the model or the output folder.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="./nowhere", task="causal-lm", method=tunekit.methods.Full())
        >>> tunekit.trainer(plan, train_dataset=[{"text": "one row"}])
        Traceback (most recent call last):
        ...
        tunekit.errors.MissingError: [model-missing] model folder './nowhere': no such folder. ...
    """
    import torch

    from tunekit.metrics import metrics
    from tunekit.mixin import TunekitSeq2SeqTrainer, TunekitTrainer

    task = Task.named(plan.task)
    admit(plan, overwrite=overwrite, loads=model is None, has_rows=train_dataset is not None)
    form = _form(plan, task, model)
    material = gather(plan, train_dataset, eval_dataset)
    cpu = not torch.cuda.is_available()
    args = training_arguments(
        plan.replace(problem_type=material.problem_type),
        evaluates=material.eval is not None,
        cpu=cpu,
        overrides=sharded_arguments(plan, _kept_columns(plan, arguments), cpu=cpu),
    )
    model = _model(plan, form, material) if model is None else _taken_over(plan, form, model)
    compute, preprocess = metrics(task, material.problem_type, material.label_names)
    cls = TunekitSeq2SeqTrainer if task.name == "seq2seq" else TunekitTrainer
    made = cls(
        model=model,
        args=args,
        objective=plan.learning_objective,
        train_dataset=_whole_batches(plan, told_apart(plan, material.train, model)),
        eval_dataset=material.eval,
        processing_class=material.tokenizer,
        data_collator=collator(plan, material.tokenizer),
        compute_metrics=compute if material.eval is not None else None,
        preprocess_logits_for_metrics=preprocess if material.eval is not None else None,
        callbacks=[
            *plan.method.callbacks(),
            *_stopping(plan, args),
            *(find("callback", slug)() for slug in plan.callbacks),
            *callbacks,
        ],
    )
    check_divides(plan, made)
    if plan.sharding == "zero3" and args.device.type == "cpu" and args.process_index > 0:
        unmap(made.model)
    _one_bar(made)
    if plan.frozen_activations == "cached":
        keep_frozen_activations(made)
    return made


def _stopping(plan: Plan, args: TrainingArguments) -> list[TrainerCallback]:
    """What ends the run early, where the plan asks for it and there is something to judge by."""
    if plan.early_stopping_patience is None:
        return []
    if args.eval_strategy == "no":
        why = "there are no rows to evaluate on, or their evaluation is switched off"
        fix = "pass `eval_dataset=`, set `data.eval_share`, or `early_stopping_patience: null`"
        _LOG.warning("%s", warning("early-stopping-without-rows", "the run will not stop early", why, fix))
        return []
    return [find("callback", "early-stopping")(patience=plan.early_stopping_patience)]


def _form(plan: Plan, task: Task, model: Any) -> Task:
    """The form in which the plan's task is learnt: a live model's configuration, or the folder's, says what it can be."""
    if plan.objective is None:
        return task
    side = read_side(plan.model, plan.revision) if model is None else side_of(task_model(model).config)
    return plan.objective.learnt_as(task, side)


def _model(plan: Plan, form: Task, material: Material) -> nn.Module:
    """The plan's model, loaded and prepared."""
    with whole_weights():
        model = load_model(
            plan, form=form, num_labels=material.num_labels, label_names=material.label_names, problem_type=material.problem_type,
            pad_token_id=material.tokenizer.pad_token_id,
        )  # fmt: skip
        # Nobody else holds a model loaded here, so nobody will want it back.
        return _prepared(plan, form, model, reversible=False)


def _taken_over(plan: Plan, form: Task, model: nn.Module) -> nn.Module:
    """A live model, prepared unless it is already."""
    from tunekit.attach import prepared

    if prepared(model) is not None:
        return model
    with whole_weights():
        return _prepared(plan, form, model, reversible=True)


def _prepared(plan: Plan, form: Task, model: nn.Module, *, reversible: bool) -> nn.Module:
    model = prepare(model, plan.method, form, reversible=reversible)
    if plan.quantization is not None and plan.mixed_precision is not None:
        _learn_in_32_bits(model)
    return model


def _one_bar(trainer: Trainer) -> None:
    """One bar is enough: ours where it is there, without the host's own and what it prints instead where that is off."""
    from transformers import PrinterCallback, ProgressCallback

    from tunekit.callbacks.progress import Progress

    if any(isinstance(c, Progress) for c in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)


def _kept_columns(plan: Plan, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, by which the host keeps columns that only an objective reads."""
    own = plan.objective is not None and plan.objective.own_rows
    return {"remove_unused_columns": False, **arguments} if own else arguments


def _learn_in_32_bits(model: nn.Module) -> None:
    """What learns beside a quantised base, a head or norms of the base's own 16 bits among it, keeps its small steps."""
    import torch

    for p in model.parameters():
        if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16):
            p.data = p.data.float()


def _whole_batches(plan: Plan, rows: Any) -> Any:
    """The rows, with some that teach nothing at the end where the ranks would otherwise see rows twice."""
    from tunekit.data.fill import filled

    if plan.num_processes == 1:
        return rows
    return filled(rows, plan.num_processes * plan.per_device_train_batch_size)


def optimizer(plan: Plan, model: nn.Module) -> torch.optim.Optimizer:
    """The plan's optimizer over the method's parameter groups, for a Trainer of your own.

    Args:
        plan: Names the optimizer, the learning rate and the decay.
        model: What `tunekit.prepare` returned.

    Example:
        >>> import torch, tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> lora = tunekit.methods.Lora(r=2)
        >>> model = tunekit.prepare(BertForSequenceClassification(config), lora, "sequence-classification")
        >>> plan = tunekit.Plan(model="mine", task="sequence-classification", method=lora, learning_rate=1e-3)
        >>> type(tunekit.optimizer(plan, model)).__name__   # Trainer(..., optimizers=(tunekit.optimizer(plan, model), None))
        'AdamW'
    """
    import torch
    from transformers import Trainer

    args = training_arguments(plan, evaluates=False, cpu=not torch.cuda.is_available())
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    raise_all(
        [
            error("optim-owns-parameters", f"`optim: {plan.optim}`", "it chooses its parameters itself", "use `tunekit.trainer`, or an optimizer such as adamw_torch")
            for _ in {"params", "model", "optimizer_dict"} & set(kwargs)
        ][:1]
    )  # fmt: skip
    return cls(plan.method.parameter_groups(model, plan.learning_rate, plan.weight_decay), **kwargs)


def collator(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The collator of a plan's task, for a Trainer of your own: pads dynamically, labels with -100.

    Rows that `tunekit.data.packing.pack` joined stay apart under it, in a model that keeps no cache while it trains, as a
    Trainer sees to (`use_cache=False`); with a flash attention kernel they are laid end to end, without any padding.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="gpt2", task="causal-lm", method=tunekit.methods.Full())
        >>> collate = tunekit.collator(plan, tokenizer)                # doctest: +SKIP
    """
    collate = task_collator(Task.named(plan.task), tokenizer, flat=lies_flat(plan))
    return collate if plan.objective is None else partial(plan.objective.collate, collate=collate)


def plan_facts(plan: Plan) -> DataFacts | None:
    """What the rows that a plan names say, read as `tunekit.advise` reads them; None where it names none."""
    from tunekit.advisor.observe.dataset import observe_data
    from tunekit.advisor.observe.given import Given
    from tunekit.advisor.observe.model import model_facts

    if plan.data is None:
        return None
    facts, columns = model_facts(plan.model, plan.revision), dict(plan.data.columns)
    return observe_data(facts, plan.data.path, plan.task, columns, Given(max_length=plan.max_length)).data


def advise(
    model: Any,
    dataset: Any = None,
    task: str = "auto",
    columns: Mapping[str, str] | None = None,
    hardware: Any = "auto",
    goal: Goal = "balanced",
    methods: Sequence[str] | None = None,
    *,
    num_examples: int | None = None,
    num_labels: int | None = None,
    mean_tokens: float | None = None,
    max_length: int | None = None,
    label_names: Sequence[str] | None = None,
    teacher: str | None = None,
    adapters: Sequence[str] | None = None,
    unlabelled: int | None = None,
    own_loss: float | Literal["measure"] | None = None,
) -> Advice:
    """Which method, will it fit, how long will it take: every method compared for this question, best first.

    Nothing is downloaded unless a hub id is named, no weights are read unless `own_loss="measure"` asks for it, no GPU is touched.

    Args:
        model: Hub id, local folder (a config.json is enough), `PretrainedConfig` or `PreTrainedModel`.
        dataset: `datasets.Dataset(Dict)`, list of dicts, path to .jsonl/.csv/.parquet, or hub id.
        task: A task's name; `auto` reads it off the columns and the architecture.
        columns: Our column names to the data's, where the columns do not speak for themselves.
        hardware: `auto`, `cpu`, `"H100"`, `"4x24GB"`, `"2x8xH200"`, or a `tunekit.Hardware`.
        goal: What matters most.
        methods: Slugs to restrict the candidates to.
        num_examples: Training rows, where there is no dataset.
        num_labels: Classes, likewise.
        mean_tokens: Mean input length in tokens, likewise.
        max_length: Truncation length in tokens.
        label_names: Names of the classes.
        teacher: A larger model of the same task that is at hand.
        adapters: Adapters trained for related tasks that are at hand.
        unlabelled: Further rows without labels.
        own_loss: Nats a token that the model loses on the rows before any training, which says how close they are to what it
            has seen; `"measure"` reads the weights and a sample of the rows (seconds for a small model). A small live model on
            the CPU is measured unasked.

    Raises:
        TunekitError: everything that is wrong with the question.

    Example:
        >>> from transformers import BertConfig
        >>> import tunekit
        >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=500)
        >>> advice = tunekit.advise(config, task="sequence-classification", num_examples=1000, num_labels=2, mean_tokens=20,
        ...                         hardware="24GB", methods=["full", "lora"])
        >>> sorted(entry.plan.method.slug for entry in advice.ranked)
        ['full', 'lora']
    """
    import dataclasses

    from tunekit.advisor.ask import advise as ask

    answer = ask(
        model, dataset, task, columns, hardware, goal, methods, num_examples=num_examples, num_labels=num_labels,
        mean_tokens=mean_tokens, max_length=max_length, label_names=label_names, teacher=teacher, adapters=adapters,
        unlabelled=unlabelled, own_loss=own_loss,
    )  # fmt: skip
    return dataclasses.replace(answer, make_trainer=trainer)


def estimate_memory(plan: Plan, hardware: Any, data: Any = None, loop: Loop = "trainer") -> MemoryEstimate:
    """Peak memory of one device under a plan, from one training step traced on weightless tensors.

    Args:
        plan: The plan; its model's config.json is read, no weights.
        hardware: A `tunekit.Hardware` or its description, such as `"24GB"`.
        data: `DataFacts`, or row lengths in tokens; None: every row is `max_length` long.
        loop: `trainer`, or `peft-benchmark` for PEFT's published runs.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="./llama", task="causal-lm", method=tunekit.methods.Lora(), max_length=512)
        >>> tunekit.estimate_memory(plan, "24GB").device_bytes                # doctest: +SKIP
    """
    from tunekit.advisor.observe.hardware import hardware as read_hardware
    from tunekit.advisor.simulate import estimate_memory as simulate

    return simulate(plan, read_hardware(hardware), _facts(plan, data), loop)


def estimate_time(plan: Plan, hardware: Any, data: Any = None) -> TimeEstimate:
    """Duration of a plan's run, from the same trace priced on the device's roofline. Arguments as `estimate_memory`.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="./llama", task="causal-lm", method=tunekit.methods.Lora(), max_length=512)
        >>> tunekit.estimate_time(plan, "H100").total_seconds                 # doctest: +SKIP
    """
    from tunekit.advisor.observe.hardware import hardware as read_hardware
    from tunekit.advisor.simulate import estimate_time as simulate

    return simulate(plan, read_hardware(hardware), _facts(plan, data))


def _facts(plan: Plan, data: Any) -> DataFacts | None:
    """DataFacts as they are, or from row lengths in tokens."""
    from tunekit.workload import DataFacts

    if data is None or isinstance(data, DataFacts):
        return data
    lengths = tuple(sorted(int(n) for n in data))
    return DataFacts(num_examples=len(lengths), lengths=lengths)
