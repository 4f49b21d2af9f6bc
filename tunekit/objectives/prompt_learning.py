"""Prompt learning: a language model classifies by the word it would write in a blank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit.contracts import Objective
from tunekit.errors import UnsupportedError
from tunekit.finding import Finding, error
from tunekit.objectives._label_words import place_of, side_faults, verbalizer_faults, word_tokens
from tunekit.objectives._prompt_batch import collate_prompts, plain_batch
from tunekit.objectives._prompt_scores import (
    class_scores,
    hidden_losses,
    label_losses,
    logits_at,
    outputs_of,
    run,
    word_scores,
)
from tunekit.objectives._template import fields_of, num_soft, pieces_of, template_faults
from tunekit.task import MASKED_LM, Task
from tunekit.workload import ModelFacts, Side

if TYPE_CHECKING:
    import torch
    from torch import nn

_FORMS: Mapping[Side, Task] = {
    "encoder": MASKED_LM,
    "decoder": Task.named("causal-lm"),
    "seq2seq": Task.named("seq2seq"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLearning(Objective):
    """Rows are put as texts with a blank; the class whose label words the language model finds likeliest there is the answer.

    For sequence-classification with one class a row. No new head is made: an encoder keeps its masked-LM head, decoders and
    seq2seq models write the word. So the model can be asked before it has seen a label (`tunekit.prompt_scores`), and
    learns from a few rows a class. The loss is the cross-entropy of the classes' scores, the mean over the templates; an
    answer is the mean of the templates' log-probabilities.

    A class's score is the mean log-probability of its words, a word's the mean over its tokens. An encoder is shown as many
    masks as the longest word has tokens, and answers all at once (Schick and Schuetze 2021, "It's Not Just Size That
    Matters", their training form).

    Example:
        >>> objective = PromptLearning(
        ...     templates=("{text} It was {mask}.", "A {mask} film: {text}"),
        ...     verbalizer={"negative": ("terrible",), "positive": ("great",)},
        ... )
        >>> PromptLearning.from_dict(objective.to_dict()) == objective
        True
        >>> import tunekit
        >>> plan = tunekit.Plan(model="./bert", task="sequence-classification", method=tunekit.methods.Full(), objective=objective,
        ...                     learning_rate=1e-5)
        >>> tunekit.Plan.from_dict(plan.to_dict()).objective.templates[1]
        'A {mask} film: {text}'
    """

    slug: ClassVar[str] = "prompt-learning"
    title: ClassVar[str] = "Prompt learning"
    reference: ClassVar[str] = (
        "Schick, Schuetze, Exploiting Cloze Questions for Few Shot Text Classification and Natural Language Inference (PET), "
        "2021; Gao, Fisch, Chen, Making Pre-trained Language Models Better Few-shot Learners (LM-BFF), 2021"
    )
    own_rows: ClassVar[bool] = True

    templates: tuple[str, ...]
    """Texts with columns in braces, one `{mask}` where the label word stands, and perhaps `{soft}` or `{soft:3}`, tokens whose
    vectors are learnt. Several are an ensemble; PET's authors found the choice of one worth 5 to 12 points without labels, so
    take three or more. For decoders the mask comes last; for seq2seq models a mask within the text is T5's `<extra_id_0>`."""
    verbalizer: Mapping[str, tuple[str, ...]]
    """The label words of each class, by the class's name in the data. Natural words that would really stand in the blank: where
    there are none (is a sentence grammatical?), an ordinary head may be better."""
    demonstrations: int = 0
    """So many labelled training rows of each class are shown before every row, drawn anew for each (LM-BFF takes 1)."""
    separator: str = "\n\n"
    """Stands between demonstrations."""
    masked_lm_weight: float = 0.0
    """The share of an ordinary masked-LM loss on 15 % of the texts' tokens, against forgetting, for encoders. PET's authors use
    one with about ten rows only, at a weight of 1e-4."""
    prior: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By class the log-probability without content, one a template, which is taken off (contextual calibration, Zhao et al.
    2021); made by `tunekit.calibrate_prompt`. For answers without training."""
    seed: int = 0
    """Of the drawing of demonstrations."""

    def faults(self) -> list[Finding]:
        """Templates and label words that cannot work with any model, all of them."""
        faults = [f for t in self.templates for f in template_faults(t)] + verbalizer_faults(self.verbalizer)
        if not self.templates:
            fix = 'set `templates: ["{text} It was {mask}."]`'
            faults.append(error("prompt-template-missing", "no template", "a row must be put as a text", fix))
        for name, low, high in (("demonstrations", 0, 10**6), ("masked_lm_weight", 0, 1), ("seed", 0, 2**32)):
            if not low <= getattr(self, name) <= high:
                faults.append(error("prompt-range", f"`{name}` of `PromptLearning` is {getattr(self, name)}", f"it lies between {low} and {high}", f"set `{name}={low}`"))  # fmt: skip
        sizes = {len(values) for values in self.prior.values()} or {len(self.templates)}
        if self.prior and ({*self.prior} != {*self.verbalizer} or sizes != {len(self.templates)}):
            faults.append(error("prompt-prior", "`prior`", "it needs one number a template for every class", "make it anew with `tunekit.calibrate_prompt`"))  # fmt: skip
        return faults

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the templates name."""
        return tuple(dict.fromkeys(f for t in self.templates for f in fields_of(pieces_of(t))))

    @staticmethod
    def tokens_in(template: str, side: Side, tokenizer: Any, word: str) -> tuple[int, ...]:
        """The tokens that a word has in a template's blank."""
        return word_tokens(tokenizer, place_of(pieces_of(template), side, tokenizer), word)

    def learnt_as(self, task: Task, side: Side) -> Task:
        """A language model's own form."""
        return _FORMS[side]

    def supports(self, model: ModelFacts, task: Task) -> Finding | None:
        """Refuses other tasks, architectures without a language-model head, and a blank that the model cannot fill in."""
        if task.name != "sequence-classification":
            return error("prompt-task", f"prompt learning of {task}", "a label word stands for the class of a whole row", "use `objective: supervised`")  # fmt: skip
        form = self.learnt_as(task, model.side)
        if not _has_class(model.model_type, form):
            return error("prompt-architecture", f"prompt learning with a `{model.model_type}` model", f"transformers has no {form.auto_class} of it", "choose a model that fills in blanks or writes, such as BERT or GPT-2")  # fmt: skip
        if self.masked_lm_weight and model.side != "encoder":
            return error("prompt-auxiliary", f"`masked_lm_weight: {self.masked_lm_weight}` with a {model.side} model", "only an encoder fills in masks", "set `masked_lm_weight: 0`")  # fmt: skip
        return next((f for t in self.templates for f in side_faults(pieces_of(t), model.side)), None)

    # ------------------------------------------------------------------ rows
    def encode(self, rows: Any, task: Task, tokenizer: Any, encode: Any = None, *, side: Side, examples: Any = None, **settings: Any) -> Any:  # fmt: skip
        """Rows as prompts, with the tokens of the label words; see `tunekit.objectives._prompt_rows`.

        Raises:
            InvalidError: everything at once: `prompt-mask-token`, `prompt-labels`, `prompt-field-unknown`,
                `prompt-field-label`, `prompt-mask-not-last`, `prompt-soft-vocabulary`, `prompt-problem-type`; then
                `prompt-word-unknown`, `prompt-words-equal`, `prompt-demonstrations`, `prompt-too-long`.
        """
        from tunekit.objectives._prompt_rows import prompt_rows

        return prompt_rows(self, rows, tokenizer, side=side, examples=examples, **settings)

    def collate(self, features: list[dict[str, Any]], collate: Any) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `attention_mask` are (rows, sequences, tokens), or (rows, tokens) for one sequence a row."""
        return collate_prompts(features, collate, hides=self.masked_lm_weight > 0)

    def weightless(self, batch: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        """The same shapes without values, every label word one token; the templates' own words are taken for tokens."""
        pieces = [pieces_of(t) for t in self.templates]
        longest = max(sum(len(p.text.split()) for p in t if p.kind == "text") + 1 + num_soft(t) for t in pieces)
        shown = 1 + self.demonstrations * len(self.verbalizer)
        counts = (len(self.templates), sum(map(len, self.verbalizer.values())))
        return plain_batch(batch, model, counts, longest, shown, hides=self.masked_lm_weight > 0)

    def ready(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Refuses soft tokens whose vectors do not learn.

        Raises:
            UnsupportedError: `prompt-soft-frozen`.
        """
        from tunekit.structure import task_model

        count = sum(num_soft(pieces_of(t)) for t in self.templates)
        table: Any = task_model(model)
        if count and not any(p.requires_grad for p in table.get_input_embeddings().parameters()):
            raise UnsupportedError(error("prompt-soft-frozen", f"{count} soft tokens", "the method leaves the embeddings as they are, so they would not learn", "use `method: full`, or leave them out and use `method: prompt-tuning`"))  # fmt: skip

    # ------------------------------------------------------------------ the loss
    def num_items(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The rows with a label."""
        labels = inputs.get("labels")
        if labels is None:
            return None
        return (labels.sum(-1) if labels.is_floating_point() else labels).ne(-100).sum()

    def loss(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """The loss and, as `logits`, the classes' log-probabilities; see `Objective.loss`."""
        hides = self.masked_lm_weight > 0 and model.training and "hidden_ids" in inputs
        said = run(model, inputs, inputs["hidden_ids"] if hides else None)
        scores = class_scores(word_scores(said, inputs), inputs, len(self.verbalizer))
        labels = inputs["labels"]
        losses = label_losses(scores, labels)
        if hides:
            w = self.masked_lm_weight
            losses = (1 - w) * losses + w * hidden_losses(said, inputs) * self._counts(labels)
        items = self._counts(labels).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / items, outputs_of(scores)

    @staticmethod
    def _counts(labels: torch.Tensor) -> torch.Tensor:
        return (labels.sum(-1) if labels.is_floating_point() else labels).ne(-100)

    def answer(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
        """As `logits` the classes' log-probabilities, (rows, classes), the mean over the templates."""
        return outputs_of(self.template_scores(model, inputs))

    def template_scores(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Each template's log-probabilities of the classes, (rows, templates, classes)."""
        return class_scores(word_scores(run(model, inputs), inputs), inputs, len(self.verbalizer))

    def blanks(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the vocabulary in the blank's first token, (rows, sequences, vocabulary)."""
        said, positions = run(model, inputs), inputs["positions"]
        first = positions.reshape(-1, positions.shape[-1])[:, :1]
        return logits_at(said, said.states, first)[:, 0].log_softmax(-1).view(*said.shape, -1)


def _has_class(model_type: str, form: Task) -> bool:
    """Whether transformers builds this form of an architecture."""
    import transformers

    return model_type in getattr(transformers, form.auto_class)._model_mapping._model_mapping
