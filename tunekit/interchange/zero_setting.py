"""What a DeepSpeed setting in another tool's file says of ZeRO's stage and of offloading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.plan_file import read_file


def zero_of(setting: Any, folder: Path) -> tuple[str | None, str | None]:
    """ZeRO's stage and offloading from a DeepSpeed setting: a mapping, a file that is there, or a file's telling name.

    Example:
        >>> zero_of("examples/deepspeed/ds_z3_offload_config.json", Path("."))
        ('zero3', 'parameters')
        >>> zero_of("deepspeed_configs/zero2.json", Path("."))
        ('zero2', None)
    """
    config = setting
    if isinstance(setting, str):
        file = next((p for p in (folder / setting, Path(setting)) if p.is_file()), None)
        config = read_file(file) if file is not None else None
    if isinstance(config, Mapping):
        zero = config.get("zero_optimization") or {}
        zero = zero if isinstance(zero, Mapping) else {}
        stage = zero.get("stage")
        offload = (
            "parameters"
            if _offloads(zero, "offload_param")
            else "optimizer"
            if _offloads(zero, "offload_optimizer")
            else None
        )
        return (f"zero{stage}" if stage in (1, 2, 3) else None), offload if stage in (2, 3) else None
    name = Path(str(setting)).name.lower()
    found = re.search(r"z(?:ero)?_?([123])", name)
    stage = found.group(1) if found else None
    offload = {"3": "parameters", "2": "optimizer"}.get(stage or "") if "offload" in name else None
    return (f"zero{stage}" if stage else None), offload


def _offloads(zero: Mapping[str, Any], part: str) -> bool:
    setting = zero.get(part)
    return isinstance(setting, Mapping) and setting.get("device", "none") not in (None, "none")
