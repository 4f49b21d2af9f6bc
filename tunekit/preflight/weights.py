"""Weights that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, error
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    import torch

    bad = [
        n
        for n, p in subject.model.named_parameters()
        if p.is_floating_point() and p.numel() and p.device.type != "meta" and not bool(torch.isfinite(p.detach().sum(dtype=torch.float32)))
        and not bool(torch.isfinite(p.detach()).all())
    ]  # fmt: skip
    if bad:
        yield error(
            "weights-not-finite", f"{len(bad)} parameters hold nan or inf, such as `{bad[0]}`", "every loss will be nan",
            "load the weights again; a float16 copy of bfloat16 weights overflows",
        )  # fmt: skip


CHECK = Check(slug="weights", title="Weights that are nan or inf.", codes=("weights-not-finite",), look=_look)
