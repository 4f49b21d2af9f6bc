"""Every adapter type that the installed PEFT has: the least settings each needs, and those that no step can be traced with."""

from __future__ import annotations

from typing import Any

import peft

TYPES = sorted(str(getattr(kind, "value", kind)) for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING)
PROMPT: dict[str, Any] = {"num_virtual_tokens": 6, "task_type": "CAUSAL_LM"}
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 100, "target_r": 4, "init_r": 6, "target_modules": ["q_proj"]},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 6, "task_type": "CAUSAL_LM"},
    "CARTRIDGE": PROMPT,
    "IA3": {},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "OFT": {"target_modules": ["q_proj", "v_proj"], "oft_block_size": 8, "r": 0},
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 32},
    "SHIRA": {"r": 2, "target_modules": ["q_proj"]},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3], "target_modules": ["embed_tokens"]},
    "UNILORA": {"target_modules": ["q_proj", "v_proj"], "theta_d_length": 8},
}
CANNOT = {
    "CPT": "its loss looks at which tokens a row has",
    "MULTITASK_PROMPT_TUNING": "every row has to name its task",
    "POLY": "every row has to name its task",
    "SHADOW": "what its layers return is no tensor",
    "XLORA": "it is made of trained adapters",
}
