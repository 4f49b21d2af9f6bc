"""What bottleneck adapters cost a training step here and in AdapterHub's `adapters`, each over its own bare model.

    python -m venv hub && hub/bin/pip install torch adapters==1.3.0
    python benchmarks/adapter_speed.py --other hub/bin/python

The two libraries need different versions of transformers, so each runs in its own environment, several processes of both in turns.
Within a process the bare model and the adapted ones take single steps in turns, in an order that rotates; what an adapter adds is
the median of the differences to the bare steps before and after. Bare is the frozen model with gradients that flow down to its embeddings, as adapters need
them: what an adapter adds is then its own work alone. Every layer has its adapters, so that two layers (the default) say what six do (`--layers 6`), with
three times as many steps in the same time. Time is the processor's, on one thread. Memory is what the forward pass keeps for the backward one,
tensor by tensor, and the parameters with gradients and AdamW's two moments. The work is counted too, since it does not swing as seconds do:
floating-point operations of the matrix products, and the bytes that all other operations write. Ratios are ours over theirs; up to 1.00 is the aim.
Writes benchmarks/results/adapter_speed.json, one entry a shape, after every pair of processes; a further call goes on to `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adapter_speed.json"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_unsafe_view")
KINDS = {"seq_bn": "pfeiffer", "double_seq_bn": "houlsby", "par_bn": "parallel"}
TASK = "sequence-classification"


def bare(layers: int, width: int) -> Any:
    """A frozen encoder of MiniLM's shape, gradients through all of it."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * width,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**shape, vocab_size=8000))
    for p in model.bert.parameters():
        p.requires_grad_(False)
    model.enable_input_require_grads()
    return model.train()


def adapted(library: str, kind: str, layers: int, width: int) -> Any:
    """The same with an adapter by either library."""
    model = bare(layers, width)
    if library == "adapters":
        import adapters

        adapters.init(model)
        model.add_adapter("a", config=kind)
        model.train_adapter("a")
    else:
        import tunekit

        model = tunekit.prepare(model, tunekit.methods.BottleneckAdapter(variant=KINDS[kind]), TASK)
        # Here the pooler learns as part of the head; over there it does not. The head is not what is compared.
        model.bert.pooler.requires_grad_(False)
    model.enable_input_require_grads()
    return model.train()


def step(model: Any, batch: dict[str, Any]) -> tuple[float, float]:
    """The processor's seconds of a forward pass and of a whole step."""
    start = time.process_time()
    loss = model(**batch).loss
    middle = time.process_time()
    loss.backward()
    end = time.process_time()
    model.zero_grad()
    return middle - start, end - start


def kept_bytes(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that the forward pass keeps for the backward one, parameters apart, each storage once."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def note(t: Any) -> Any:
        s = t.untyped_storage()
        if s.data_ptr() not in own:
            storages[s.data_ptr()] = s.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = model(**batch).loss
    total = sum(storages.values())
    del loss
    return total


def work_of(model: Any, batch: dict[str, Any]) -> tuple[int, int]:
    """Floating-point operations in matrix products, and bytes that other operations write, of one step."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Written(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if not func.is_view and func._schema.name not in PRODUCTS:
                every = made if isinstance(made, tuple | list) else (made,)
                self.total += sum(t.nbytes for t in every if isinstance(t, torch.Tensor))
            return made

    with FlopCounterMode(display=False) as counted, Written() as written:
        model(**batch).loss.backward()
    model.zero_grad()
    return counted.get_total_flops(), written.total


def work(library: str, asked: argparse.Namespace) -> None:
    """One environment's measurements as a line of JSON."""
    import torch

    torch.set_num_threads(asked.threads)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(8000, (asked.batch, asked.tokens), generator=draw)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(asked.batch) % 2}
    models = {"bare": bare(asked.layers, asked.width)}
    models |= {kind: adapted(library, kind, asked.layers, asked.width) for kind in KINDS}
    for _ in range(3):
        for model in models.values():
            step(model, batch)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    names = list(models)
    for number in range(asked.steps):
        for at in range(len(names)):
            name = names[(at + number) % len(names)]
            taken[name].append(step(models[name], batch))
    learnt = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in models.items()}
    works = {n: work_of(m, batch) for n, m in models.items()}
    kept = {n: kept_bytes(m, batch) for n, m in models.items()}
    result = {}
    for kind in KINDS:
        result[kind] = {
            "bare_seconds": statistics.median(b[1] for b in taken["bare"]),
            "bare_forward": statistics.median(b[0] for b in taken["bare"]),
            "added_seconds": added(taken, kind, 1),
            "added_forward": added(taken, kind, 0),
            "bare_bytes": kept["bare"],
            "added_bytes": kept[kind] - kept["bare"] + 16 * (learnt[kind] - learnt["bare"]),
            "added_flops": works[kind][0] - works["bare"][0],
            "added_written_bytes": works[kind][1] - works["bare"][1],
        }
    print(json.dumps(result))


def added(taken: dict[str, list[tuple[float, float]]], kind: str, part: int) -> float:
    """The median over the steps of what an adapted one takes more than the mean of the bare ones around it."""
    plain = [b[part] for b in taken["bare"]]
    around = [statistics.fmean(plain[max(0, i - 1) : i + 2]) for i in range(len(plain))]
    return statistics.median(a[part] - b for a, b in zip(taken[kind], around, strict=True))


def measured(python: str, library: str, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One run in an environment."""
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("layers", "width", "batch", "tokens", "steps", "threads")]
    command = [python, __file__, "--work", library, *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{library} in {python} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Both libraries side by side, and the ratios of what they add."""
    lines = [
        f"{'kind':15}{'library':10}{'bare, ms':>10}{'added, ms':>11}{'forward, ms':>13}{'bare, MiB':>11}{'added, MiB':>12}"
        f"{'added, GFLOP':>14}{'written, MiB':>14}"
    ]
    for kind in KINDS:
        middle: dict[str, dict[str, float]] = {}
        for library, runs in found.items():
            m = middle[library] = {k: statistics.median(r[kind][k] for r in runs) for k in runs[0][kind]}
            lines.append(
                f"{kind:15}{library:10}{1e3 * m['bare_seconds']:10.1f}{1e3 * m['added_seconds']:11.2f}"
                f"{1e3 * m['added_forward']:13.2f}{m['bare_bytes'] / 2**20:11.1f}{m['added_bytes'] / 2**20:12.2f}"
                f"{m['added_flops'] / 1e9:14.3f}{m['added_written_bytes'] / 2**20:14.1f}"
            )
        ours, theirs = middle["tunekit"], middle["adapters"]
        per_round = [
            a[kind]["added_seconds"] / b[kind]["added_seconds"]
            for a, b in zip(found["tunekit"], found["adapters"], strict=True)
        ]
        lines.append(
            f"{'':15}{'ratio':10}{'':10}{ours['added_seconds'] / theirs['added_seconds']:11.2f}"
            f"{ours['added_forward'] / theirs['added_forward']:13.2f}{'':11}{ours['added_bytes'] / theirs['added_bytes']:12.2f}"
            f"{ours['added_flops'] / theirs['added_flops']:14.2f}{ours['added_written_bytes'] / theirs['added_written_bytes']:14.2f}"
            f"   by process {min(per_round):.2f} to {max(per_round):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", help="the Python of an environment with AdapterHub's adapters 1.3")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each environment")
    parser.add_argument("--steps", type=int, default=60, help="of each model in a process")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--work", choices=("tunekit", "adapters"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return work(asked.work, asked)
    if not asked.other:
        print("skipped: needs --other, the Python of an environment with adapters 1.3 (see the top of this file)")
        return None
    shape = {n: getattr(asked, n) for n in ("layers", "width", "batch", "tokens", "steps", "threads")}
    key = ", ".join(f"{value} {name}" for name, value in shape.items())
    told = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() and not asked.again else {}
    found = told.setdefault(key, {"tunekit": [], "adapters": []})
    for number in range(len(found["tunekit"]), asked.rounds):
        turns = [("tunekit", sys.executable), ("adapters", asked.other)]
        both = {name: measured(python, name, asked) for name, python in (turns if number % 2 == 0 else turns[::-1])}
        for name, one in both.items():
            found[name].append(one)
        RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(report(found), flush=True)
    return None


if __name__ == "__main__":
    main()
