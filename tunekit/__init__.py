"""tunekit: which fine-tuning method should I use, will it fit, how long will it take, and set it up for me.

The public face. Everything is loaded when it is first asked for; importing this computes nothing and brings in no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "advisor" / "rule.py").is_file() and str(_ROOT) not in __path__:
    # From a checkout the sibling folders are the subpackages `tunekit.advisor` and `tunekit.callbacks`.
    __path__.append(str(_ROOT))


def _refuse_namesake() -> None:
    """Another project owns the name `tunekit` on the package index; installed beside this one it overwrites files of it."""
    import sys

    for folder in {str(_ROOT), *sys.path}:
        for found in Path(folder or ".").glob("tunekit-*.dist-info"):
            raise ImportError(
                f"the distribution `tunekit` ({found}) is another project that installs into the same folder as "
                "`tunekit-hf`. Remove both and install this one again: "
                "`pip uninstall -y tunekit tunekit-hf && pip install tunekit-hf`."
            )


_refuse_namesake()

_WHERE = {
    "Advice": "tunekit.advice",
    "DataFacts": "tunekit.workload",
    "DataSpec": "tunekit.plan",
    "Finding": "tunekit.finding",
    "Hardware": "tunekit.workload",
    "MemoryEstimate": "tunekit.estimate",
    "Method": "tunekit.contracts",
    "ModelFacts": "tunekit.workload",
    "Objective": "tunekit.contracts",
    "Plan": "tunekit.plan",
    "Task": "tunekit.task",
    "TimeEstimate": "tunekit.estimate",
    "TrainerMixin": "tunekit.mixin",
    "TunekitError": "tunekit.errors",
    "Workload": "tunekit.workload",
    "active_adapters": "tunekit.adapters",
    "adapter_names": "tunekit.adapters",
    "add_adapter": "tunekit.adapters",
    "add_weighted_adapter": "tunekit.adapters",
    "advise": "tunekit.assemble",
    "calibrate": "tunekit.calibrating",
    "calibrate_prompt": "tunekit.prompting",
    "check": "tunekit.checking",
    "collator": "tunekit.assemble",
    "delete_adapter": "tunekit.adapters",
    "estimate_memory": "tunekit.assemble",
    "estimate_time": "tunekit.assemble",
    "export": "tunekit.interchange.exporting",
    "import_plan": "tunekit.interchange.importing",
    "init": "tunekit.starting",
    "last_checkpoint": "tunekit.checkpoint",
    "load": "tunekit.attach",
    "make_student": "tunekit.student",
    "merge": "tunekit.merging",
    "optimizer": "tunekit.assemble",
    "prepare": "tunekit.attach",
    "probe": "tunekit.probing",
    "prompt_scores": "tunekit.prompting",
    "reopen": "tunekit.run_folder",
    "run": "tunekit.running",
    "search_label_words": "tunekit.prompting",
    "self_train": "tunekit.self_training",
    "set_adapter": "tunekit.adapters",
    "teach": "tunekit.teaching",
    "trainer": "tunekit.assemble",
    "unload": "tunekit.attach",
}

__all__ = [*_WHERE, "__version__", "callbacks", "methods", "objectives"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    import importlib

    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in ("methods", "objectives", "callbacks"):
        value = importlib.import_module(f"tunekit.{name}")
    else:
        raise AttributeError(f"module 'tunekit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from tunekit import callbacks, methods, objectives
    from tunekit.adapters import (
        active_adapters,
        adapter_names,
        add_adapter,
        add_weighted_adapter,
        delete_adapter,
        set_adapter,
    )
    from tunekit.advice import Advice
    from tunekit.assemble import (
        advise,
        collator,
        estimate_memory,
        estimate_time,
        optimizer,
        trainer,
    )
    from tunekit.attach import load, prepare, unload
    from tunekit.calibrating import calibrate
    from tunekit.checking import check
    from tunekit.checkpoint import last_checkpoint
    from tunekit.contracts import Method, Objective
    from tunekit.errors import TunekitError
    from tunekit.estimate import MemoryEstimate, TimeEstimate
    from tunekit.finding import Finding
    from tunekit.interchange.exporting import export
    from tunekit.interchange.importing import import_plan
    from tunekit.merging import merge
    from tunekit.mixin import TrainerMixin
    from tunekit.plan import DataSpec, Plan
    from tunekit.probing import probe
    from tunekit.prompting import calibrate_prompt, prompt_scores, search_label_words
    from tunekit.run_folder import reopen
    from tunekit.running import run
    from tunekit.self_training import self_train
    from tunekit.starting import init
    from tunekit.student import make_student
    from tunekit.task import Task
    from tunekit.teaching import teach
    from tunekit.workload import DataFacts, Hardware, ModelFacts, Workload
