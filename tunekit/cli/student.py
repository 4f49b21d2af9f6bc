"""`tunekit student`: a shallower student made of a teacher's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command


@command
def answer(
    teacher: Annotated[str, typer.Argument(help="Folder or hub id of a model fine-tuned for the task.")],
    folder: Annotated[str, typer.Argument(help="Where the student is written.")],
    task: Annotated[str, typer.Option(help="What both are for.")],
    layers: Annotated[int, typer.Option(help="Layers of the student.")],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Make a student with fewer layers: every k-th of the teacher's, its embeddings and its head.

    [dim]Example:[/dim] tunekit student runs/teacher student --task sequence-classification --layers 3
    """
    import transformers

    from tunekit.errors import OccupiedError
    from tunekit.finding import error
    from tunekit.pretrained import check_folder, load_tokenizer
    from tunekit.student import make_student
    from tunekit.task import Task

    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise OccupiedError(
            error("output-occupied", f"output folder {folder!r}", "it is not empty", "name a new folder")
        )
    check_folder(teacher)
    auto = getattr(transformers, Task.named(task).auto_class)
    tokenizer = load_tokenizer(teacher)
    made = make_student(auto.from_pretrained(teacher, trust_remote_code=False), layers)
    made.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = {
        "folder": folder, "layers": {k: list(v) for k, v in made.layers.items()}, "num_parameters": made.num_parameters,
        "teacher_parameters": made.teacher_parameters,
    }  # fmt: skip
    return Answer(data=data, text=lambda: f"{made}\nsaved {folder}")
