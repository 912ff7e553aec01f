"""Which settings go together: what the server does with adapters can be combined in some ways only."""

from __future__ import annotations

from fedkron.aggregation.robust_rules import MEAN
from fedkron.errors import ConfigError
from fedkron.settings.schema import (
    ADAPTIVE_CLIPPING,
    BFLOAT16,
    CENTRAL_PRIVACY,
    EQUAL_SIZES,
    FLOAT32,
    LOCAL_PRIVACY,
    ONE_GROUP,
    OWN_SIZES,
    SERVER_OPTIMIZERS,
    Settings,
)


def check_combination(settings: Settings) -> None:
    """Raise `ConfigError` that names a setting, its value, and what it goes with."""
    aggregation, groups, server = settings.aggregation, settings.groups.by, settings.server.strategy
    own_sizes = settings.adapter.sizes == OWN_SIZES
    privacy = settings.privacy
    central, local = privacy.kind == CENTRAL_PRIVACY, privacy.kind == LOCAL_PRIVACY
    rule = settings.robust.rule
    robust = rule != MEAN
    half = settings.base_dtype == BFLOAT16
    for key, value, excluded, others in (
        # What weights in bf16 are multiplied with is rounded to bf16 as well.
        (
            "base-dtype",
            BFLOAT16,
            half and settings.train.precision == FLOAT32,
            "train.precision = 'auto' or 'bfloat16'",
        ),
        # Terms are added to the base's weights, in which they would be rounded away.
        (
            "base-dtype",
            BFLOAT16,
            half and aggregation in ("stacked", "merged_exact"),
            "aggregation = 'factorwise', 'alternating' or 'merged'",
        ),
        ("adapter.sizes", OWN_SIZES, own_sizes and aggregation != "merged", "aggregation = 'merged'"),
        ("groups.by", groups, groups != ONE_GROUP and own_sizes, "adapter.sizes = 'equal'"),
        (
            "groups.by",
            groups,
            groups != ONE_GROUP and aggregation not in ("factorwise", "merged"),
            "aggregation = 'factorwise' or 'merged'",
        ),
        (
            "server.strategy",
            server,
            server in SERVER_OPTIMIZERS and (groups != ONE_GROUP or aggregation == "stacked"),
            "groups.by = 'one', and not with aggregation = 'stacked'",
        ),
        # The noise of the server fits a mean in which one update has the share 1/n, whatever the others are.
        (
            "privacy.kind",
            CENTRAL_PRIVACY,
            central and aggregation != "factorwise",
            "aggregation = 'factorwise'",
        ),
        ("privacy.kind", CENTRAL_PRIVACY, central and groups != ONE_GROUP, "groups.by = 'one'"),
        ("privacy.kind", CENTRAL_PRIVACY, central and settings.robust.rule != MEAN, "robust.rule = 'mean'"),
        (
            "privacy.kind",
            CENTRAL_PRIVACY,
            central and settings.secure.aggregation,
            "secure.aggregation = false: the server has to clip each update; choose privacy.kind = 'local'",
        ),
        # Flower's mod takes one record of arrays.
        (
            "privacy.kind",
            LOCAL_PRIVACY,
            local and aggregation in ("alternating", "stacked", "merged_exact"),
            "aggregation = 'factorwise' or 'merged'",
        ),
        (
            "privacy.clipping",
            ADAPTIVE_CLIPPING,
            privacy.clipping == ADAPTIVE_CLIPPING and not central,
            "privacy.kind = 'central'",
        ),
        ("robust.rule", rule, robust and own_sizes, "adapter.sizes = 'equal'"),
        (
            "robust.rule",
            rule,
            robust and aggregation not in ("factorwise", "merged"),
            "aggregation = 'factorwise' or 'merged'",
        ),
        *_excluded_by_secure_aggregation(settings),
    ):
        if excluded:
            raise ConfigError(f"run-config key {key!r} is {value!r}: it goes only with {others}")


def _excluded_by_secure_aggregation(settings: Settings) -> list[tuple[str, str, bool, str]]:
    """What needs single uploads cannot be had where the server sees their sum only."""
    secure = settings.secure.aggregation
    return [
        (key, value, secure and value != allowed, f"secure.aggregation = false (with it: {allowed!r})")
        for key, value, allowed in (
            ("aggregation", settings.aggregation, "factorwise"),
            ("groups.by", settings.groups.by, ONE_GROUP),
            ("adapter.sizes", settings.adapter.sizes, EQUAL_SIZES),
            ("robust.rule", settings.robust.rule, MEAN),
        )
    ]
