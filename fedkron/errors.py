"""Every error that fedkron raises on purpose.

    FedKronError
    ├── ConfigError     a setting is missing, unknown or out of range
    ├── AdapterError    an adapter cannot be attached to, or loaded into, this model
    ├── ContractError   an adapter, payload or bundle belongs to another base or layout
    ├── PayloadError    bytes that are not a payload we may decode
    ├── TaskError       a task's data is missing or malformed
    ├── BundleError     an exported bundle is incomplete, damaged or foreign
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


class TaskError(FedKronError):
    """A task's data is missing or malformed."""


class BundleError(FedKronError):
    """An exported bundle is incomplete, damaged or foreign."""


class RunError(FedKronError):
    """A federated run could not start, or failed."""
