"""What is compared: an adapter kind, how it travels, and whether what a codec leaves out is sent later."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN, SEAM, FORGETFUL = "plain", "seam", "forgetful"
"""Ways to exchange (keys of `federation.EXCHANGES`): plain Flower, ours, ours without error feedback."""

LORA, KRON_LORA = "lora", "kron_lora"
CODECS = ("fp32", "fp16", "int8", "int4", "ecsq:2", "ecsq:1.5", "ecsq:1", "ecsq:0.7", "sign")
WITHOUT_FEEDBACK = ("int4", "ecsq:2", "ecsq:1", "ecsq:0.7", "sign")


@dataclass(frozen=True)
class Scheme:
    """One line of the comparison. `upload` and `broadcast` are codec names; plain Flower sends fp32."""

    name: str
    kind: str
    exchange: str
    upload: str
    broadcast: str


BASELINE = Scheme("LoRA-8", LORA, PLAIN, "fp32", "fp32")
"""What a Flower user sends today: rank-8 factors of every linear layer in float32, aggregated by FedAvg."""

REFERENCE = Scheme("fp32", KRON_LORA, SEAM, "fp32", "fp32")
"""Kron-LoRA as it is without any loss on the way."""

ALL = (
    BASELINE,
    REFERENCE,
    *(Scheme(codec, KRON_LORA, SEAM, codec, codec) for codec in CODECS if codec != "fp32"),
    *(
        Scheme(f"{codec}-no-feedback", KRON_LORA, FORGETFUL, codec, codec)
        for codec in CODECS
        if codec in WITHOUT_FEEDBACK
    ),
)
SCHEMES = {scheme.name: scheme for scheme in ALL}


def lossless(scheme: Scheme) -> Scheme:
    """The scheme of the same kind that loses nothing: with it the learning rate is tuned."""
    return {LORA: BASELINE, KRON_LORA: REFERENCE}[scheme.kind]


def title(scheme: Scheme) -> str:
    """A scheme's name among others."""
    if scheme.exchange == PLAIN:
        return f"{scheme.name}, plain Flower"
    suffix = ", no feedback" if scheme.exchange == FORGETFUL else ""
    codecs = dict.fromkeys((scheme.upload, scheme.broadcast))
    return f"Kron-LoRA {' up, '.join(codecs)}{' down' if len(codecs) > 1 else ''}{suffix}"
