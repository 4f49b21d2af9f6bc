"""How much DeepSpeed sends at once and fetches ahead, from what the simulator leaves free on a card."""

from __future__ import annotations

from dataclasses import dataclass

from tunekit.estimate import MemoryEstimate
from tunekit.plan import Plan
from tunekit.workload import Hardware, ModelFacts

BUCKET_ELEMENTS = 20_000_000
"""Elements that are sent at once where nothing is known: 40 MB in 16 bits, beyond DDP's 25 MiB, where links are already busy."""
_LEAST, _MOST = 5_000_000, 500_000_000
"""The latter is DeepSpeed's own default, a gigabyte in 16 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageSizes:
    """Sizes that change speed and memory, and nothing that is learnt.

    Example:
        >>> MessageSizes().bucket_elements
        20000000
    """

    bucket_elements: int = BUCKET_ELEMENTS
    """Gradients that are reduced, and weights that are gathered, at once."""
    prefetch_elements: int = BUCKET_ELEMENTS
    """ZeRO-3: weights that are fetched ahead of their use."""
    kept_elements: int = 0
    """ZeRO-3: gathered weights stay whole where they are needed again within so many others; 0: they are released after use and
    gathered again for the gradient, as the simulator reckons. DeepSpeed's own default of 1e9 keeps any model of less whole."""
    resident_elements: int = 100_000
    """ZeRO-3: parameters smaller than this stay whole on every rank."""
    machine_copy_ranks: int = 1
    """ZeRO++: ranks of a machine that keep a second, divided copy of all weights among them, so that the backward pass gathers
    within the machine (`zero_hpz_partition_size`); 1: none."""


def message_sizes(plan: Plan, facts: ModelFacts, hardware: Hardware, estimate: MemoryEstimate) -> MessageSizes:
    """Sizes for a plan on some hardware: one block is fetched ahead; of what is free, a quarter goes to larger messages and a
    quarter to weights that need not be gathered twice.

    A second copy within each machine (ZeRO++) pays where the links inside are faster than those between machines, and is
    taken where it fits into half of what is free, in place of the latter. Its quantised messages change what is learnt, and are left out.

    Args:
        plan: With `sharding: zero1`, `zero2` or `zero3`.
        facts: The plan's model.
        hardware: The cards.
        estimate: What the simulator says of the plan on them.

    References:
        Wang et al., ZeRO++: Extremely Efficient Collective Communication for Giant Model Training, 2023.
    """
    size = 2 if plan.mixed_precision or plan.dtype != "float32" else 4
    free = hardware.memory_bytes - estimate.interval[1]
    # Two buckets are in flight while sending overlaps with work, and the estimate has two of the usual size in it.
    bucket = max(_LEAST, min(_MOST, BUCKET_ELEMENTS + free // (8 * size)))
    block = max(1, facts.num_parameters - facts.vocab_size * facts.hidden_size) // max(1, facts.num_layers)
    here = plan.num_processes // plan.num_machines
    copy_bytes = facts.num_parameters * size // here
    fast_inside = plan.num_machines > 1 and here > 1 and hardware.interconnect == "nvlink"
    copies = plan.sharding == "zero3" and fast_inside and copy_bytes < free // 2
    return MessageSizes(
        bucket_elements=bucket,
        prefetch_elements=min(bucket, block),
        kept_elements=0 if copies else max(0, free // (4 * size)),
        resident_elements=10 * facts.hidden_size,
        machine_copy_ranks=here if copies else 1,
    )
