"""The devices of this machine, or of one described in words, read into facts."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, MissingError
from tunekit.finding import error, nearest
from tunekit.workload import Hardware

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 2**30
_GRAIN = GIB // 4
"""Free memory is read in these steps, so that the same machine gives the same advice from one minute to the next."""
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:g|gb|gib)$", re.IGNORECASE)
_COUNT = re.compile(r"^(\d+)\s*[x*]\s*(.+)$", re.IGNORECASE)


def hardware(spec: str | Hardware = "auto") -> Hardware:
    """The devices that a run may use.

    Args:
        spec: `auto` (the CUDA devices of this machine, else its CPU), `cpu`, a card's name (`H100`), a memory size for a
            card without a name (`24GB`; GB is read as GiB, as cards are sold), either with the number of devices
            before it (`2x24GB`) and of machines before that (`4x8xH100`), or a `Hardware`.

    Raises:
        InvalidError: `hardware-unknown`, naming the nearest known card; `hardware-count`.
        MissingError: `hardware-absent` where the machine was said to have devices and has none.

    Example:
        >>> h = hardware("4x8xH100")
        >>> h.num_machines, h.num_devices, h.bf16
        (4, 8, True)
        >>> hardware("2x24GB").memory_bytes == 24 * 2**30
        True
    """
    if isinstance(spec, Hardware):
        return spec
    if not isinstance(spec, str):
        raise InvalidError(
            error(
                "hardware-unknown",
                f"hardware {spec!r}",
                "it must be a text or a `tunekit.Hardware`",
                'write `hardware="24GB"`',
            )
        )
    text = spec.strip()
    if text.lower() == "auto":
        return cuda_here() or cpu_here()
    if text.lower() == "cpu":
        return cpu_here()
    if text.lower() in ("cuda", "gpu"):
        return cuda_here() or _no_device(text)
    return _described(text)


# ---------------------------------------------------------------------------------------------- in words
def _described(text: str) -> Hardware:
    """A description such as `4x8xH100`."""
    counts: list[int] = []
    name = text
    while (match := _COUNT.match(name)) and len(counts) < 2:
        counts.append(int(match[1]))
        name = match[2].strip()
    machines, devices = (1, *counts)[-2:] if counts else (1, 1)
    if machines < 1 or devices < 1:
        raise InvalidError(
            error("hardware-count", f"hardware {text!r}", "there must be at least one device", f'write "{name}"')
        )
    shared: dict[str, Any] = {
        "device": "cuda", "num_devices": devices, "num_machines": machines,
    }  # fmt: skip
    if size := _SIZE.match(name):
        many: dict[str, Any] = {"interconnect": "pcie" if devices > 1 else "none"}
        return Hardware(name=name, memory_bytes=_positive(size[1], text), **shared, **many)
    card, facts = _card(name, text)
    return Hardware(
        name=card,
        memory_bytes=int(facts["memory_gib"] * GIB),
        bf16=bool(facts["bf16"]),
        interconnect=facts.get("interconnect", "pcie") if devices > 1 else "none",
        **shared,
    )


def _positive(number: str, text: str) -> int:
    if not float(number) > 0:
        raise InvalidError(error("hardware-count", f"hardware {text!r}", "a device has some memory", 'write "24GB"'))
    return int(float(number) * GIB)


def _card(name: str, text: str) -> tuple[str, Mapping[str, Any]]:
    """The catalogue's name and facts of a card, however its name is spelt."""
    known = devices()
    plain = _plain(name)
    for card, facts in known.items():
        if plain in {_plain(card), *map(_plain, facts.get("aliases", ()))}:
            return card, facts
    names = (*known, "24GB", "cpu")
    wrong = "a run on several CPUs is not planned; each machine is one" if plain == "cpu" else "no such card is known"
    fix = f"{nearest(name.upper(), names)} Or give its memory, such as `24GB`" if plain != "cpu" else "write `cpu`"
    raise InvalidError(error("hardware-unknown", f"hardware {text!r}", wrong, fix))


def _plain(name: str) -> str:
    """A card's name without what people leave out: the maker, the series, spaces and hyphens, `GB`."""
    text = re.sub(r"[\s\-_/]", "", name.lower())
    text = re.sub(r"^(nvidia)?(geforce|tesla|quadro)?(rtx)?", "", text)
    return re.sub(r"gi?b$", "", text)


@lru_cache(maxsize=1)
def devices() -> Mapping[str, Mapping[str, Any]]:
    """The catalogue of cards, by name."""
    from importlib.resources import files

    import yaml

    table = yaml.safe_load(files("tunekit.advisor.catalogue").joinpath("devices.yaml").read_text("utf-8"))
    return {name: facts for name, facts in table.items() if isinstance(facts, dict) and "memory_gib" in facts}


# ---------------------------------------------------------------------------------------------- this machine
def cuda_here() -> Hardware | None:
    """The CUDA devices that this process may use, or None. Asks the driver; creates no context on any device."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = _visible([pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())])
        if not handles:
            return None
        free = min(pynvml.nvmlDeviceGetMemoryInfo(h).free for h in handles)
        name = pynvml.nvmlDeviceGetName(handles[0])
        return Hardware(
            device="cuda",
            name=name if isinstance(name, str) else name.decode(),
            num_devices=len(handles),
            memory_bytes=_floor(free),
            bf16=all(pynvml.nvmlDeviceGetCudaComputeCapability(h)[0] >= 8 for h in handles),
            interconnect=_interconnect(handles),
            **_host(),
        )
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _visible(handles: list[Any]) -> list[Any]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves, by number or by unique id."""
    import pynvml

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return handles
    ids = {_text(pynvml.nvmlDeviceGetUUID(h)): h for h in handles}
    picked = []
    for word in (w.strip() for w in chosen.split(",")):
        by_id = [h for uuid, h in ids.items() if word and uuid.startswith(word)]
        if word.isdigit() and int(word) < len(handles):
            picked.append(handles[int(word)])
        elif len(by_id) == 1:
            picked.append(by_id[0])
        else:  # CUDA ignores what follows an id it does not know
            break
    return picked


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _interconnect(handles: list[Any]) -> Any:
    import pynvml

    if len(handles) == 1:
        return "none"
    try:
        return "nvlink" if pynvml.nvmlDeviceGetNvLinkState(handles[0], 0) else "pcie"
    except pynvml.NVMLError:
        return "pcie"


def cpu_here() -> Hardware:
    """This machine's CPU with the memory that is free for a process, in steps of a quarter GiB."""
    import platform

    host = _host()
    cores = host["host_cores"]
    return Hardware(
        device="cpu",
        name=f"CPU, {cores} core{'s' if cores != 1 else ''}",
        memory_bytes=host["host_memory_bytes"],
        bf16=platform.machine() == "x86_64" and _cpu_bf16(),
        **host,
    )


def _cpu_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _host() -> dict[str, Any]:
    """Memory free now, usable cores and free disk of this machine."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = min([psutil.virtual_memory().available, *_container_memory()])
    return {
        "host_memory_bytes": _floor(free),
        "host_cores": cores,
        "disk_free_bytes": psutil.disk_usage(os.getcwd()).free // GIB * GIB,
    }


def _container_memory() -> list[int]:
    """What a container's limit leaves, where there is one."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return [int(Path(limit).read_text()) - int(Path(used).read_text())]
        except (OSError, ValueError):
            continue
    return []


def _floor(size_bytes: int) -> int:
    return max(size_bytes // _GRAIN, 1) * _GRAIN


def _no_device(text: str) -> Hardware:
    raise MissingError(
        error(
            "hardware-absent",
            f"hardware {text!r}",
            "this machine has no CUDA device",
            'write `hardware="cpu"`, or name a card such as "24GB"',
        )
    )
