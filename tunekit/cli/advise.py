"""`tunekit advise`: which method, will it fit, how long will it take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command


@command
def answer(
    model: Annotated[str, typer.Argument(help="Hub id or local folder; a config.json is enough.")],
    dataset: Annotated[
        str | None, typer.Argument(help="A .jsonl, .csv or .parquet file, a folder of them, or a hub id.")
    ] = None,
    task: Annotated[str, typer.Option(help="A task's name; auto reads it off columns and model.")] = "auto",
    column: Annotated[
        list[str] | None, typer.Option(help="Our column name to the data's, as text=sentence; may be repeated.")
    ] = None,
    hardware: Annotated[str, typer.Option(help='auto, cpu, H100, "4x24GB", "2x8xH200".')] = "auto",
    goal: Annotated[
        str, typer.Option(help="quality, balanced, speed, memory, storage, retention or latency.")
    ] = "balanced",
    method: Annotated[
        list[str] | None, typer.Option(help="Compare only these (see `tunekit methods`); may be repeated.")
    ] = None,
    num_examples: Annotated[int | None, typer.Option(help="Training rows, where there is no dataset.")] = None,
    num_labels: Annotated[int | None, typer.Option(help="Classes, where there is no dataset.")] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="Mean tokens a row, where there is no dataset.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Truncation in tokens.")] = None,
    label_name: Annotated[list[str] | None, typer.Option(help="Names of the classes by id; may be repeated.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A larger model of the same task that is at hand.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapters for related tasks that are at hand; may be repeated.")
    ] = None,
    unlabelled: Annotated[int | None, typer.Option(help="Further rows without labels.")] = None,
    own_loss: Annotated[
        str | None,
        typer.Option(help="Nats a token that the model loses on the rows before training; measure reads its weights."),
    ] = None,
    probe: Annotated[
        int | None, typer.Option(help="Settle a tie at the top: really train the tied plans for so many steps.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the best plan here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the advice as a page here, such as advice.html.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Compare the methods for a model and data: predicted memory and time, reasons, best first.

    Nothing is trained and no weights are read, unless `--probe` or `--own-loss measure` asks for it.

    [dim]Example:[/dim] tunekit advise ./my-model rows.jsonl --hardware 24GB --save plan.yaml
    """
    from tunekit.cli.values import pairs

    columns = pairs(column, "--column") if column else None
    import tunekit

    advice = tunekit.advise(
        model, dataset, task, columns, hardware, cast(Any, goal), method or None, num_examples=num_examples,
        num_labels=num_labels, mean_tokens=mean_tokens, max_length=max_length, label_names=label_name or None,
        teacher=teacher, adapters=adapter or None, unlabelled=unlabelled, own_loss=_loss(own_loss),
    )  # fmt: skip
    if probe is not None:
        from tunekit.probing import probe as settle

        advice, _ = settle(advice, steps=probe)
    saved = f"\n\nsaved {_save_best(advice, save)}; train it with `tunekit train {save}`" if save is not None else ""
    shown = f"\n\nwrote {_write_page(advice, report)}" if report is not None else ""
    return Answer(data=advice.to_dict(), text=lambda: f"{advice}{saved}{shown}")


def _loss(text: str | None) -> Any:
    """The number that was written; what is none is left to `advise` to refuse."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _write_page(advice: Any, path: Path) -> Path:
    from tunekit.files import finite
    from tunekit.report import write_advice_report

    return write_advice_report(finite(advice.to_dict()), path)


def _save_best(advice: Any, path: Path) -> Path:
    from tunekit.errors import MissingError
    from tunekit.finding import error

    if advice.best is None:
        raise MissingError(
            error(
                "nothing-fits",
                f"no plan to save in {path}",
                "no method fits this hardware",
                "look at the advice without `--save`",
            )
        )
    return advice.best.plan.save(path)
