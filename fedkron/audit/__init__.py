"""The audit log of a run (docs/audit.md): signed, chained lines on who sent what and what came of it."""

from fedkron.audit.keys import SigningKey, public_key_of, read_public_key, server_key
from fedkron.audit.lines import Entry, Head
from fedkron.audit.log import AuditLog
from fedkron.audit.verify import Verified, read_log, verify

__all__ = [
    "AuditLog",
    "Entry",
    "Head",
    "SigningKey",
    "Verified",
    "public_key_of",
    "read_log",
    "read_public_key",
    "server_key",
    "verify",
]
