"""Soft prompts: learnt vectors put among the embedded tokens of a model's input, and taken out of what it answers.

They are put in at the pretrained base, below the head. So head, labels, answer positions, pooling, loss and returned
logits only ever see the real tokens, for every task.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tunekit.deep_prompt import places, position_tables
from tunekit.errors import UnsupportedError
from tunekit.finding import Finding, error
from tunekit.prompt_vectors import AnyVectors, Vectors
from tunekit.structure import base_model, facts_of, task_model

CHILD = "soft_prompt"
"""Name of the prompt in the module whose input it goes into."""

_PADDING_FREE = ("cu_seq_lens_q", "cu_seqlens", "seq_idx")
"""What a call brings along when several rows are packed into one."""

Inputs = dict[str, Any]


# ---------------------------------------------------------------------------------------------- in the model
class SoftPrompt(nn.Module):
    """Learnt vectors, and the hooks that put them into one stack's input and take their places out of its output.

    The stack is run on longer rows in which an arbitrary token stands for every virtual one, so that its own code
    counts positions, builds masks and scales embeddings; the embeddings of those tokens are then replaced.
    """

    def __init__(self, vectors: AnyVectors, stack: nn.Module, length: int, at: int, cuts: bool, positions: str) -> None:
        super().__init__()
        config: Any = stack.config
        self.vectors, self.length, self.positions = vectors, length, positions
        self.at = at
        """Real tokens in front; see `place_of`."""
        self.cuts = cuts
        """Whether the places are taken out of the output; a decoder reads those of its encoder."""
        self.inputs = _positional(stack)
        self.room = room(stack)
        self.window = getattr(config.get_text_config(), "sliding_window", None)
        self.padding = next((t.padding_idx for t in position_tables(stack) if type(t) is nn.Embedding), None)
        """The position of padding, in models that give it one of its own."""
        self.has_types = any(n.endswith("token_type_embeddings") for n, _ in stack.named_modules())
        never = {getattr(config, "pad_token_id", None), getattr(stack.get_input_embeddings(), "padding_idx", None)}
        self.filler = next(i for i in range(3) if i not in never)
        self.full = 0
        self.is_pending = False

    # -------------------------------------------------------------- before the stack
    def put_in(self, stack: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs]:
        """Makes room for the vectors in everything that goes along the row, once for a row that is being written."""
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        self.full, self.is_pending = 0, False
        if given.get("input_ids") is None and given.get("inputs_embeds") is None:
            return (), given
        _raise_unreadable(given)
        return (), self._goes_on(given) if self._has_begun(given) else self._begins(given)

    def _has_begun(self, given: Inputs) -> bool:
        """Whether a cache holds the vectors already."""
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        seen = cache.get_seq_length() if cache is not None else 0
        if isinstance(seen, int):
            return seen > 0
        # A static cache counts on the device; the mask says the same without waiting for it.
        return _row_length(given) != mask.shape[1] if mask is not None else int(seen) > 0

    def _goes_on(self, given: Inputs) -> Inputs:
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None:
            given["attention_mask"] = self._spread(mask, mask.new_ones(len(mask), self.length))
            seen = given["past_key_values"].get_seq_length()
            if isinstance(seen, int) and seen + _row_length(given) != given["attention_mask"].shape[1]:
                raise UnsupportedError(_cut_cache(seen, self.length))
        if positions is not None:
            given["position_ids"] = positions + self.length
        return given

    def _begins(self, given: Inputs) -> Inputs:
        length = _row_length(given)
        self.full = length + self.length
        if self.positions == "shifted" and self.room is not None and self.full > self.room:
            raise UnsupportedError(_too_long(length, self.length, self.room))
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is not None:
            given["input_ids"] = self._spread(ids, ids.new_full((len(ids), self.length), self.filler))
            self.is_pending = True
        else:
            embedded = given["inputs_embeds"]
            given["inputs_embeds"] = self._spread(embedded, self._rows(embedded))
        if mask is not None:
            given["attention_mask"] = self._spread(mask, mask.new_ones(len(mask), self.length))
        if (wide := given.get("global_attention_mask")) is not None:  # Longformer's: every token sees the vectors
            given["global_attention_mask"] = self._spread(wide, wide.new_ones(len(wide), self.length))
        _enlarge(given.get("past_key_values"), self.length, self.window)
        return self._with_positions(self._with_types(given))

    def _with_types(self, given: Inputs) -> Inputs:
        types = given.get("token_type_ids")
        if types is not None:
            given["token_type_ids"] = self._spread(types, types[:, :1].expand(-1, self.length))
        elif self.has_types and "token_type_ids" in self.inputs:
            # The zeros that the model would take out of a buffer, which ends with the context.
            given["token_type_ids"] = _first(given).new_zeros(_first(given).shape[:2], dtype=torch.long)
        return given

    def _with_positions(self, given: Inputs) -> Inputs:
        positions = given.get("position_ids")
        if positions is not None:
            front = positions[..., :1] + 1 if self.at else torch.zeros_like(positions[..., :1])
            own = front + torch.arange(self.length, device=positions.device)
            rest = positions + self.length
            rest = rest if self.padding is None else torch.where(positions == self.padding, positions, rest)
            given["position_ids"] = torch.cat([positions[..., : self.at], own, rest[..., self.at :]], dim=-1)
        elif self.positions == "natural" and self.padding is None and "position_ids" in self.inputs:
            # The same as the model's own, which may come out of a buffer that ends with the context.
            given["position_ids"] = torch.arange(self.full, device=_first(given).device)[None]
        return given

    # -------------------------------------------------------------- inside
    def replace(self, embedding: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """After the embedding of the row's tokens: the vectors in place of those that only kept their places."""
        if not self.is_pending or output.shape[1] != self.full:
            return None
        self.is_pending = False
        real = torch.cat([output[:, : self.at], output[:, self.at + self.length :]], dim=1)
        return self._spread(real, self._rows(real))

    def as_in_pretraining(self, table: nn.Embedding, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before a table of positions: real tokens back to where they stood, virtual ones to the first position."""
        positions, first = args[0], 0 if table.padding_idx is None else table.padding_idx + 1
        moved = (positions - self.length).clamp(min=first)
        if table.padding_idx is not None:
            moved = torch.where(positions == table.padding_idx, positions, moved)
        return (moved, *args[1:])

    def show(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs]:
        """Before a decoder: the virtual places of what it reads are seen."""
        given = {**dict(zip(_positional(decoder), args, strict=False)), **kwargs}
        mask, read = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is not None and read is not None and read.shape[1] == mask.shape[-1] + self.length:
            given["encoder_attention_mask"] = torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)
        return (), given

    # -------------------------------------------------------------- after the stack
    def take_out(self, stack: nn.Module, args: Any, output: Any) -> Any:
        """Takes the virtual places out of everything in the output that goes along the row."""
        if self.is_pending:
            why = "its input was embedded by another module than its `get_input_embeddings`"
            fix = "use `method: {kind: lora}`, which works on the weights"
            raise UnsupportedError(
                error("soft-prompt-unread", f"a `{type(stack).__name__}` that ran without its prompt", why, fix)
            )
        if self.full and self.cuts:
            if isinstance(output, dict):
                for name, value in output.items():
                    output[name] = self._routed(value) if name == "router_logits" else self._without(value)
            else:
                output = self._without(output)
        return output

    def _without(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._without(v) for v in value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.ndim == 3 and value.shape[1] == self.full:
            return self._cut(value, 1)
        if value.ndim == 4 and value.shape[2] == self.full:  # attention: (rows, heads, queries, keys)
            return self._cut(self._cut(value, 2), 3)
        return value

    def _routed(self, logits: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Those of a mixture of experts, (rows x tokens, experts)."""
        return tuple(self._cut(t.reshape(-1, self.full, t.shape[-1]), 1).flatten(0, 1) for t in logits)

    # -------------------------------------------------------------- along the row
    def _spread(self, row: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """A (rows, tokens, ...) tensor with `own` put in where the vectors stand."""
        return torch.cat([row[:, : self.at], own.to(row), row[:, self.at :]], dim=1)

    def _cut(self, value: torch.Tensor, dim: int) -> torch.Tensor:
        rest = value.narrow(dim, self.at + self.length, value.shape[dim] - self.at - self.length)
        return torch.cat([value.narrow(dim, 0, self.at), rest], dim) if self.at else rest.contiguous()

    def _rows(self, like: torch.Tensor) -> torch.Tensor:
        return self.vectors().to(like)[None].expand(len(like), -1, -1)


# ---------------------------------------------------------------------------------------------- into a model
def is_seq2seq(model: nn.Module) -> bool:
    """Whether an encoder reads for a decoder; the prompt then goes to the encoder."""
    return "decoder_input_ids" in inspect.signature(base_model(model).forward).parameters


def stack_of(model: nn.Module) -> nn.Module:
    """The module whose input gets the prompt: the pretrained base, its encoder, or what it is a mere shell of."""
    base: Any = base_model(model)
    if is_seq2seq(model):
        return base.get_encoder()
    while len(base._modules) == 1 and not _embeds(base):
        base = next(iter(base._modules.values()))
    return base


def _embeds(module: Any) -> bool:
    try:
        return module.get_input_embeddings() is not None
    except (AttributeError, NotImplementedError):
        return False


def place_of(model: nn.Module) -> int:
    """Real tokens in front of the prompt: one in an encoder, whose first token is what heads and poolers read."""
    task: Any = task_model(model)
    looks_back = facts_of(task).side == "decoder" or getattr(task.config, "is_decoder", False)
    return 0 if is_seq2seq(model) or looks_back else 1


def has_own_positions(stack: nn.Module) -> bool:
    """Whether a stack has learnt positions that only its own code can count."""
    return any(type(t) is not nn.Embedding for t in position_tables(stack))


def room(stack: nn.Module) -> int | None:
    """Tokens that a stack's learnt positions are enough for; None where nothing is learnt for each."""
    found = position_tables(stack)
    sizes = (places(t) if type(t) is nn.Embedding else t.num_embeddings - getattr(t, "offset", 0) for t in found)
    return min(sizes, default=None)


def attach(model: nn.Module, vectors: AnyVectors, num_virtual_tokens: int, positions: str) -> None:
    """Puts vectors into the input of a model.

    Args:
        model: A transformers model; changed in place.
        vectors: As wide as the embedded tokens; see `embedding_of`.
        num_virtual_tokens: How many.
        positions: `shifted`: real tokens are counted behind the virtual ones; `natural`: where they stand without
            them. It matters for learnt positions only: any other kind is about distances.
    """
    stack, seq2seq, task = stack_of(model), is_seq2seq(model), task_model(model)
    prompt = SoftPrompt(vectors, stack, num_virtual_tokens, place_of(model), cuts=not seq2seq, positions=positions)
    prompt.train(stack.training)
    stack.add_module(CHILD, prompt)
    stack.register_forward_pre_hook(prompt.put_in, with_kwargs=True)
    stack.register_forward_hook(prompt.take_out)
    for embed in _embeddings(stack):
        embed.register_forward_hook(prompt.replace)
    if seq2seq:
        base: Any = base_model(model)
        base.get_decoder().register_forward_pre_hook(prompt.show, with_kwargs=True)
    if positions == "natural":
        for table in position_tables(stack):
            table.register_forward_pre_hook(prompt.as_in_pretraining)
    # With a static cache `generate` makes a mask of four dimensions for the real tokens alone. Left as it is, the base
    # makes its own, for all.
    vars(task)["create_masks_for_generate"] = _mask_as_it_is


def embedding_of(stack: nn.Module) -> nn.Module:
    """The module that embeds the tokens of a stack."""
    found: Any = stack
    return found.get_input_embeddings()


def _embeddings(stack: nn.Module) -> list[nn.Module]:
    """The module that embeds tokens, and others that share its weight: some stacks call one of those."""
    embed = embedding_of(stack)
    tied = [m for m in stack.modules() if isinstance(m, nn.Embedding) and m.weight is embed.weight and m is not embed]
    return [embed, *tied]


def width_of(stack: nn.Module) -> int:
    """Width of the embedded tokens, which in some encoders is not that of the layers."""
    return int(embedding_of(stack).weight.shape[1])


def prompt_of(model: nn.Module) -> tuple[str, SoftPrompt]:
    """The prompt in a model and its dotted name."""
    return next((name, m) for name, m in model.named_modules() if isinstance(m, SoftPrompt))


def learnt_by_prompt(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the prompt and what it is computed from."""
    return frozenset(n for n, _ in model.named_parameters() if CHILD in n.split("."))


# ---------------------------------------------------------------------------------------------- values
@torch.no_grad()
def set_from_tokens(model: nn.Module, tokens: torch.Tensor) -> None:
    """Starts from the embeddings of real words, (num_virtual_tokens,) ids, as the layers see them."""
    embed = embedding_of(stack_of(model))
    _weight(model).copy_(embed(tokens.to(embed.weight.device)))


@torch.no_grad()
def set_random(model: nn.Module) -> None:
    """Normal values with the mean and the spread that the embeddings of real words have."""
    embed, weight = embedding_of(stack_of(model)), _weight(model)
    some = embed(torch.randint(embed.num_embeddings, (1000,)).to(embed.weight.device)).float()
    nn.init.normal_(weight, mean=float(some.mean()), std=float(some.std()))


def _weight(model: nn.Module) -> nn.Parameter:
    vectors = prompt_of(model)[1].vectors
    assert isinstance(vectors, Vectors), "vectors that a network makes cannot be set"
    return vectors.weight


@torch.no_grad()
def folded(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The vectors as a plain tensor (num_virtual_tokens, width), whatever they are computed from, without dropout.

    Args:
        model: With a prompt in it.
        state_dict: The model's whole state where only the host can gather it (ZeRO-3, FSDP); None: the model's own.
    """
    name, prompt = prompt_of(model)
    state = model.state_dict() if state_dict is None else state_dict
    front = f"{name}.vectors."
    return prompt.vectors.of({k.removeprefix(front): v.cpu() for k, v in state.items() if k.startswith(front)}).detach()


# ---------------------------------------------------------------------------------------------- one call
def _mask_as_it_is(*, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Stands in for transformers' `create_masks_for_generate`."""
    return attention_mask


def _positional(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that a module can be given by position."""
    found = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in found if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _first(given: Inputs) -> torch.Tensor:
    ids = given.get("input_ids")
    return ids if ids is not None else given["inputs_embeds"]


def _row_length(given: Inputs) -> int:
    return _first(given).shape[1]


def _enlarge(cache: Any, by: int, window: int | None) -> None:
    """Makes room for the vectors in a static cache, whose memory is taken when it is first filled."""
    for layer in getattr(cache, "layers", ()):
        length = getattr(layer, "max_cache_len", None)
        if length is not None and not layer.is_initialized:
            most = window if layer.is_sliding and window is not None else length + by
            layer.max_cache_len = max(length, min(length + by, most))


def _raise_unreadable(given: Inputs) -> None:
    """Refuses calls that a prompt cannot be put into.

    Raises:
        UnsupportedError: `soft-prompt-mask`, `soft-prompt-packed`.
    """
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        seen = "an attention mask that is not (rows, tokens)"
        why = "where the virtual tokens go in it is not known"
        raise UnsupportedError(error("soft-prompt-mask", seen, why, "pass a mask of zeros and ones for the tokens"))
    packed = any(given.get(name) is not None for name in _PADDING_FREE)
    if not packed and mask is None and positions is not None and positions.device.type != "meta":
        packed = bool((positions.diff(dim=-1) < 0).any())
    if packed:
        why = "the virtual tokens would stand in front of the first of them only"
        raise UnsupportedError(error("soft-prompt-packed", "several rows packed into one", why, "set `packing: false`"))


def _too_long(length: int, virtual: int, places: int) -> Finding:
    return error(
        "soft-prompt-too-long", f"rows of {length} tokens with {virtual} virtual ones", f"the model has {places} positions",
        f"truncate to {places - virtual} tokens, or set `positions: natural` where the method allows it",
    )  # fmt: skip


def _cut_cache(seen: int, virtual: int) -> Finding:
    return error(
        "soft-prompt-cache", f"a cache of {seen} tokens that does not go with the attention mask",
        f"it must hold the {virtual} virtual tokens in front of the real ones, and nothing may be cut off it",
        "start from an empty cache, and generate without an assistant model",
    )  # fmt: skip
