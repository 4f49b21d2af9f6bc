"""PEFT's own benchmark as a loop (`method_comparison/MetaMathQA/run.py`): its steps, and its evaluations by generation."""

from __future__ import annotations

from typing import Any

import torch

from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.generation import EVALUATED_ROWS, EVALUATED_TOKENS
from tunekit.advisor.simulate.loop import BETWEEN, Taking, backward_and_update
from tunekit.advisor.simulate.trace import EVALUATION, GENERATION, NEXT_TOKEN, Recorder


def peft_benchmark(taking: Taking) -> None:
    """Two steps: the last outputs live until new ones exist, gradients until then too.

    The key-value cache is not turned off there, and `zero_grad` comes before the forward pass. A window's last and shortest
    batch comes first: between it and the next window's longest one the allocator's cache is emptied.
    """
    with taking.recorder:
        _steps(taking)


def _steps(taking: Taking) -> Any:
    """The two steps; returns what is still alive after them."""
    recorder, model, shape = taking.recorder, taking.model, taking.shape
    before = Shape(batch=shape.batch, length=shape.previous_length or shape.length, padded=shape.padded)
    for taken, moment in ((before, "start"), (shape, BETWEEN)):
        recorder.counts_ops, recorder.moment = taken is shape, moment
        batch = taking.batch(taken)
        model.zero_grad()
        recorder.moment = "forward"
        outputs = model(**batch)
        loss = outputs.loss
        backward_and_update(taking, loss)
        recorder.mark([t for t in outputs.values() if isinstance(t, torch.Tensor)], "logits")
        recorder.mark(_cache_tensors(outputs), "activations")
        recorder.moment = "end"
    return batch, outputs, loss


def peft_evaluation(taking: Taking) -> None:
    """As `peft_benchmark`, and then the first passes of generating answers: the outputs of the step are still alive.

    Keys and values live on and grow by a token at each pass; the passes that follow are as the last one (see `generation`).
    """
    recorder, model = taking.recorder, taking.model
    with recorder:
        held = _steps(taking)
        model.eval()
        recorder.counts_ops = False
        recorder.turn(EVALUATION)
        batch = taking.batch(Shape(batch=EVALUATED_ROWS, length=EVALUATED_TOKENS))
        with torch.no_grad():
            answers = model(**{k: v for k, v in batch.items() if k != "labels"}, logits_to_keep=1)
            recorder.mark(_cache_tensors(answers), "cache")
            scores = answers.logits[:, -1].to(torch.float32, copy=True)
            for moment in (GENERATION, NEXT_TOKEN):
                answers = _next_token(recorder, model, answers, moment, taking.on.device)
                scores = answers.logits[:, -1].to(torch.float32, copy=True)
        recorder.turn("end")
        del answers, scores, held


def _next_token(recorder: Recorder, model: Any, answers: Any, moment: str, device: str) -> Any:
    """A pass for one more token, as `generate` makes it: PEFT hands it to the model below, which has the prompt in its cache."""
    cache = answers.past_key_values
    inner = model.base_model if hasattr(model, "peft_config") else model
    rows, length = EVALUATED_ROWS, cache.get_seq_length() + 1
    recorder.turn(moment)
    token = torch.zeros((rows, 1), dtype=torch.long, device=device)
    mask = torch.full((rows, length), 1, device=device)  # rows are padded: not the ones that a model makes for itself
    return _marked(recorder, inner(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True))


def _marked(recorder: Recorder, answers: Any) -> Any:
    recorder.mark(_cache_tensors(answers), "cache")
    return answers


def _cache_tensors(outputs: Any) -> list[torch.Tensor]:
    """Tensors of the key-value cache that a model returned."""
    layers = getattr(outputs.get("past_key_values"), "layers", None) or []
    return [t for layer in layers for t in vars(layer).values() if isinstance(t, torch.Tensor)]
