"""What a model is made of, read off the live module tree, never off a table of model names. Works on meta tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunekit.task import FORMS, Task
from tunekit.workload import ModelFacts, Side

if TYPE_CHECKING:
    from torch import nn

_POOLED = ("sequence-classification", "multiple-choice")
"""Tasks whose head reads one vector a row, so that a pooler inside the base is part of the head."""

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""The name patterns that transformers' Trainer exempts from weight decay."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of DistributedDataParallel and torch.compile."""
    while True:
        inner = model._modules.get("module") if type(model).__name__.endswith("DataParallel") else None
        inner = inner if inner is not None else model._modules.get("_orig_mod")
        if inner is None:
            return model
        model = inner


def task_model(model: nn.Module) -> nn.Module:
    """The transformers model of the task, out of every wrapper, PEFT's included."""
    model = unwrapped(model)
    return model.get_base_model() if "base_model" in model._modules and hasattr(model, "peft_config") else model


def base_name(model: nn.Module) -> str:
    """The dotted name of the pretrained base in a task model; empty where the model is its own base.

    Example:
        >>> from transformers import BertConfig, BertForTokenClassification
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> base_name(BertForTokenClassification(config))
        'bert'
    """
    name = getattr(task_model(model), "base_model_prefix", "")
    if not name or name not in task_model(model)._modules:
        return ""
    base = task_model(model).get_submodule(name)
    while len(base._modules) == 1 and not base._parameters:
        # A shell around the one module that does the work, such as the decoder of BART or PEGASUS on its own.
        inner, base = next((n, m) for n, m in base._modules.items())
        if base is None:
            break
        name = f"{name}.{inner}"
    return name


def base_model(model: nn.Module) -> nn.Module:
    """The pretrained base of a task model, out of every wrapper."""
    name = base_name(model)
    return task_model(model).get_submodule(name) if name else task_model(model)


def head_modules(model: nn.Module, task: Task) -> tuple[str, ...]:
    """Dotted names of the modules that the task adds to the pretrained weights; empty for language models.

    These are the children with parameters outside the base; where the model is its own base, those that hold neither
    layers nor embeddings. For sequence-classification and multiple-choice a pooler inside the base that feeds the
    head counts as part of it, as it does in RoBERTa's own head.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> head_modules(BertForSequenceClassification(config), Task.named("sequence-classification"))
        ('bert.pooler', 'classifier')
    """
    if not task.has_head:
        return ()
    top, base = task_model(model), base_name(model)
    around = base.partition(".")[0]  # OPT's base is the decoder inside of `model`
    names = [n for n, m in top.named_children() if n != around and _has_parameters(m) and (base or not _is_body(m))]
    if task.name in _POOLED:
        names = [*_poolers(top, base), *names]
    return tuple(dict.fromkeys(names))


def _poolers(top: nn.Module, base: str) -> list[str]:
    inside = top.get_submodule(base) if base else top
    return [
        f"{base}.{n}" if base else n for n, m in inside.named_children() if "pooler" in n.lower() and _has_parameters(m)
    ]


def head_parameters(model: nn.Module, task: Task) -> frozenset[str]:
    """Names of the parameters of the task's head, in a task model that no method has touched."""
    prefixes = tuple(f"{name}." for name in head_modules(model, task))
    return frozenset(n for n, _ in model.named_parameters() if n.startswith(prefixes)) if prefixes else frozenset()


def blocks(model: nn.Module) -> tuple[tuple[str, nn.ModuleList], ...]:
    """The lists of repeated layers with their dotted names, in the order of the tree (encoder before decoder).

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> model = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9))
        >>> [name for name, _ in blocks(model)]
        ['encoder.block', 'decoder.block']
    """
    from torch import nn

    def is_layer(m: nn.Module) -> bool:
        return len(m._modules) > 0 and _has_parameters(m)

    def walk(m: nn.Module, name: str) -> Iterator[tuple[str, nn.ModuleList]]:
        if isinstance(m, nn.ModuleList) and len(m) > 0 and all(is_layer(x) for x in m):
            yield name, m
            return
        for child_name, child in m.named_children():
            yield from walk(child, f"{name}.{child_name}" if name else child_name)

    found, seen = [], set()
    prefix = base_name(model)
    for name, layers in walk(base_model(model), prefix):
        if id(layers) not in seen:
            seen.add(id(layers))
            found.append((name, layers))
    return tuple(found)


def norms_beside(model: nn.Module, stack: str) -> tuple[str, ...]:
    """Dotted names of the norms beside a list of layers, which follow its last one; those of embeddings do not."""
    above = stack.rpartition(".")[0]
    return tuple(
        f"{above}.{n}" if above else n
        for n, m in task_model(model).get_submodule(above).named_children()
        if "norm" in type(m).__name__.lower() and "emb" not in n.lower()
    )


def levels(model: nn.Module) -> dict[str, int]:
    """How far below the top each parameter of the task model lies.

    0 for what reads the last layer (the head), 1 for the last layer and the norm that follows it, 2 for the layer
    before, and so on down; an encoder lies below its decoder, and embeddings below the first layer.

    Example:
        >>> from transformers import GPT2Config, GPT2ForSequenceClassification
        >>> model = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=9, num_labels=2))
        >>> found = levels(model)
        >>> [found[n] for n in ("score.weight", "transformer.ln_f.bias", "transformer.h.0.ln_1.bias", "transformer.wte.weight")]
        [0, 1, 2, 3]
    """
    top, stacks = task_model(model), blocks(model)
    lowest = sum(len(layers) for _, layers in stacks)
    of_prefix: dict[str, int] = {}
    below = lowest
    for name, layers in stacks:
        of_prefix |= {f"{name}.{i}.": below - i for i in range(len(layers))}
        below -= len(layers)
        of_prefix |= {f"{norm}.": below + 1 for norm in norms_beside(model, name)}
    found, passed = {}, not stacks
    for name, _ in top.named_parameters():
        inside = next((level for prefix, level in of_prefix.items() if name.startswith(prefix)), None)
        passed = passed or name.startswith(f"{stacks[-1][0]}.")
        above = passed and "emb" not in name.lower()
        found[name] = inside if inside is not None else 0 if above else lowest + 1
    return found


def linear_names(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the linear layers that an adapter can sit on.

    All of those inside the repeated layers: nn.Linear, transformers' Conv1D and bitsandbytes' quantised ones. Heads
    and embeddings stand outside; routers and gates of a mixture of experts are left out (an adapted router unbalances
    the experts); fused experts are bare parameters, see `expert_names`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> linear_names(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)))
        ('transformer.h.0.attn.c_attn', 'transformer.h.0.attn.c_proj', 'transformer.h.0.mlp.c_fc', 'transformer.h.0.mlp.c_proj')
    """
    return tuple(name for name, m, above in _in_blocks(model) if is_linear(m) and not _is_router(m, name, above))


def attention_names(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the attention's linear layers: query, key, value and output, fused or not."""
    names = set(linear_names(model))
    return tuple(name for name, _, _ in _in_blocks(model) if name in names and _ATTENTION.search(name))


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def expert_names(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the fused expert weights: three-dimensional parameters (experts, out, in) inside the layers."""
    return tuple(
        f"{name}.{p_name}"
        for name, m, _ in _in_blocks(model)
        for p_name, p in m.named_parameters(recurse=False)
        if p.ndim == 3 and "expert" in f"{name}.{p_name}".lower()
    )


def norm_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the normalisation layers, their biases included."""
    return tuple(
        f"{name}.{p_name}"
        for name, m in model.named_modules()
        if "norm" in type(m).__name__.lower() and not m._modules
        for p_name, p in m.named_parameters(recurse=False)
        if p.ndim == 1
    )


def bias_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the bias parameters: vectors called `bias` or `..._bias` (relative position tables are no biases)."""
    return tuple(
        name
        for name, p in model.named_parameters()
        if p.ndim == 1 and (name.rsplit(".", 1)[-1] == "bias" or name.endswith("_bias"))
    )


def decayed_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay applies to: what transformers' Trainer decays, no bias and no norm."""
    from torch import nn
    from transformers.trainer_pt_utils import get_parameter_names

    return frozenset(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))


def tasks_of(model: nn.Module) -> tuple[Task, ...]:
    """The tasks (and other forms) whose auto class builds this class of model; empty where transformers lists no such class."""
    names = {c.__name__ for c in type(task_model(model)).__mro__}
    return tuple(task for task in FORMS if names & _class_names(task.auto_class))


def _class_names(auto_class: str) -> set[str]:
    import transformers

    mapping = getattr(transformers, auto_class)._model_mapping._model_mapping
    return {n for value in mapping.values() for n in (value if isinstance(value, tuple | list) else (value,))}


def is_linear(module: Any) -> bool:
    """Whether a module multiplies by a matrix: nn.Linear and its quantised children, transformers' Conv1D."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def features(module: Any) -> tuple[int, int]:
    """(in, out) features of a linear layer; a quantised one stores them beside its packed weight."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.weight.shape[1]


def quantization_of(model: nn.Module) -> str | None:
    """How the live base is quantised, in a plan's terms; another library's name where it is not bitsandbytes."""
    config = getattr(getattr(task_model(model), "config", None), "quantization_config", None)
    if config is None or not getattr(model, "is_quantized", getattr(model, "hf_quantizer", None) is not None):
        return None
    if getattr(config, "load_in_4bit", False):
        return str(config.bnb_4bit_quant_type)
    return "int8" if getattr(config, "load_in_8bit", False) else str(getattr(config, "quant_method", "quantised"))


def class_name(model: nn.Module) -> str:
    """The name of transformers' class, also where FSDP has put one of its own before it (`FSDPLlamaForCausalLM`)."""
    return next(c.__name__ for c in type(model).__mro__ if "FSDPModule" not in {b.__name__ for b in c.__mro__})


def side_of(config: Any) -> Side:
    """Which half of a transformer: a decoder is what writes text and fills in no masks."""
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    looks_back = getattr(config, "is_decoder", False)
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not looks_back
    return "decoder" if config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked else "encoder"


def facts_of(model: nn.Module) -> ModelFacts:
    """What `supports` may ask about, off the live model."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = (getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    return ModelFacts(
        name=type(model).__name__,
        config_json=config.to_json_string(use_diff=False),
        model_type=config.model_type,
        side=side_of(config),
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=sum(len(layers) for _, layers in blocks(model)),
        hidden_size=getattr(text, "hidden_size", None) or 0,
        vocab_size=getattr(text, "vocab_size", None) or 0,
        num_experts=next((n for n in experts if isinstance(n, int)), 0),
        has_weights=True,
        has_bias=bool(bias_names(base_model(model))),
        can_checkpoint=bool(getattr(model, "supports_gradient_checkpointing", False)),
        tasks=tuple(t.name for t in tasks_of(model)),
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_body(module: nn.Module) -> bool:
    """Whether a child holds layers or embeddings, so that it is the model's body and not a head."""
    from torch import nn

    return any(isinstance(m, nn.ModuleList | nn.Embedding) for m in module.modules())


def _in_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[nn.Module, ...]]]:
    """(dotted name, module, its parent and that one's) of everything inside the repeated layers."""
    for list_name, layers in blocks(model):
        known = {"": layers}
        for name, m in layers.named_modules():
            known[name] = m
            if name:
                parent = name.rpartition(".")[0]
                yield f"{list_name}.{name}", m, (known[parent], known[parent.rpartition(".")[0]])


def _is_router(module: Any, name: str, above: tuple[nn.Module, ...]) -> bool:
    """Whether a linear layer chooses among the experts beside it (Switch: beside its parent), or gates a shared one."""
    experts = [m for parent in above for n, m in parent.named_children() if "expert" in n.lower()]
    if not experts or "expert" in name.rpartition(".")[0].lower():
        return False
    counts = {len(m) for m in experts if hasattr(m, "__len__")}
    counts |= {p.shape[0] for m in experts for p in m.parameters(recurse=False) if p.ndim == 3}
    return features(module)[1] in {*counts, 1}
