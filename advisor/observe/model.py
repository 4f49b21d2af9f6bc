"""A model read into facts: from a hub id, a folder with a config.json, a configuration or a live model; no weights."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.advisor.checkpoints import configuration, follows_instructions
from tunekit.errors import InvalidError, MissingError, UnreadableError, UnsupportedError
from tunekit.finding import error
from tunekit.task import TASKS, Task
from tunekit.workload import ModelFacts, Side

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?$")
_MAPPINGS = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "sequence-classification": "SEQUENCE_CLASSIFICATION",
    "token-classification": "TOKEN_CLASSIFICATION",
    "question-answering": "QUESTION_ANSWERING",
    "multiple-choice": "MULTIPLE_CHOICE",
}
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


def model_facts(
    model: str | Path | PretrainedConfig | PreTrainedModel, revision: str | None = None, trust_remote_code: bool = False
) -> ModelFacts:
    """What is known of a model from its configuration alone.

    Args:
        model: A hub id, a folder (a config.json is enough), a transformers configuration or a live model.
        revision: The hub revision.
        trust_remote_code: Whether a configuration that brings its own code may run it.

    Raises:
        MissingError: `model-missing` for a folder that is not there, `model-unreachable` for a hub id that cannot
            be read from here.
        UnreadableError: `model-unreadable` for a broken or unknown configuration.
        UnsupportedError: `model-no-task` for an architecture that learns none of the tasks.
        InvalidError: `model-kind` for something that is none of these.

    Example:
        >>> from transformers import GPT2Config
        >>> facts = model_facts(GPT2Config())
        >>> facts.side, facts.num_parameters, facts.context_length
        ('decoder', 124439808, 1024)
    """
    name, config, weights, chat = _locate(model, revision, trust_remote_code)
    _refuse_absurd(config)
    facts = _facts_of(canonical(config))
    return ModelFacts(
        name=name, revision=revision, has_weights=weights, is_instruct=chat, dtype=_dtype(config), **facts
    )  # fmt: skip


_MOST = {
    "num_hidden_layers": 10_000, "num_layers": 10_000, "n_layer": 10_000, "n_layers": 10_000, "encoder_layers": 10_000,
    "decoder_layers": 10_000, "hidden_size": 10_000_000, "d_model": 10_000_000, "intermediate_size": 100_000_000,
    "vocab_size": 1_000_000_000, "num_attention_heads": 1_000_000, "num_local_experts": 1_000_000, "num_experts": 1_000_000,
}  # fmt: skip
"""A hundred times what any model has; a module is made for each layer, even without weights."""


_MAY_BE_NONE = ("encoder_layers", "decoder_layers", "num_local_experts", "num_experts")


def _refuse_absurd(config: PretrainedConfig) -> None:
    """Refuses a configuration whose sizes no model has, before anything is built from it.

    Raises:
        UnreadableError: `model-unreadable`.
    """
    text = config.get_text_config()
    named = [(k, getattr(text, k, None)) for k in _MOST]
    whole = [(k, v) for k, v in named if isinstance(v, int) and not isinstance(v, bool)]
    wrong = [f"`{k}: {v:,}`" for k, v in whole if v > _MOST[k] or v < (0 if k in _MAY_BE_NONE else 1)]
    if wrong:
        why = "no model has such a size"
        raise UnreadableError(
            error("model-unreadable", f"a configuration with {wrong[0]}", why, "use the model's own config.json")
        )


def canonical(config: PretrainedConfig) -> str:
    """A configuration as JSON that is the same in every process: sorted keys, no paths, no library version."""
    values = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "transformers_version", "_commit_hash"):
        values.pop(key, None)
    return json.dumps(values, sort_keys=True)


# ---------------------------------------------------------------------------------------------- where it lies
def _locate(model: Any, revision: str | None, trust: bool) -> tuple[str, PretrainedConfig, bool, bool]:
    """(name, configuration, whether weights are at hand, whether it has a chat template)."""
    import os

    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        folder = Path(text).expanduser()
        if folder.is_file() and folder.name == "config.json":
            folder = folder.parent
        if folder.is_dir():
            has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES)
            return text, _read_folder(folder, trust), has_weights, _chat_in_folder(folder)
        if folder.exists() or not _HUB_ID.match(text) or text.count("/") > 1:
            raise MissingError(_missing(text))
        return text, _read_hub(text, revision, trust), True, _chat_in_cache(text, revision)
    from transformers import PretrainedConfig, PreTrainedModel

    if isinstance(model, PretrainedConfig):
        return model.name_or_path or type(model).__name__, model, False, False
    if isinstance(model, PreTrainedModel):
        name = model.name_or_path or type(model).__name__
        folder = Path(name)
        return name, model.config, True, folder.is_dir() and _chat_in_folder(folder)
    raise InvalidError(
        error(
            "model-kind", f"a model of type `{type(model).__name__}`", "it must be a hub id, a folder, a transformers configuration or model",
            "pass `model.config`, or the PreTrainedModel inside a wrapper (`peft_model.unload()`)",
        )
    )  # fmt: skip


def _missing(text: str) -> Any:
    return error(
        "model-missing", f"model folder {text!r}", "no such folder", "check the path, or give a hub id such as `owner/name`"
    )  # fmt: skip


def _read_folder(folder: Path, trust: bool) -> PretrainedConfig:
    """The configuration in a folder; its own code only runs when it is trusted."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file() or (folder / "tunekit.json").is_file()
        why = "it holds an adapter, not a model" if adapter else "it has no config.json"
        raise UnreadableError(
            error("model-unreadable", f"model folder {str(folder)!r}", why, "name the folder of the base model")
        )
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UnreadableError(
            error("model-unreadable", f"{path}", f"it is not JSON ({_short(e)})", "save the configuration again")
        ) from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise UnreadableError(
            error(
                "model-unreadable", f"{path}", "it names no `model_type`", "use the config.json of a transformers model"
            )
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    except Exception as e:
        raise _explain(str(folder), e) from None


def _read_hub(name: str, revision: str | None, trust: bool) -> PretrainedConfig:
    """The configuration of a hub id: from the cache when it is there, otherwise by one small download."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust, local_files_only=True)
    except OSError:
        pass
    except Exception as e:
        raise _explain(name, e) from None
    if (reason := _unreachable()) is not None:
        if revision is None and (known := configuration(name)) is not None:
            return known
        raise MissingError(
            error(
                "model-unreachable", f"model {name!r}", f"no folder of that name here, not in the local cache, and the hub cannot be reached ({reason})",
                "download it first, or pass a folder that holds its config.json, or the configuration itself",
            )
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
    except Exception as e:
        # A gated model says no to whoever has not accepted its terms; what it is like is no secret.
        if isinstance(e, OSError) and revision is None and (known := configuration(name)) is not None:
            return known
        raise _explain(name, e) from None


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder here."""
    return Path(name).expanduser().is_dir()


def hub_reachable() -> bool:
    """Whether the hub answers; asked once."""
    return _unreachable() is None


@lru_cache(maxsize=1)
def _unreachable() -> str | None:
    """Why the hub cannot be reached, asked once and briefly: the client itself retries for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as e:
        return _short(e)
    return None


def _explain(name: str, e: Exception) -> MissingError | UnreadableError | UnsupportedError:
    """What AutoConfig could not do, in one message."""
    text = str(e)
    if "trust_remote_code" in text:
        return UnsupportedError(
            error(
                "model-remote-code", f"model {name!r}", "it brings Python code of its own, which is not run unasked",
                "read that code, then pass the configuration: `AutoConfig.from_pretrained(..., trust_remote_code=True)`",
            )
        )  # fmt: skip
    if isinstance(e, OSError):
        return MissingError(
            error(
                "model-unreachable",
                f"model {name!r}",
                _short(e),
                "check the id, your access to it and the network, or give a local folder",
            )
        )
    return UnreadableError(
        error(
            "model-unreadable",
            f"model {name!r}",
            _short(e),
            "check that this transformers version knows the architecture",
        )
    )


def _chat_in_folder(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return path.is_file() and "chat_template" in json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def _chat_in_cache(name: str, revision: str | None) -> bool:
    """Whether the files of a hub id that are already here hold a chat template; nothing is fetched for it."""
    from huggingface_hub import try_to_load_from_cache

    found = (
        try_to_load_from_cache(name, file, revision=revision)
        for file in ("chat_template.jinja", "tokenizer_config.json")
    )
    return any(isinstance(path, str) and _chat_in_folder(Path(path).parent) for path in found) or follows_instructions(
        name
    )


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__


# ---------------------------------------------------------------------------------------------- what it is
@lru_cache(maxsize=32)
def _cached_facts(config_json: str) -> tuple[tuple[str, Any], ...]:
    from tunekit.advisor.weightless import build
    from tunekit.attention import has_interface

    config = rebuilt(config_json)
    side, tasks = _side(config), _tasks(config)
    if not tasks:
        raise UnsupportedError(
            error(
                "model-no-task", f"a model of type `{config.model_type}`", "transformers has no auto class of it for any of the tasks",
                f"use a text model; the tasks are {', '.join(t.name for t in TASKS)}",
            )
        )  # fmt: skip
    text = config.get_text_config()
    skeleton = _skeleton(config, side)
    experts = (
        getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    )
    facts = {
        "config_json": config_json,
        "model_type": config.model_type,
        "side": side,
        "num_parameters": sum(p.numel() for p in skeleton.parameters()),
        "num_layers": _num_layers(text, side),
        "hidden_size": int(getattr(text, "hidden_size", 0) or 0),
        "vocab_size": int(getattr(text, "vocab_size", 0) or 0),
        "context_length": _context_length(text, skeleton),
        "num_experts": max((e for e in experts if isinstance(e, int) and e > 1), default=0),
        "has_bias": any(name.endswith(".bias") for name, _ in skeleton.named_parameters()),
        "can_checkpoint": bool(getattr(type(skeleton), "supports_gradient_checkpointing", False)),
        "attention_interface": has_interface(build(config, None, num_layers=1)),
        "tasks": tasks,
        "head_names": tuple(
            (name, _head_names(config, Task.named(name))) for name in tasks if Task.named(name).has_head
        ),
    }
    return tuple(facts.items())


def _facts_of(config_json: str) -> dict[str, Any]:
    """The facts that follow from the configuration alone."""
    return dict(_cached_facts(config_json))


def rebuilt(config_json: str) -> PretrainedConfig:
    """The configuration back from its canonical JSON.

    Raises:
        UnreadableError: `model-unreadable`, where this transformers version does not know the architecture.
    """
    from transformers import AutoConfig

    values = json.loads(config_json)
    model_type = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as e:
        raise _explain(str(model_type), e) from None


def _names(mapping: str) -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")


def _side(config: PretrainedConfig) -> Side:
    """Encoders fill masks; what only writes left to right is a decoder."""
    if config.is_encoder_decoder:
        return "seq2seq"
    masked = config.model_type in _names("MASKED_LM") and not getattr(config, "is_decoder", False)
    return "decoder" if config.model_type in _names("CAUSAL_LM") and not masked else "encoder"


def _tasks(config: PretrainedConfig) -> tuple[str, ...]:
    """The tasks that transformers has an auto class of this architecture for and that it was pretrained for."""
    side = _side(config)
    unfit = {"encoder": ("causal-lm", "seq2seq"), "decoder": ("seq2seq",), "seq2seq": ("causal-lm",)}[side]
    return tuple(
        task for task, mapping in _MAPPINGS.items() if task not in unfit and config.model_type in _names(mapping)
    )


def _skeleton(config: PretrainedConfig, side: Side) -> nn.Module:
    """The pretrained model on the meta device: a language model with its output layer, an encoder without a head."""
    from tunekit.advisor.weightless import build

    task = {"decoder": "causal-lm", "seq2seq": "seq2seq"}.get(side)
    try:
        return build(config, Task.named(task) if task and task in _tasks(config) else None)
    except Exception as e:
        raise UnreadableError(
            error(
                "model-unreadable",
                f"a `{config.model_type}` configuration",
                f"transformers cannot build it ({_short(e)})",
                "check its sizes",
            )
        ) from None


def _head_names(config: PretrainedConfig, task: Task) -> tuple[str, ...]:
    """The modules a task adds to the pretrained weights; they are the same whatever the depth."""
    from tunekit.advisor.weightless import build
    from tunekit.structure import head_modules

    return head_modules(build(config, task, num_layers=1), task)


def _num_layers(text: PretrainedConfig, side: Side) -> int:
    """Blocks; of both halves for seq2seq."""
    first = next(
        (n for key in ("encoder_layers", "num_hidden_layers", "num_layers", "n_layer") if isinstance(n := getattr(text, key, None), int)), 0
    )  # fmt: skip
    if side != "seq2seq":
        return first
    second = next(
        (n for key in ("decoder_layers", "num_decoder_layers") if isinstance(n := getattr(text, key, None), int)), first
    )
    return first + second


def _context_length(text: PretrainedConfig, skeleton: nn.Module) -> int | None:
    """Positions that a real token can take; some position tables keep their first rows for padding."""
    from torch import nn

    positions = next(
        (n for key in ("max_position_embeddings", "n_positions", "max_seq_len") if isinstance(n := getattr(text, key, None), int) and n > 0), None
    )  # fmt: skip
    if positions is None or any("relative_attention_bias" in name for name, _ in skeleton.named_modules()):
        return None
    for name, module in skeleton.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return min(positions, module.num_embeddings - module.padding_idx - 1)
    return positions


def _dtype(config: PretrainedConfig) -> str:
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return str(dtype or "float32").removeprefix("torch.")
