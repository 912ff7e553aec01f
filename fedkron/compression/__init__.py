"""How an update travels: quantized, in one checked blob, with error feedback. Numpy only."""

from fedkron.compression.codecs import CODECS, Codec, codec
from fedkron.compression.error_feedback import encode_with_feedback
from fedkron.compression.payload import (
    HEADER_SIZE,
    PAYLOAD_VERSION,
    Decoded,
    Header,
    decode,
    encode,
    inspect_header,
    payload_size,
)

__all__ = [
    "CODECS",
    "HEADER_SIZE",
    "PAYLOAD_VERSION",
    "Codec",
    "Decoded",
    "Header",
    "codec",
    "decode",
    "encode",
    "encode_with_feedback",
    "inspect_header",
    "payload_size",
]
