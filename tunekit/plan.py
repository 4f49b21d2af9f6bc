"""Plan and DataSpec: complete, executable from disk, no live object; YAML and JSON both ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunekit.contracts import Method, Objective
from tunekit.discovery import find
from tunekit.errors import InvalidError, TunekitError, raise_all
from tunekit.fields import (
    check_types,
    from_plain,
    hints,
    missing_keys,
    read_numbers,
    to_plain,
    type_faults,
    unknown_keys,
)
from tunekit.finding import Finding, error
from tunekit.plan_combinations import combination_faults
from tunekit.plan_faults import range_faults
from tunekit.plan_file import read_file, to_yaml, write_file
from tunekit.task import ProblemType

SCHEMA = 1
"""Raised when a plan file of an older version could be misread; older ones stay readable."""

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["nf4", "fp4", "int8"]
Sharding = Literal["ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-hybrid"]

HOST_NAMES: Mapping[str, str] = {
    "bf16": "`mixed_precision: bf16`",
    "fp16": "`mixed_precision: fp16`",
    "load_in_4bit": "`quantization: nf4`",
    "load_in_8bit": "`quantization: int8`",
    "bnb_4bit_quant_type": "`quantization: nf4` or `fp4`",
    "quantization_config": "`quantization: nf4`, `fp4` or `int8`",
    "warmup_ratio": "`warmup:` with a share below 1",
    "warmup_steps": "`warmup:` with a number of steps",
    "gradient_checkpointing": "`activation_checkpointing:`",
    "model_name_or_path": "`model:`",
    "base_model": "`model:`",
    "torch_dtype": "`dtype:`",
    "batch_size": "`per_device_train_batch_size:`",
    "per_gpu_train_batch_size": "`per_device_train_batch_size:`",
    "train_batch_size": "`per_device_train_batch_size:`",
    "eval_batch_size": "`per_device_eval_batch_size:`",
    "epochs": "`num_train_epochs:`",
    "lr": "`learning_rate:`",
    "max_seq_length": "`max_length:`",
    "max_seq_len": "`max_length:`",
    "cutoff_len": "`max_length:`",
    "deepspeed": "`sharding: zero1`, `zero2` or `zero3`",
    "fsdp": "`sharding: fsdp` or `fsdp-hybrid`",
    "use_liger_kernel": "`loss_kernel: liger`",
    "peft_config": "`method: {kind: lora, ...}` or `{kind: peft, ...}`",
    "lora_r": "`method: {kind: lora, r: ...}`",
    "lora_alpha": "`method: {kind: lora, lora_alpha: ...}`",
    "r": "`method: {kind: lora, r: ...}`",
    "dataset": "`data: {path: ...}`",
    "dataset_name": "`data: {path: ...}`",
    "train_file": "`data: {path: ...}`",
    "attn_impl": "`attn_implementation:`",
    "gradient_clipping": "`max_grad_norm:`",
    "lr_scheduler": "`lr_scheduler_type:`",
    "optimizer": "`optim:`",
}
"""Names that users of the host libraries type by habit, and what a plan calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """Where the rows are and what their columns mean.

    Raises:
        InvalidError: `data-type`, `data-eval-share`.

    Example:
        >>> DataSpec(path="rows.csv", columns={"text": "utterance", "label": "intent"}, eval_share=0.1).train_split
        'train'
    """

    path: str
    """A .jsonl, .json, .csv, .tsv or .parquet file, a folder with `train.*` and `validation.*`, or a hub id."""
    name: str | None = None
    """The hub dataset's configuration name."""
    revision: str | None = None
    """The hub dataset's revision."""
    train_split: str = "train"
    eval_split: str | None = None
    """None: `validation`, `valid`, `dev`, `eval` or `test`, the first that exists."""
    eval_path: str | None = None
    """A file of its own for evaluation."""
    eval_share: float = 0.0
    """Share of the training rows held out (with the plan's seed) where there is no split for evaluation."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Our column name to the data's, where the columns do not speak for themselves."""
    label_names: tuple[str, ...] = ()
    """Names of the classes in the order of their ids."""
    template: str | None = None
    """For causal-lm: a `str.format` pattern over the columns that makes the prompt, such as `"{instruction}\\n{input}\\n"`."""
    fingerprint: str | None = None
    """Digest of the rows the plan was advised on; a run on other rows says so."""

    def __post_init__(self) -> None:
        faults = check_types(self, "data")
        if not faults and not 0 <= self.eval_share < 1:
            seen, why = f"`eval_share` is {self.eval_share}", "a share is at least 0 and below 1"
            faults.append(error("data-eval-share", seen, why, "set `eval_share: 0.1`"))
        raise_all(faults)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One complete way to fine-tune: model, data, method and every knob, by stable names of its own.

    Nothing in it is alive: what `save` writes is all that `tunekit train` needs. Change a knob with `replace`.

    Raises:
        InvalidError: every faulty field at once, on construction.

    Example:
        >>> from tunekit.methods.lora import Lora
        >>> plan = Plan(model="gpt2", task="causal-lm", method=Lora(r=4))
        >>> plan.replace(learning_rate=1e-4).learning_rate
        0.0001
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    model: str
    """Hub id or local folder."""
    task: str
    """A task's name."""
    method: Method
    """The method's own configuration."""
    revision: str | None = None
    """The hub revision of the model."""
    problem_type: ProblemType | None = None
    """For sequence-classification; None: read from the labels."""
    data: DataSpec | None = None
    """None: the datasets are handed to `tunekit.trainer`."""
    output_dir: str = "runs/tunekit"
    objective: Objective | None = None
    """None: supervised."""
    max_length: int | None = None
    """Truncation in tokens; None: the longest row, at most what the model's positions allow."""
    packing: bool = False
    """Join rows to sequences of `max_length` tokens, where each stays apart from the others; causal-lm only.
    `per_device_train_batch_size` then counts sequences. Rows to evaluate on stay as they are."""
    dtype: Dtype = "float32"
    """Dtype of the frozen base weights; with `mixed_precision` null also of the computation."""
    mixed_precision: Literal["bf16", "fp16"] | None = None
    quantization: Quantization | None = None
    """bitsandbytes quantisation of the frozen base."""
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    activation_checkpointing: bool = False
    attn_implementation: str | None = None
    """transformers' attention kernel; None: its default."""
    optim: str = "adamw_torch_fused"
    """A transformers `OptimizerNames` value. The fused form updates as `adamw_torch` does, to rounding, in one pass: on the CPU
    ten times as fast, on a GPU without its temporary copies."""
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "linear"
    """A transformers `SchedulerType` value."""
    warmup: float = 0.06
    """Below 1: a share of all steps; from 1: steps."""
    num_train_epochs: float = 3.0
    max_steps: int | None = None
    """Optimizer steps; overrides `num_train_epochs`."""
    seed: int = 42
    loss_kernel: Literal["plain", "chunked", "liger"] = "plain"
    """How the loss over the vocabulary is computed: `chunked` leaves out positions that teach nothing and never holds all
    logits (`tunekit.objectives.Supervised`); `liger` are Liger's kernels, on a GPU."""
    num_processes: int = 1
    """Processes over all machines, one a device."""
    num_machines: int = 1
    sharding: Sharding | None = None
    """None for one process; `ddp` and above need several."""
    offload: Literal["optimizer", "parameters"] | None = None
    offload_to: str = "cpu"
    """`cpu`, or a folder on a fast disk."""
    callbacks: tuple[str, ...] = ()
    """Slugs of tunekit callbacks."""
    eval_interval: float | None = None
    """How often the rows held out are asked and a checkpoint is kept. None: once an epoch; below 1: after this share of all
    steps; from 1: after so many steps."""
    early_stopping_patience: int | None = None
    """Evaluations without a better score after which the run ends; None: it never ends early. The best checkpoint remains
    either way. Without rows to evaluate on it does nothing, and the run says so."""
    frozen_activations: Literal["recomputed", "cached"] = "recomputed"
    """What the layers below the first one that learns say of a row: asked at every step, or once before training and
    kept, in memory or in a file in `output_dir` by their size. Kept ones are without dropout, which a frozen layer otherwise
    draws anew at each step. For methods that leave the lowest layers alone, such as `partial`."""

    def __post_init__(self) -> None:
        faults = check_types(self, "plan")
        values = {name: getattr(self, name) for name in hints(Plan)}
        ill = type_faults(Plan, values, "plan") if faults else {}
        faults += range_faults({name: v for name, v in values.items() if name not in ill})
        raise_all(faults or combination_faults(self))

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step over accumulation and processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes

    @property
    def learning_objective(self) -> Objective | None:
        """What is minimised, by the loss kernel of the plan; None for the model's own loss as it stands."""
        if self.loss_kernel != "chunked":
            return self.objective
        supervised: Any = find("objective", "supervised")
        return supervised(loss_kernel="chunked")

    def replace(self, **changes: Any) -> Plan:
        """A copy with other values; a name that is no field is an error naming the nearest."""
        raise_all(unknown_keys(Plan, list(changes), "plan", HOST_NAMES))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """`kind`, `schema` and every field as plain values."""
        values = {name: to_plain(getattr(self, name)) for name in hints(Plan)}
        return {"kind": "tunekit-plan", "schema": SCHEMA, **values}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote.

        Raises:
            InvalidError: every fault at once: unknown fields with the nearest name, a host's own field names with
                ours, values of the wrong type or out of range.
        """
        if not isinstance(data, Mapping):
            seen = f"a plan that is a `{type(data).__name__}`"
            raise InvalidError(
                error("plan-shape", seen, "a plan is a mapping of fields", "write `model: ...` and so on")
            )
        values = dict(data)
        kind, schema = values.pop("kind", "tunekit-plan"), values.pop("schema", SCHEMA)
        if kind != "tunekit-plan":
            fix = "a plan file begins with `kind: tunekit-plan`"
            raise InvalidError(error("plan-kind", f"kind {kind!r}", "not a plan", fix))
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            why = f"this tunekit reads schemas 1 to {SCHEMA}"
            raise InvalidError(error("plan-schema", f"schema {schema!r}", why, "upgrade tunekit-hf"))
        return _build(values)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the plan as YAML or, by a `.json` name, as JSON.

        Raises:
            OccupiedError: `plan-file-exists`, unless `overwrite` is set or the file already holds this plan.
            UnreadableError: `plan-file-unwritable`.
        """
        path = Path(path)
        write_file(path, self.to_json() if path.suffix.lower() == ".json" else self.to_yaml(), overwrite)
        return path

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a plan file, YAML or JSON; nothing in it is executed.

        Raises:
            MissingError: `plan-file-missing`.
            UnreadableError: `plan-file-unreadable`.
            InvalidError: `plan-field-twice`, and what `from_dict` says.
        """
        return Plan.from_dict(read_file(Path(path)))

    def to_yaml(self) -> str:
        """The plan as YAML, every field in the order of the class."""
        return to_yaml(self.to_dict())

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def _build(values: dict[str, Any]) -> Plan:
    """A plan from plain values, or one error with every fault in them, those of its parts included."""
    faults: list[Finding] = []
    broken: list[str] = []
    for name, build in (("method", _method), ("objective", _objective), ("data", _data)):
        if values.get(name) is not None:
            try:
                values[name] = build(values[name])
            except TunekitError as e:
                faults += e.findings
                broken.append(name)
    if not broken:
        return from_plain(Plan, values, "plan", HOST_NAMES)
    # Without its parts no plan can be made, so what is wrong beside them is looked for without making one.
    rest = read_numbers(Plan, {k: v for k, v in values.items() if k not in broken})
    ill = type_faults(Plan, rest, "plan")
    raise InvalidError(
        *unknown_keys(Plan, [str(k) for k in values], "plan", HOST_NAMES),
        *missing_keys(Plan, values, "plan"),
        *ill.values(),
        *range_faults({k: v for k, v in rest.items() if k not in ill}),
        *faults,
    )


def _of_kind(value: Any, what: str, base: type) -> Any:
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        fix = f"write `{what}: {{kind: ...}}`"
        raise InvalidError(error(f"plan-{what}-kind", f"`{what}` is {value!r}", "it needs a `kind`", fix))
    return find(what, value["kind"]).from_dict(value)


def _method(value: Any) -> Method:
    return _of_kind(value, "method", Method)


def _objective(value: Any) -> Objective:
    return _of_kind(value, "objective", Objective)


def _data(value: Any) -> DataSpec:
    if isinstance(value, str):
        return DataSpec(path=value)
    if isinstance(value, DataSpec):
        return value
    if not isinstance(value, Mapping):
        why = "it must be a path or a mapping"
        raise InvalidError(error("plan-data", f"`data` is {value!r}", why, "write `data: {path: ...}`"))
    return from_plain(DataSpec, value, "data")
