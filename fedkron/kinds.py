"""The adapter kinds by name. A new kind is one file in `fedkron.adapters` and one line here.

Names only, so that settings can be checked, and plans made, where torch is not installed.
"""

from __future__ import annotations

ADAPTER_KINDS: dict[str, str] = {
    "kron_lora": "fedkron.adapters.kron_lora:KronLoRALinear",
    "lora": "fedkron.adapters.lora:LoRALinear",
    "krona": "fedkron.adapters.krona:KronALinear",
    "adakron": "fedkron.adapters.kron_sum:AdaKronLinear",
    "moka": "fedkron.adapters.kron_sum:MoKALinear",
}
"""Where the layer class of each kind is: `module:class`."""
