"""A plan's file: read strictly, written whole or not at all. What the fields mean is `tunekit.plan`'s business."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tunekit.errors import InvalidError, MissingError, OccupiedError, UnreadableError, raise_all
from tunekit.files import write_text
from tunekit.finding import error

MOST_BYTES = 4_000_000
"""The largest plan that is read: ten thousand class names take a tenth of it."""


def read_file(path: Path) -> Any:
    """The plain values in a YAML or (by its name) JSON file; nothing in it is executed.

    Raises:
        MissingError: `plan-file-missing`.
        UnreadableError: `plan-file-unreadable`: no text, no YAML or JSON, no permission.
        InvalidError: `plan-field-twice`: YAML and JSON readers would keep the last of two values in silence.
    """
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "no such file"
        raise MissingError(
            error("plan-file-missing", f"plan file {path}", why, "write one with `tunekit advise ... --save plan.yaml`")
        )
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, a plan at most {MOST_BYTES:,}")
        text = path.read_text("utf-8")
        return read_json(text) if path.suffix.lower() == ".json" else read_yaml(text)
    except InvalidError:
        raise
    except (OSError, ValueError, RecursionError) as e:
        reason = " ".join(str(e).split())[:200]
        fix = "a plan file is UTF-8 YAML or JSON that you may read"
        raise UnreadableError(error("plan-file-unreadable", f"plan file {path}", reason, fix)) from None


def read_json(text: str) -> Any:
    """Plain values from JSON; a key that stands twice in one mapping is an error.

    Raises:
        ValueError: the text is not JSON.
        InvalidError: `plan-field-twice`.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice([k for k, _ in pairs])
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def read_yaml(text: str) -> Any:
    """Plain values from YAML; a key that stands twice in one mapping is an error.

    Raises:
        ValueError: the text is not YAML, or names an object to be built.
        InvalidError: `plan-field-twice`.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _refuse_twice([k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, AttributeError, KeyError, OverflowError) as e:
        # PyYAML's constructors trust the tags: `!!timestamp x` ends in an AttributeError of theirs.
        raise ValueError(f"it is no YAML of plain values ({e})") from None


def to_yaml(value: Any) -> str:
    """Plain values as YAML that reads back equal, mappings in their own order.

    Example:
        >>> print(to_yaml({"model": "gpt2", "data": {"template": "{question}\\n"}}), end="")
        model: gpt2
        data:
          template: "{question}\\n"
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        # PyYAML folds lines in its other styles and loses what it takes for a line break there, such as U+0085.
        quoted = not value.isprintable()
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)

    Dumper.add_representer(str, text)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def _refuse_twice(keys: list[str]) -> None:
    twice = sorted(k for k, count in Counter(keys).items() if count > 1)
    raise_all(
        error("plan-field-twice", f"`{k}` stands twice", "only one value can count", "remove one of the two")
        for k in twice
    )


def write_file(path: Path, text: str, overwrite: bool) -> None:
    """Writes the text under the name in one step, so that no reader ever sees half a file.

    Raises:
        OccupiedError: `plan-file-exists`, unless `overwrite` is set or the file already holds this text.
        UnreadableError: `plan-file-unwritable`: a folder of that name, no permission, a full disk.
    """
    try:
        if path.is_file() and not overwrite and path.read_bytes() != text.encode():
            fix = "choose another name, or pass `overwrite=True`"
            raise OccupiedError(error("plan-file-exists", f"{path} exists", "it holds something else", fix))
        write_text(path, text)
    except OccupiedError:
        raise
    except OSError as e:
        why = e.strerror or str(e)
        fix = "choose a name you may write"
        raise UnreadableError(error("plan-file-unwritable", f"plan file {path}", why, fix)) from None
