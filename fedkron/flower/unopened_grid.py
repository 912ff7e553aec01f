"""A CompressedGrid whose replies reach the strategy as they came, to be opened one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedkron.compression import inspect_header
from fedkron.compression.codecs import codec_of_id
from fedkron.compression.payload import payload_sizes
from fedkron.errors import ContractError, PayloadError
from fedkron.flower.awaited import Awaited, packed
from fedkron.flower.grid import CompressedGrid
from fedkron.flower.secure_wire import is_masked
from fedkron.flower.uploads import Packed, Upload
from fedkron.flower.wire import is_packed, message_bytes

MOST_BESIDE_UPLOADS = 1 << 16
"""Bytes: metrics, origin and envelope of a reply take two or three kilobytes."""


class UnopenedGrid(CompressedGrid):
    """For `FedKron(uploads=grid.uploads)`. What can be refused without decoding is refused on arrival.

    A reply's uploads are kept until they are asked for, or the next messages are pushed.
    """

    def __init__(self, grid: Grid, **options: Any) -> None:  # noqa: ANN401
        super().__init__(grid, **options)
        self._unopened: dict[str, Mapping[str, Upload]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode and push messages; forgets uploads that nobody has asked for."""
        self._unopened.clear()
        return super().push_messages(messages)

    def uploads(self, reply: Message) -> Mapping[str, Upload]:
        """The uploads in a reply, by record key."""
        return self._unopened.pop(reply.metadata.reply_to_message_id, {})

    def _take(self, reply: Message, memory: Awaited) -> None:
        uploads = {k: packed(k, r, memory) for k, r in reply.content.items() if is_packed(r)}
        beside = message_bytes(reply) - sum(len(upload.payload) for upload in uploads.values())
        if any(is_masked(record) for record in reply.content.values()):
            # Secure aggregation knows its size; a word of 8 bytes has at least one number.
            beside -= sum(8 * reference.layout.size for reference in memory.references.values())
        if beside > MOST_BESIDE_UPLOADS:
            raise PayloadError(
                f"reply has {beside} bytes beside its uploads, {MOST_BESIDE_UPLOADS} are the most"
            )
        # To measure an upload is to decode it, in most codecs: while slower nodes are still at work.
        checked = {key: self._checked(upload).measured() for key, upload in uploads.items()}
        self._unopened[reply.metadata.reply_to_message_id] = checked

    def _checked(self, upload: Packed) -> Packed:
        """The upload, after all that can be told without decoding it."""
        header = inspect_header(upload.payload)
        upload.check(header)
        if header.contract != upload.layout.contract:
            raise ContractError(
                f"payload has contract {header.contract[:12]}…, expected {upload.layout.contract[:12]}…"
            )
        if header.codec != (expected := codec_of_id(self._upload.id).name):
            raise PayloadError(f"payload is encoded with {header.codec}, the server asked for {expected}")
        size, sizes = len(upload.payload), payload_sizes(upload.layout, self._upload)
        if size not in sizes:
            raise PayloadError(
                f"payload has {size} bytes, {self._upload.name} makes {sizes[0]} to {sizes[-1]} of it"
            )
        return upload
