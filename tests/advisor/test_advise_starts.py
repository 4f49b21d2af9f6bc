"""What is ranked as fitting passes `tunekit.check` and starts."""

from __future__ import annotations

from pathlib import Path

import tunekit

LABELLED = [{"text": f"{'good fine' if i % 2 else 'bad poor'} film {i}", "label": i % 2} for i in range(24)]


def test_every_ranked_plan_passes_the_check_and_starts(tiny_encoder: str, tmp_path: Path) -> None:
    advice = tunekit.advise(tiny_encoder, LABELLED, hardware="cpu")
    assert len(advice.ranked) >= 5
    for i, entry in enumerate(advice.ranked):
        plan = entry.plan.replace(output_dir=str(tmp_path / str(i)), max_steps=1)
        made = tunekit.trainer(plan, train_dataset=LABELLED, save_strategy="no", report_to="none")
        faults = [f for f in tunekit.check(made) if f.severity == "error"]
        assert not faults, f"{entry.plan.method.slug}: {faults}"
        assert made.train().global_step == 1, entry.plan.method.slug
