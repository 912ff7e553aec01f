"""How an update travels: quantized, entropy-coded, in one checked blob, with error feedback. Numpy only."""

from fedkron.compression.codecs import FAMILIES, Codec, codec
from fedkron.compression.error_feedback import encode_with_feedback
from fedkron.compression.payload import (
    HEADER_SIZE,
    PAYLOAD_VERSION,
    Decoded,
    Header,
    Kind,
    decode,
    encode,
    encode_vector,
    inspect_header,
    payload_sizes,
)

__all__ = [
    "FAMILIES",
    "HEADER_SIZE",
    "PAYLOAD_VERSION",
    "Codec",
    "Decoded",
    "Header",
    "Kind",
    "codec",
    "decode",
    "encode",
    "encode_vector",
    "encode_with_feedback",
    "inspect_header",
    "payload_sizes",
]
