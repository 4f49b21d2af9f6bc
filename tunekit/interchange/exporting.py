"""What a run learnt in the form that another tool reads: plain PEFT, merged weights, AdapterHub's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tunekit import adapterhub, adapterhub_fusion, delta_format, peft_format
from tunekit.attach import merge
from tunekit.errors import InvalidError, OccupiedError, UnsupportedError
from tunekit.finding import error, nearest
from tunekit.interchange.card import write_card
from tunekit.plan import Plan
from tunekit.run_folder import Reopened, reopen

Form = Literal["peft", "merged", "adapterhub"]


def export(
    run: str | Path, output: str | Path, form: Form = "peft", *, base: str | None = None, overwrite: bool = False
) -> Path:
    """Writes what a run learnt in the form that another tool reads, with its tokenizer and a model card.

    Args:
        run: The output folder of a run.
        output: Where to.
        form: `peft` (a folder that plain PEFT's `from_pretrained` attaches), `merged` (a whole model in safetensors that
            plain transformers loads; a quantised base is read whole first), `adapterhub` (what the library `adapters` reads).
        base: Where the base model lies now, if not where the plan says.
        overwrite: Whether a folder that holds something may be written into.

    Returns:
        The folder.

    Raises:
        InvalidError: `export-form`.
        OccupiedError: `output-occupied`.
        UnsupportedError: `export-peft`, `export-adapterhub`, `method-no-merge`: that form cannot say what was learnt.
        MissingError: what `tunekit.reopen` says.

    Example:
        >>> export("runs/tunekit", "for-others", "gguf")
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [export-form] form 'gguf': no such form. Known: `peft`, `merged`, `adapterhub`.
    """
    run, output = Path(run), Path(output)
    if form not in _WRITERS:
        raise InvalidError(error("export-form", f"form {form!r}", "no such form", nearest(form, list(_WRITERS))))
    if not overwrite and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OccupiedError(
            error("output-occupied", f"folder {str(output)!r}", "it is not empty", "choose a new one, or pass `overwrite=True` (`--overwrite`)")
        )  # fmt: skip
    _WRITERS[form](run, output, base)
    return output


def _as_peft(run: Path, output: Path, base: str | None) -> None:
    """PEFT's folder is what was saved; only the base's place may be told anew."""
    import json

    from tunekit.files import write_json

    if not (run / peft_format.CONFIG).is_file():
        plan = Plan.load(run / "plan.yaml")
        raise UnsupportedError(
            error(
                "export-peft", f"what method {plan.method.slug} learnt", "PEFT has no such adapter, or would give other logits",
                "export it merged" if plan.method.merges else "load it with `tunekit.load`",
            )
        )  # fmt: skip
    peft_format.read_config(run)
    output.mkdir(parents=True, exist_ok=True)
    for name in (peft_format.WEIGHTS, *_beside(run)):
        shutil.copy2(run / name, output / name)
    config = json.loads((run / peft_format.CONFIG).read_text("utf-8"))
    write_json(output / peft_format.CONFIG, {**config, **({"base_model_name_or_path": base} if base else {})})


def _beside(run: Path) -> list[str]:
    """Tokenizer, card, plan and record, whichever are there."""
    wanted = (
        "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt",
        "spiece.model", "tokenizer.model", "added_tokens.json", "README.md", "plan.yaml", "record.json",
    )  # fmt: skip
    return [name for name in wanted if (run / name).is_file()]


def _merged(run: Path, output: Path, base: str | None) -> None:
    opened = reopen(run, base=base, quantized=False)
    whole: Any = opened.model if (run / "config.json").is_file() else merge(opened.model)
    whole.save_pretrained(output)
    _finish(opened, run, output)


def _as_adapterhub(run: Path, output: Path, base: str | None) -> None:
    plan = Plan.load(run / "plan.yaml")
    writers = {"bottleneck-adapter": adapterhub.write, "adapter-fusion": adapterhub_fusion.write}
    if plan.method.slug not in writers or not (run / delta_format.CONFIG).is_file():
        raise UnsupportedError(
            error(
                "export-adapterhub", f"what method {plan.method.slug} learnt", "AdapterHub's format is written of bottleneck adapters and fusions",
                "export it as `peft` or `merged`",
            )
        )  # fmt: skip
    opened = reopen(run, base=base)
    writers[plan.method.slug](opened.model, output)
    _finish(opened, run, output)


def _finish(opened: Reopened, run: Path, output: Path) -> None:
    import json

    opened.tokenizer.save_pretrained(str(output))
    record = run / "record.json"
    write_card(output, opened.plan, json.loads(record.read_text("utf-8")) if record.is_file() else None)


_WRITERS: Mapping[str, Callable[[Path, Path, str | None], None]] = {
    "peft": _as_peft,
    "merged": _merged,
    "adapterhub": _as_adapterhub,
}
