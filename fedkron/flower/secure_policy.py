"""What a node asks of secure aggregation: the run's settings, and what the node's operator adds to them.

A run config comes from whoever starts the run. What a node config says cannot be changed from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context

from fedkron.errors import ConfigError
from fedkron.secure.keys import load_identity, load_peers, new_identity
from fedkron.secure.roster import Policy
from fedkron.settings import SecureSettings

REQUIRED, IDENTITY, PEERS, MIN_NODES = (
    "secure-required",
    "secure-identity",
    "secure-peers",
    "secure-min-nodes",
)
"""Keys of a node config."""


@dataclass(frozen=True)
class NodePolicy:
    """Whether this node answers with masked updates only, with whom, and who it is to the others."""

    required: bool
    rounds: Policy
    identity: Ed25519PrivateKey


def node_policy(context: Context) -> NodePolicy:
    """The policy of this node. Raises `ConfigError` for keys that cannot be read or values of a wrong type.

    Without an identity of its own a node signs with a key that it draws for the moment: signatures then prove
    nothing.
    """
    run, node = context.run_config, context.node_config
    defaults = SecureSettings()
    identity, peers = _path(node, IDENTITY), _path(node, PEERS)
    if peers and not identity:
        raise ConfigError(
            f"node-config key {PEERS!r} is set: this node needs an identity, too ({IDENTITY!r})"
        )
    asked = _of_type(run, "secure.min-nodes", defaults.min_nodes, int)
    rounds = Policy(
        float(_of_type(run, "secure.threshold", defaults.threshold, float, int)),
        max(asked, _of_type(node, MIN_NODES, asked, int)),
        load_peers(peers) if peers else None,
    )
    required = _of_type(node, REQUIRED, False, bool) or _of_type(run, "secure.aggregation", False, bool)
    return NodePolicy(required, rounds, load_identity(identity) if identity else new_identity())


def _path(config: Mapping[str, object], key: str) -> Path | None:
    text = _of_type(config, key, "", str)
    return Path(text) if text else None


def _of_type(config: Mapping[str, object], key: str, default, *kinds: type):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    value = config.get(key, default)
    if type(value) not in kinds:
        raise ConfigError(f"config key {key!r} is {value!r}: it must be of type {kinds[0].__name__}")
    return value
