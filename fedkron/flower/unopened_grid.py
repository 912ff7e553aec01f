"""A CompressedGrid whose replies reach the strategy as they came, to be opened one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedkron.compression import inspect_header
from fedkron.errors import ContractError
from fedkron.flower.grid import Awaited, CompressedGrid, packed
from fedkron.flower.uploads import Upload
from fedkron.flower.wire import is_packed


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
        for upload in uploads.values():
            header = inspect_header(upload.payload)
            upload.check(header)
            if header.contract != upload.layout.contract:
                raise ContractError(
                    f"payload has contract {header.contract[:12]}…, expected {upload.layout.contract[:12]}…"
                )
        self._unopened[reply.metadata.reply_to_message_id] = uploads
