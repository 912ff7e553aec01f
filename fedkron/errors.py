"""Every error that fedkron raises on purpose.

    FedKronError
    ├── ConfigError     a setting is missing, unknown or out of range
    ├── AdapterError    an adapter cannot be attached to, or loaded into, this model
    ├── ContractError   an adapter, payload or bundle belongs to another base or layout
    ├── PayloadError    bytes that are not a payload we may decode
    │   ├── UnknownVersionError     written by a version that is not known here
    │   ├── UnknownCodecError       encoded with a codec that is not known here
    │   ├── TruncatedPayloadError   bytes are missing at the end
    │   ├── TrailingBytesError      more bytes than the header says
    │   ├── ChecksumError           damaged on the way
    │   ├── NonFiniteError          decodes to NaN or infinity
    │   └── UnknownStateError       a change of a state that the receiver does not have
    ├── SnapshotError   a checkpoint, or a node's kept state, is missing, damaged or of another run
    ├── TaskError       a task's data is missing or malformed
    ├── BundleError     an exported bundle is incomplete, damaged or foreign
    ├── ExchangeError   a published adapter is missing, altered, not trusted, or cannot be published
    ├── AuditError      an audit log that was altered, or does not fit its run
    ├── SecurityError   a key, share or list of nodes that secure aggregation must not accept
    └── RunError        a federated run could not start, or failed

All are `ValueError`s: the caller handed us something that cannot be used. The message says what was
wrong, with which value, and what to do.
"""


class FedKronError(ValueError):
    """Base class: catch this to catch whatever fedkron raises on purpose."""


class ConfigError(FedKronError):
    """A setting is missing, unknown or out of range."""


class AdapterError(FedKronError):
    """An adapter cannot be attached to, or loaded into, this model."""


class ContractError(FedKronError):
    """An adapter, payload or bundle belongs to another base or layout."""


class PayloadError(FedKronError):
    """These bytes are not a payload that we may decode."""


class UnknownVersionError(PayloadError):
    """A payload of a version that is not known here."""


class UnknownCodecError(PayloadError):
    """A payload of a codec that is not known here."""


class TruncatedPayloadError(PayloadError):
    """A payload that lacks bytes at its end."""


class TrailingBytesError(PayloadError):
    """A payload with more bytes than its header says."""


class ChecksumError(PayloadError):
    """A payload that was damaged on the way."""


class NonFiniteError(PayloadError):
    """A payload that decodes to NaN or infinity."""


class UnknownStateError(PayloadError):
    """A change of a state that the receiver does not have, or that leads to another one than it should."""


class SnapshotError(FedKronError):
    """A checkpoint, or a node's kept state, is missing, damaged or of another run."""


class TaskError(FedKronError):
    """A task's data is missing or malformed."""


class BundleError(FedKronError):
    """An exported bundle is incomplete, damaged or foreign."""


class ExchangeError(FedKronError):
    """A published adapter is missing, damaged, altered or not trusted; or one that cannot be published."""


class AuditError(FedKronError):
    """An audit log that was altered, or does not fit its run; or an entry that may not be in one."""


class SecurityError(FedKronError):
    """A key, share, list of nodes or request that secure aggregation must not accept."""


class RunError(FedKronError):
    """A federated run could not start, or failed."""
