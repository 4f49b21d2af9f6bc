"""Who may import whom, read off the source: the table of CONTRIBUTING.md, with every module in exactly one row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from source_tree import modules

ORDER = (
    "files", "notebook", "errors", "finding", "fields", "task", "workload", "structure", "contracts", "discovery", "plan_faults", "plan_combinations", "plan_file",
    "plan", "estimate", "record_text", "advice_text", "advice_html", "advice",
)  # fmt: skip
"""The nouns: each may import what stands before it."""

NOUNS = {f"tunekit.{name}" for name in ORDER}
FORMATS = {"tunekit.snapshot", "tunekit.peft_format", "tunekit.delta_format"}
PROMPTS = {
    "tunekit.attention",
    "tunekit.prefix_attention",
    "tunekit.deep_prompt",
    "tunekit.prompt_vectors",
    "tunekit.soft_prompt",
}
BOTTLENECKS = {"tunekit.attention", "tunekit.sublayers", "tunekit.bottleneck_config", "tunekit.bottleneck"}
HUB = {"tunekit.adapterhub", "tunekit.adapterhub_files", "tunekit.adapterhub_head"}
ADAPTERS = {*BOTTLENECKS, *HUB, "tunekit.adapter_files", "tunekit.adapterhub_fusion", "tunekit.fusion"}
ROWS: dict[str, set[str]] = {
    "tunekit.data": {*NOUNS, "tunekit.data"},
    "tunekit.quantization": NOUNS,
    "tunekit.message_sizes": NOUNS,
    "tunekit.once": set(),
    "tunekit.sharding": {*NOUNS, "tunekit.message_sizes"},
    "tunekit.fsdp": {*NOUNS, "tunekit.sharding"},
    "tunekit.snapshot": NOUNS,
    "tunekit.delta_format": {*NOUNS, "tunekit.snapshot"},
    "tunekit.peft_format": {*NOUNS, "tunekit.snapshot", "tunekit.delta_format"},
    "tunekit.attention": NOUNS,
    "tunekit.packable": {*NOUNS, "tunekit.attention"},
    "tunekit.joining": {*NOUNS, "tunekit.data", "tunekit.packable"},
    "tunekit.prefix_attention": {*NOUNS, "tunekit.attention"},
    "tunekit.deep_prompt": {*NOUNS, "tunekit.attention", "tunekit.prefix_attention"},
    "tunekit.prompt_vectors": set(),
    "tunekit.soft_prompt": {*NOUNS, "tunekit.deep_prompt", "tunekit.prompt_vectors"},
    "tunekit.sublayers": {*NOUNS, "tunekit.attention"},
    "tunekit.bottleneck_config": NOUNS,
    "tunekit.bottleneck": {*NOUNS, "tunekit.sublayers", "tunekit.bottleneck_config"},
    "tunekit.fusion": {*NOUNS, "tunekit.bottleneck"},
    "tunekit.adapterhub_files": {*NOUNS, "tunekit.delta_format"},
    "tunekit.adapterhub_head": {*NOUNS, "tunekit.adapterhub_files", "tunekit.delta_format"},
    "tunekit.adapterhub": {*NOUNS, *BOTTLENECKS, *HUB, "tunekit.delta_format", "tunekit.snapshot"},
    "tunekit.adapterhub_fusion": {
        *NOUNS,
        *BOTTLENECKS,
        *HUB,
        "tunekit.delta_format",
        "tunekit.fusion",
        "tunekit.snapshot",
    },
    "tunekit.adapter_files": {*NOUNS, *BOTTLENECKS, *HUB, "tunekit.delta_format"},
    "tunekit.adapters": {
        *NOUNS,
        *BOTTLENECKS,
        *HUB,
        "tunekit.adapter_files",
        "tunekit.peft_format",
        "tunekit.snapshot",
    },
    "tunekit.methods": {*NOUNS, *FORMATS, *PROMPTS, *ADAPTERS, "tunekit.data", "tunekit.quantization"},
    "tunekit.objectives": {
        *NOUNS,
        "tunekit.attach",
        "tunekit.data",
        "tunekit.own_module",
        "tunekit.quantization",
        "tunekit.sharding",
    },
    "tunekit.own_module": NOUNS,
    "tunekit.student": NOUNS,
    "tunekit.teaching": {*NOUNS, "tunekit.data", "tunekit.material", "tunekit.pretrained"},
    "tunekit.attach": {*NOUNS, *FORMATS, *PROMPTS, *ADAPTERS, "tunekit.adapters"},
    "tunekit.prompting": {*NOUNS, "tunekit.data", "tunekit.objectives.prompt_learning"},
    "tunekit.scores": NOUNS,
    "tunekit.calibration": NOUNS,
    "tunekit.metrics": {*NOUNS, "tunekit.data", "tunekit.scores"},
    "tunekit.host": NOUNS,
    "tunekit.sampler": NOUNS,
    "tunekit.rewind": NOUNS,
    "tunekit.pretrained": {*NOUNS, "tunekit.data", "tunekit.quantization"},
    "tunekit.material": {*NOUNS, "tunekit.once", "tunekit.data", "tunekit.pretrained"},
    "tunekit.samples": {*NOUNS, "tunekit.metrics"},
    "tunekit.field_docs": NOUNS,
    "tunekit.commented": {*NOUNS, "tunekit.field_docs"},
    "tunekit.code_docs": set(),
    "tunekit.run_folder": {*NOUNS, "tunekit.attach", "tunekit.pretrained"},
    "tunekit.interchange": {*NOUNS, *FORMATS, *ADAPTERS, "tunekit.attach", "tunekit.run_folder", "tunekit.interchange"},
    "tunekit.preflight": {*NOUNS, "tunekit.data", "tunekit.preflight"},
    "tunekit.report": {*NOUNS, "tunekit.report"},
    "tunekit.advisor": {
        *NOUNS,
        "tunekit.advisor",
        "tunekit.attention",
        "tunekit.calibration",
        "tunekit.data",
        "tunekit.quantization",
        "tunekit.message_sizes",
        "tunekit.sharding",
        "tunekit.activation_store",
        "tunekit.frozen_part",
    },
    "tunekit.advisor.rules": {*NOUNS, "tunekit.advisor.rule"},
    "tunekit.activation_store": NOUNS,
    "tunekit.frozen_part": {*NOUNS, "tunekit.snapshot"},
    "tunekit.activation_cache": {*NOUNS, "tunekit.activation_store", "tunekit.frozen_part"},
    "tunekit.checkpoint": NOUNS,
    "tunekit.out_of_memory": NOUNS,
    "tunekit.saving": {*NOUNS, "tunekit.checkpoint"},
    "tunekit.callbacks": {*NOUNS, "tunekit.preflight", "tunekit.checkpoint", "tunekit.fusion"},
}
"""A module, or the package it lies in, to what it may import, private modules beside it apart; the longest name counts."""

TOP = (
    "tunekit.mixin",
    "tunekit.admission",
    "tunekit.assemble",
    "tunekit.calibrating",
    "tunekit.running",
    "tunekit.starting",
    "tunekit.self_training",
    "tunekit.checking",
    "tunekit.dry_run",
    "tunekit.reload",
    "tunekit.merging",
    "tunekit.probing",
    "tunekit.cli",
    "tunekit.demo",
    "tunekit.__main__",
)
"""They may import everything, and nobody else may import them."""

HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "jinja2", "matplotlib", "numpy", "pandas", "peft", "safetensors",
    "sentence_transformers", "sklearn", "torch", "transformers", "trl",
}  # fmt: skip
"""Slow to import, or optional."""

ON_OPERATORS = "tunekit.advisor.simulate"
"""Its files (the package itself not) are tables over torch's operators, imported when a step is simulated."""

MODULES = modules()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_type_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running(node: ast.AST, into_functions: bool = True) -> Iterator[ast.AST]:
    """Every node below that runs: what stands under TYPE_CHECKING does not."""
    for child in ast.iter_child_nodes(node):
        if is_type_only(child) or (not into_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        yield child
        yield from running(child, into_functions)


def imported(tree: ast.AST, into_functions: bool = True) -> Iterator[tuple[str, str]]:
    """(module, name bound here) of every import."""
    for node in running(tree, into_functions):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield a.name, a.asname or a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                if whole == "tunekit.__version__":
                    continue
                yield (whole if whole in MODULES else str(node.module)), a.asname or a.name


def allowed(module: str) -> set[str] | None:
    """What a module may import; None: everything."""
    if module == "tunekit" or any(within(module, top) for top in TOP):
        return None
    if module in NOUNS:
        return {f"tunekit.{name}" for name in ORDER[: ORDER.index(module.removeprefix("tunekit."))]}
    row = max((row for row in ROWS if within(module, row)), key=len, default=None)
    assert row is not None, f"{module} has no row: place it in the table here and in CONTRIBUTING.md"
    return ROWS[row]


def breaches(module: str, path: Path) -> list[str]:
    may = allowed(module)
    ours = {name for name, _ in imported(ast.parse(path.read_text("utf-8"))) if within(name, "tunekit")}
    if may is None:
        return []
    beside = f"{module.rpartition('.')[0]}._"
    return sorted(n for n in ours - {module} if not n.startswith(beside) and not any(within(n, m) for m in may))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_row_allows(module: str) -> None:
    assert breaches(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "line", "breach"),
    [
        ("tunekit.errors", "from tunekit.finding import error", "tunekit.finding"),
        ("tunekit.methods.lora", "from tunekit.methods.full import Full", "tunekit.methods.full"),
        ("tunekit.methods.lora", "def f():\n    from tunekit import assemble", "tunekit.assemble"),
        ("tunekit.advisor.rules.a", "import tunekit.advisor.simulate", "tunekit.advisor.simulate"),
        ("tunekit.callbacks.a", "class A:\n    def f(self):\n        import tunekit.advisor", "tunekit.advisor"),
        ("tunekit.advisor.propose", "import tunekit", "tunekit"),
    ],
)
def test_the_check_sees_a_forbidden_import(module: str, line: str, breach: str, tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(line)
    assert breaches(module, path) == [breach]


def test_type_only_imports_are_free(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("if TYPE_CHECKING:\n    from tunekit.assemble import trainer")
    assert breaches("tunekit.errors", path) == []


def test_every_row_of_the_table_is_of_a_module_that_exists() -> None:
    assert {*ROWS, *NOUNS, *TOP} <= {*MODULES}


def heavy_for_nothing(path: Path) -> list[str]:
    """Heavy packages imported by importing this file, unless it defines a class that derives from one of theirs."""
    tree = ast.parse(path.read_text("utf-8"))
    top = [(name, bound) for name, bound in imported(tree, into_functions=False) if name.split(".")[0] in HEAVY]
    bound = {b for _, b in top}
    bases = [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    roots = {n.id for base in bases for n in ast.walk(base) if isinstance(n, ast.Name)}
    return [] if roots & bound else sorted(name for name, _ in top)


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    if not module.startswith(f"{ON_OPERATORS}."):
        assert heavy_for_nothing(MODULES[module]) == []


def test_the_check_sees_a_heavy_import(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("import torch\nfrom transformers import Trainer\n")
    assert heavy_for_nothing(path) == ["torch", "transformers"]
    path.write_text("from torch import nn\nclass Block(nn.Module):\n    pass\n")
    assert heavy_for_nothing(path) == []
