"""Putting a method on a model, taking it off again, and attaching what was saved before."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import adapterhub, adapterhub_fusion, delta_format, peft_format
from tunekit.adapters import add_adapter
from tunekit.contracts import Method
from tunekit.discovery import everything, find
from tunekit.errors import InvalidError, MissingError, UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.snapshot import Prepared, Snapshot, prepared, record
from tunekit.structure import facts_of, head_modules, quantization_of, tasks_of, unwrapped
from tunekit.task import FORMS, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Prepared", "load", "merge", "prepare", "prepared", "unload"]


def prepare(model: nn.Module, method: Method, task: Task | str, *, reversible: bool = True) -> nn.Module:
    """Puts a method on a model, so that a plain `transformers.Trainer` trains, saves and resumes it.

    Args:
        model: A transformers model of the task's auto class. It is taken over: use what is returned. When this raises,
            the model is what it was.
        method: The method.
        task: The task or its name.
        reversible: Whether to copy (to the host's memory) the weights that training will overwrite, so that
            `tunekit.unload` can put them back. Adapters overwrite next to nothing; full fine-tuning everything.

    Returns:
        The model to train: a `PeftModel` for the methods that PEFT carries, otherwise the same model. Its
        `save_pretrained` writes only what was learnt, in a folder that `tunekit.load` attaches again.

    Raises:
        UnsupportedError: `model-already-prepared`, `model-task`, what the method itself refuses.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> model = tunekit.prepare(BertForSequenceClassification(config), tunekit.methods.Lora(r=2), "sequence-classification")
        >>> type(tunekit.unload(model)).__name__
        'BertForSequenceClassification'
    """
    task = Task.named(task) if isinstance(task, str) else task
    raise_all(_faults(model, task), UnsupportedError)
    if refusal := method.supports(facts_of(model), task, quantization=quantization_of(model)):
        raise UnsupportedError(refusal)
    changed = method.base_values_changed(model, task)
    snapshot = Snapshot.take(model, copy=changed if reversible else ())
    try:
        result = method.apply(model, task)
        return _attached(result, Prepared(method=method, task=task, snapshot=snapshot, kept=reversible or not changed))
    except BaseException:
        snapshot.restore()
        raise


_BOUND = ("_tunekit", "save_pretrained", "load_state_dict", "_keys_to_ignore_on_save")
"""Instance attributes that a prepared model has and a plain one has not."""


def _attached(model: nn.Module, what: Prepared) -> nn.Module:
    """Notes what was done, and gives a model that is not PEFT's what a plain Trainer needs to save and resume it."""
    record(model, what)
    if model is not what.snapshot.model or what.method is None:
        return model
    if what.method.own_format:
        vars(model)["save_pretrained"] = types.MethodType(_save_pretrained, model)
        # The Trainer's `_issue_warnings_after_load` names every tensor that a checkpoint lacks, unless it expected so.
        learnt = what.method.trainable_names(model)
        vars(model)["_keys_to_ignore_on_save"] = sorted(k for k in model.state_dict() if k not in learnt)
    else:
        vars(model)["load_state_dict"] = types.MethodType(_load_state_dict, model)
    return model


def _load_state_dict(
    self: nn.Module, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
) -> Any:
    """`load_state_dict` that also takes the names a whole model is saved under where those are not its own.

    transformers 5 holds the experts of Mixtral and others fused and saves them one by one, and its Trainer resumes by
    plain `load_state_dict`: experts and routers would silently start anew. Delete when the Trainer converts (5.23 does
    not).
    """
    if {*state_dict} - {*self.state_dict()}:
        kind: Any = type(self)
        whole, said = kind.from_pretrained(
            None, config=self.config, state_dict=dict(state_dict), output_loading_info=True
        )
        state_dict = {k: v for k, v in whole.state_dict().items() if k not in said["missing_keys"]}
    return type(self).load_state_dict(self, state_dict, strict, assign)


def _save_pretrained(
    self: nn.Module,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """Stands in for transformers' `save_pretrained` while a method is on the model: writes what was learnt.

    The arguments about shards and formats have nothing to act on here and are not looked at.
    """
    if push_to_hub:
        raise InvalidError(
            error(
                "push-to-hub",
                "`push_to_hub=True`",
                "what is saved here is a part of a model",
                "save to a folder and upload that",
            )
        )
    if is_main_process:
        what = prepared(self)
        assert what is not None
        assert what.method is not None
        what.method.save(self, Path(save_directory), state_dict)


def unload(model: nn.Module) -> nn.Module:
    """Takes the method off and gives the base back, bit for bit what it was before `prepare` or `load`.

    Args:
        model: What `tunekit.prepare` or `tunekit.load` returned, trained or not. It is of no use afterwards.

    Raises:
        UnsupportedError: `model-not-prepared`, `unload-not-kept`.

    Example:
        >>> import tunekit
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
        >>> tunekit.unload(tunekit.prepare(model, tunekit.methods.Lora(r=2), "causal-lm")) is model
        True
    """
    what = _prepared_or_refuse(model)
    if not what.kept:
        raise UnsupportedError(
            error(
                "unload-not-kept", f"unload of `{what.method.slug if what.method else 'peft'}`",
                "the weights that it overwrote were not copied (`reversible=False`)", "load the base model from its folder again",
            )
        )  # fmt: skip
    vars(unwrapped(model)).pop("_tunekit", None)
    return what.snapshot.restore()


def merge(model: nn.Module) -> nn.Module:
    """Folds what was learnt into the base and returns the plain model, with the trained head, all of it trainable.

    Raises:
        UnsupportedError: `model-not-prepared`, `method-no-merge`, `merge-quantized`.
    """
    what = _prepared_or_refuse(model)
    if what.method is None or not what.method.merges:
        raise UnsupportedError(
            error("method-no-merge", "merge", "what was learnt is no change of the base's weights", "keep it attached")
        )
    if quantization_of(what.snapshot.model):
        raise UnsupportedError(
            error(
                "merge-quantized", "merge into a quantised base", "the sum would be rounded to a few bits once more",
                "load the base in 16 bits, attach the adapter with `tunekit.load`, and merge there",
            )
        )  # fmt: skip
    result = what.method.merge(unwrapped(model))
    for name in _BOUND:
        vars(result).pop(name, None)
    wanted = {id(p): wants for p, wants in what.snapshot.wants_gradient}
    for p in result.parameters():
        p.requires_grad_(wanted.get(id(p), True) and p.is_floating_point())
    return result


def load(base_model: nn.Module, *folders: str | Path, task: Task | str | None = None) -> nn.Module:
    """Attaches to a fresh base what tunekit, PEFT or AdapterHub's `adapters` saved: ready for use, and to train on.

    Args:
        base_model: The model that it was trained on, with as many labels. Untouched when this raises.
        *folders: One folder; or several of PEFT's or of bottleneck adapters, of which the first is active (as `default`)
            and the others are known by their folders' names; see `tunekit.set_adapter`.
        task: For folders that do not say; None: by the class of the model.

    Raises:
        MissingError: `adapter-missing`.
        UnreadableError: `adapter-corrupted`, `adapter-pickled`, `adapter-schema`.
        UnsupportedError: `adapter-wrong-base`, `model-already-prepared`, `adapters-several`.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> tunekit.load(BertForSequenceClassification(config), "./nowhere")
        Traceback (most recent call last):
        ...
        tunekit.errors.MissingError: [adapter-missing] folder 'nowhere': no such folder. ...
    """
    paths = [Path(f) for f in folders]
    kinds = {_kind(p) for p in paths}
    if len(paths) != 1 and not (kinds == {"peft"} or (kinds and kinds <= {"tunekit", "adapterhub"})):
        raise UnsupportedError(
            error(
                "adapters-several",
                f"{len(paths)} folders",
                "only PEFT's adapters, or bottleneck adapters, can be attached together",
                "load one folder",
            )
        )
    kind = _kind(paths[0])
    task = Task.named(task) if isinstance(task, str) else task or _saved_task(base_model, paths[0], kind)
    raise_all(_faults(base_model, task), UnsupportedError)
    if kind == "peft":
        return _load_peft(base_model, paths, task)
    model = _load_own(base_model, paths[0], task, kind)
    try:
        for path in paths[1:]:
            add_adapter(model, path.resolve().name, path)
    except BaseException:
        unload(model)
        raise
    return model


def _load_peft(base: nn.Module, paths: list[Path], task: Task) -> nn.Module:
    names = [p.resolve().name for p in paths[1:]]
    if len({"default", *names}) != len(paths):
        raise InvalidError(
            error(
                "adapters-same-name",
                ", ".join(map(str, paths)),
                "each folder's name is its adapter's",
                "rename one of them",
            )
        )
    config = peft_format.read_config(paths[0])
    known = (cls.from_peft(config) for cls in everything("method").values())
    method = next((m for m in known if m is not None), None)
    snapshot = Snapshot.take(base, copy=peft_format.changed_weights(base, config, paths[0]))
    try:
        # A method that saves by itself reads PEFT's folder by itself too, or leaves it to PEFT.
        alone = len(paths) == 1 and method is not None and method.own_format
        model = method.load(base, paths[0], task) if method and alone else peft_format.load(base, paths[0])
        for path, name in zip(paths[1:], names, strict=True):
            peft_format.add(model, path, name)
        return _attached(model, Prepared(method=method, task=task, snapshot=snapshot))
    except BaseException:
        snapshot.restore()
        raise


def _load_own(base: nn.Module, path: Path, task: Task, kind: str) -> nn.Module:
    if kind == "model":
        method = find("method", "full")()
    elif kind == "adapterhub":
        method = find("method", "bottleneck-adapter").of_config(adapterhub.read_config(path).config)
    elif kind == "adapterhub-fusion":
        method = find("method", "adapter-fusion").of_setup(path)
    else:
        delta_format.check_base(path, base)
        saved = delta_format.read_config(path)["method"]
        method = find("method", str(saved.get("kind"))).from_dict(saved)
    snapshot = Snapshot.take(base, copy=method.base_values_changed(base, task))
    try:
        return _attached(method.load(base, path, task), Prepared(method=method, task=task, snapshot=snapshot))
    except BaseException:
        snapshot.restore()
        raise


def _kind(folder: Path) -> str:
    """`tunekit`, `adapterhub`, `adapterhub-fusion`, `peft` or `model` by the files that a folder holds; ours may hold PEFT's beside it.

    Raises:
        MissingError: `adapter-missing`.
    """
    if (folder / delta_format.CONFIG).is_file():
        return "tunekit"
    if adapterhub_fusion.holds(folder):
        return "adapterhub-fusion"
    if adapterhub.holds(folder):
        return "adapterhub"
    if (folder / peft_format.CONFIG).is_file():
        return "peft"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "model"
    seen = (
        "no such folder" if not folder.is_dir() else f"it holds neither {peft_format.CONFIG} nor {delta_format.CONFIG}"
    )
    raise MissingError(
        error(
            "adapter-missing",
            f"folder {str(folder)!r}",
            seen,
            "name the folder that training saved, or one of its checkpoints",
        )
    )


def _saved_task(base: nn.Module, folder: Path, kind: str) -> Task:
    """The task that a folder names, or else the first that the class of the model is built for."""
    if kind == "tunekit":
        named: Any = delta_format.read_config(folder).get("task")
        found = next((t for t in FORMS if t.name == named), None)
    else:
        named = peft_format.read_config(folder).task_type if kind == "peft" else None
        found = next((t for t in FORMS if named is not None and t.peft_task_type == named), None)
    fitting = tasks_of(base)
    if found is None or (fitting and found not in fitting):
        found = next(iter(fitting), found)
    if found is None:
        raise InvalidError(
            error(
                "task-unknown",
                f"folder {folder} with a {type(base).__name__}",
                "neither names a task",
                "pass `task=...`",
            )
        )
    return found


def _prepared_or_refuse(model: nn.Module) -> Prepared:
    what = prepared(model)
    if what is None:
        raise UnsupportedError(
            error(
                "model-not-prepared",
                f"a {type(model).__name__}",
                "no method is on it",
                "pass what `tunekit.prepare` or `tunekit.load` returned",
            )
        )
    return what


def _faults(model: nn.Module, task: Task) -> list[Finding]:
    """Why this model cannot be taken over for this task, as far as its class and modules tell."""
    kind = type(model).__name__
    if unwrapped(model) is not model:
        why, fix = "a method goes into a model before it is wrapped", "prepare the model inside, then wrap it"
        return [error("model-wrapped", f"a {type(unwrapped(model)).__name__} in a {kind}", why, fix)]
    if prepared(model) is not None or _has_adapter_layers(model):
        return [
            error(
                "model-already-prepared", f"a {kind} that a method is on already", "two methods at once would overwrite each other",
                "`tunekit.unload` it first (or PEFT's own `unload`), or load the base again",
            )
        ]  # fmt: skip
    fits = tasks_of(model)
    if (fits and task not in fits) or (not fits and task.has_head and not head_modules(model, task)) or _is_bare(model):
        return [
            error(
                "model-task", f"task {task} with a {kind}",
                f"it is built for {', '.join(t.name for t in fits)}" if fits else "it has no head for it",
                f"build the model with `{task.auto_class}.from_pretrained`",
            )
        ]  # fmt: skip
    return []


def _has_adapter_layers(model: nn.Module) -> bool:
    """PEFT's wrappers and layers, by name so that PEFT need not be imported to see that there is none."""
    marks = {"BaseTunerLayer", "PeftModel", "PeftMixedModel", "AuxiliaryTrainingWrapper"}
    return any(marks & {c.__name__ for c in type(m).__mro__} for m in model.modules())


def _is_bare(model: nn.Module) -> bool:
    """Whether this is a base without a head for any task, as `AutoModel` builds."""
    from transformers import AutoModel

    names = {
        n
        for v in AutoModel._model_mapping._model_mapping.values()
        for n in (v if isinstance(v, tuple | list) else (v,))
    }
    return type(model).__name__ in names and not tasks_of(model)
