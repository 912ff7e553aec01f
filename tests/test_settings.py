"""The run config: the keys that exist, their defaults, and every kind of value that is refused."""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkron.adapters import AdapterSpec
from fedkron.errors import ConfigError
from fedkron.settings import PartitionSettings, Settings, run_config

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
DEFAULTS = run_config(Settings())


def flattened(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_keys_and_defaults_are_those_of_pyproject() -> None:
    app = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    written = dict(flattened(app["config"]))
    assert written.keys() == DEFAULTS.keys()
    assert Settings.from_run_config(written) == Settings()
    # The types too: Flower refuses to override a value by one of another type.
    assert {key: type(value) for key, value in written.items()} == {k: type(v) for k, v in DEFAULTS.items()}


def test_absent_keys_take_their_defaults() -> None:
    assert Settings.from_run_config({}) == Settings()


CHANGED: dict[str, object] = {
    "base": "some/model",
    "tasks": "one, two,three",
    "num-server-rounds": 7,
    "aggregation": "merged",
    "head": "shared",
    "head-labels": "ham,spam",
    "fraction-train": 0.25,
    "fraction-evaluate": 0.0,
    "max-failure-fraction": 1.0,
    "round-timeout": 12.5,
    "seed": 2**63 - 1,
    "output-dir": "elsewhere",
    "run-name": "first",
    "device": "cpu",
    "base-dtype": "bfloat16",
    "adapter.kind": "lora",
    "adapter.rank": 3,
    "adapter.alpha": 6.0,
    "adapter.dropout": 0.0,
    "adapter.d-a1": 4,
    "adapter.d-a2": 16,
    "adapter.terms": 3,
    "adapter.targets": "*.query,*.value",
    "adapter.sizes": "equal",
    "codec.upload": "fp16",
    "codec.broadcast": "fp32",
    "train.epochs": 2,
    "train.batch-size": 5,
    "train.learning-rate": 1e-5,
    "train.head-learning-rate": 0.5,
    "train.weight-decay": 0.0,
    "train.max-length": 128,
    "train.truncation-side": "left",
    "train.precision": "bfloat16",
    "train.max-train-examples": 9,
    "train.max-test-examples": 8,
    "partition.kind": "dirichlet",
    "partition.alpha": 0.125,
    "server.strategy": "fedprox",
    "server.learning-rate": 0.5,
    "server.proximal-mu": 0.2,
    "robust.rule": "median",
    "robust.attackers": 0.3,
    "groups.by": "cluster",
    "groups.clusters": 4,
    "groups.warm-up": 3,
    "resume": True,
    "admission.norm-limit": 4.0,
    "secure.aggregation": False,
    "secure.levels": 3,
    "secure.threshold": 0.75,
    "secure.min-nodes": 5,
    "privacy.kind": "local",
    "privacy.clipping": "fixed",
    "privacy.clipping-norm": 0.25,
    "privacy.noise-multiplier": 3.0,
    "privacy.delta": 0.01,
}
# What does not go together with some of these.
OTHERWISE = CHANGED | {"adapter.sizes": "own", "groups.by": "one", "robust.rule": "mean"}
PRIVATE = CHANGED | {
    "aggregation": "factorwise",
    "groups.by": "one",
    "robust.rule": "mean",
    "privacy.kind": "central",
    "privacy.clipping": "adaptive",
}
MASKED = CHANGED | {
    "aggregation": "factorwise",
    "groups.by": "one",
    "robust.rule": "mean",
    "secure.aggregation": True,
}


def test_every_key_survives_the_round_trip() -> None:
    assert DEFAULTS.keys() == CHANGED.keys()
    configs = (CHANGED, OTHERWISE, PRIVATE, MASKED)
    assert all({config[key] for config in configs} != {value} for key, value in DEFAULTS.items())
    for config in configs:
        assert run_config(Settings.from_run_config(config)) == config


CENTRAL = {"privacy.kind": "central"}


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_central_privacy_goes_with_all_that_the_server_does_afterwards(strategy: str) -> None:
    assert Settings.from_run_config({**CENTRAL, "server.strategy": strategy}).server.strategy == strategy


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *(
            (
                {"base-dtype": "bfloat16", "aggregation": aggregation},
                "'base-dtype' is 'bfloat16': it goes only with aggregation = 'factorwise', ",
            )
            for aggregation in ("stacked", "merged_exact")
        ),
        (
            {"base-dtype": "bfloat16", "train.precision": "float32"},
            "'base-dtype' is 'bfloat16': it goes only with train.precision = 'auto' or 'bfloat16'",
        ),
        ({"adapter.sizes": "own"}, "'adapter.sizes' is 'own': it goes only with aggregation = 'merged'"),
        (
            {"adapter.sizes": "own", "aggregation": "merged", "groups.by": "task"},
            "'groups.by' is 'task': it goes only with adapter.sizes = 'equal'",
        ),
        (
            {"groups.by": "cluster", "aggregation": "alternating"},
            "'groups.by' is 'cluster': it goes only",
        ),
        ({"server.strategy": "fedadam", "groups.by": "task"}, "'server.strategy' is 'fedadam': it goes only"),
        ({"server.strategy": "fedavgm", "aggregation": "stacked"}, "'server.strategy' is 'fedavgm': it goes"),
        *(
            ({**CENTRAL, **other}, f"'privacy.kind' is 'central': it goes only with {wanted}")
            for other, wanted in (
                ({"aggregation": "merged"}, "aggregation = 'factorwise'"),
                ({"aggregation": "alternating"}, "aggregation = 'factorwise'"),
                ({"aggregation": "merged", "adapter.sizes": "own"}, "aggregation = 'factorwise'"),
                ({"groups.by": "task"}, "groups.by = 'one'"),
                ({"robust.rule": "median"}, "robust.rule = 'mean'"),
                ({"secure.aggregation": True}, "secure.aggregation = false: the server has to clip"),
            )
        ),
        *(
            (
                {"privacy.kind": "local", "aggregation": aggregation},
                "'privacy.kind' is 'local': it goes only with aggregation = 'factorwise' or 'merged'",
            )
            for aggregation in ("alternating", "stacked", "merged_exact")
        ),
        *(
            (
                {"privacy.kind": kind, "privacy.clipping": "adaptive"},
                "'privacy.clipping' is 'adaptive': it goes only with privacy.kind = 'central'",
            )
            for kind in ("none", "local")
        ),
        (
            {"robust.rule": "krum", "aggregation": "alternating"},
            "'robust.rule' is 'krum': it goes only with aggregation = 'factorwise' or 'merged'",
        ),
        (
            {"robust.rule": "median", "adapter.sizes": "own", "aggregation": "merged"},
            "'robust.rule' is 'median': it goes only with adapter.sizes = 'equal'",
        ),
        *(
            (
                {"secure.aggregation": True, **others},
                f"{key!r} is {others[key]!r}: it goes only with secure.aggregation = false "
                f"(with it: {wanted!r})",
            )
            for key, wanted, others in (
                ("aggregation", "factorwise", {"aggregation": "merged"}),
                ("groups.by", "one", {"groups.by": "task"}),
                ("robust.rule", "mean", {"robust.rule": "median"}),
            )
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_would(config: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Settings.from_run_config(config)


@given(st.dictionaries(st.sampled_from(sorted(CHANGED)), st.booleans()))
def test_any_mixture_of_defaults_and_changes_survives_the_round_trip(chosen: dict[str, bool]) -> None:
    config = {key: CHANGED[key] for key in chosen}
    if "head-labels" in config:
        config["head"] = "shared"
    assert run_config(Settings.from_run_config(config)) == {**DEFAULTS, **config}


@pytest.mark.parametrize(
    "key", [key for key, value in DEFAULTS.items() if isinstance(value, float) and key != "privacy.delta"]
)
def test_whole_number_is_taken_where_a_float_is_meant(key: str) -> None:
    number = 0 if key in {"adapter.dropout", "robust.attackers"} else 1
    value = run_config(Settings.from_run_config({key: number}))[key]
    assert value == number
    assert type(value) is float


def refusal(config: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.from_run_config(config)
    return str(caught.value)


WRONG_TYPES = [
    (key, value)
    for key, default in DEFAULTS.items()
    for value in ("1", 1, 1.0, True, None, [1])
    if type(value) is not type(default) and not (type(default) is float and type(value) is int)
]


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_value_of_another_type_is_refused_with_key_value_and_type(key: str, value: object) -> None:
    message = refusal({key: value})
    assert f"run-config key {key!r} is {value!r} ({type(value).__name__})" in message
    assert f"must be of type {type(DEFAULTS[key]).__name__}" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if isinstance(value, float)])
def test_float_that_is_not_finite_is_refused(key: str, value: float) -> None:
    assert f"run-config key {key!r} is {value}: it must be a finite number" in refusal({key: value})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("aggregation", "mean", "must be one of factorwise, merged"),
        ("head", "none", "must be one of local, shared"),
        ("device", "gpu", "must be one of auto, cpu, cuda"),
        ("base-dtype", "float16", "must be one of float32, bfloat16"),
        ("adapter.kind", "kron", "must be one of kron_lora, lora"),
        ("codec.upload", "int5", "use one of fp32; fp16; int8, int8:channel, int8:stochastic; int4, "),
        ("codec.upload", "", "codec '' does not exist: use one of fp32; "),
        ("codec.broadcast", "INT8", "ecsq:BITS (0.1 to 12 bits per parameter)"),
        ("codec.broadcast", "int8:4", "'int8:4' does not exist: use int8, int8:channel, int8:stochastic"),
        ("codec.upload", "sign:1", "'sign:1' does not exist: use sign"),
        ("codec.upload", "ecsq:many", "ecsq:BITS (0.1 to 12 bits per parameter)"),
        ("codec.broadcast", "ecsq:13", "ecsq:BITS (0.1 to 12 bits per parameter)"),
        ("train.truncation-side", "middle", "must be one of right, left"),
        ("train.precision", "fp8", "must be one of auto, float32, bfloat16"),
        ("partition.kind", "shard", "must be one of iid, dirichlet"),
        ("num-server-rounds", 0, "must be at least 1"),
        ("fraction-train", 1.5, "must be between 0 and 1"),
        ("fraction-train", -0.1, "must be between 0 and 1"),
        ("fraction-train", 0.0, "must be greater than 0"),
        ("fraction-evaluate", 1.01, "must be between 0 and 1"),
        ("fraction-evaluate", -1.0, "must be between 0 and 1"),
        ("secure.levels", 1, "must be between 2 and 255"),
        ("secure.levels", 256, "must be between 2 and 255"),
        ("secure.threshold", 0.4, "must be between 0.5 and 1"),
        ("secure.min-nodes", 2, "must be at least 3"),
        ("max-failure-fraction", 2.0, "must be between 0 and 1"),
        ("max-failure-fraction", -0.5, "must be between 0 and 1"),
        ("round-timeout", 0.0, "must be greater than 0"),
        ("round-timeout", -1.0, "must be greater than 0"),
        ("seed", -1, "must be between 0 and 9223372036854775807"),
        ("seed", 2**63, "must be between 0 and 9223372036854775807"),
        ("adapter.rank", 0, "must be at least 1"),
        ("adapter.alpha", 0.0, "must be greater than 0"),
        ("adapter.alpha", -8.0, "must be greater than 0"),
        ("adapter.dropout", 1.0, "must be between 0 and 0.99"),
        ("adapter.dropout", -0.1, "must be between 0 and 0.99"),
        ("adapter.d-a1", 0, "must be at least 1"),
        ("adapter.d-a2", -1, "must be at least 0"),
        ("adapter.terms", 0, "must be at least 1"),
        ("train.epochs", 0, "must be at least 1"),
        ("train.batch-size", 0, "must be at least 1"),
        ("train.learning-rate", 0.0, "must be greater than 0"),
        ("train.learning-rate", -1e-3, "must be greater than 0"),
        ("train.head-learning-rate", 0.0, "must be greater than 0"),
        ("train.weight-decay", -0.01, "must be at least 0"),
        ("train.max-length", 1, "must be at least 2"),
        ("train.max-train-examples", -1, "must be at least 0"),
        ("train.max-test-examples", -1, "must be at least 0"),
        ("partition.alpha", 0.0, "must be greater than 0"),
        ("privacy.kind", "global", "must be one of none, central, local"),
        ("privacy.clipping", "none", "must be one of fixed, adaptive"),
        ("privacy.clipping-norm", 0.0, "must be greater than 0"),
        ("privacy.noise-multiplier", -1.0, "must be at least 0"),
        ("privacy.delta", 0.0, "must be greater than 0"),
        ("privacy.delta", 0.5, "must be between 0 and 0.1"),
        (
            "robust.rule",
            "mode",
            "must be one of mean, clip, median, trimmed-mean, geometric-median, krum",
        ),
        ("robust.attackers", 0.5, "must be between 0 and 0.49"),
        ("robust.attackers", -0.1, "must be between 0 and 0.49"),
        ("run-name", "a/b", "must be a plain folder name"),
        ("run-name", "..", "must be a plain folder name"),
        ("head-labels", "ham,spam,ham", "a label appears twice"),
    ],
)
def test_value_out_of_range_is_refused_with_key_value_and_range(key: str, value: object, said: str) -> None:
    config = {key: value, **({"head": "shared"} if key == "head-labels" else {})}
    message = refusal(config)
    assert f"run-config key {key!r} is " in message
    assert str(value) in message
    assert said in message


@pytest.mark.parametrize(
    "name", ["sign", "int4:channel", "int8:stochastic", "ecsq", "ecsq:1.5", "ecsq:nmse=0.01"]
)
def test_codecs_may_have_options(name: str) -> None:
    settings = Settings.from_run_config({"codec.upload": name, "codec.broadcast": name})
    assert (settings.codec.upload, settings.codec.broadcast) == (name, name)


@pytest.mark.parametrize("value", ["", " ", ",", " , ,"])
@pytest.mark.parametrize("key", ["tasks", "adapter.targets"])
def test_list_without_an_entry_is_refused(key: str, value: str) -> None:
    assert f"run-config key {key!r} is empty" in refusal({key: value})


def test_labels_for_heads_that_are_not_shared_are_refused() -> None:
    message = refusal({"head-labels": "ham,spam"})
    assert "'head-labels' is set but head is 'local'" in message


@pytest.mark.parametrize("key", ["bases", "adapter", "adapter.d_a1", "num_server_rounds", "train.seed", ""])
def test_key_that_does_not_exist_is_refused_with_those_that_do(key: str) -> None:
    message = refusal({key: 1})
    assert f"run-config key {key!r} does not exist: the keys are " in message
    assert "adapter.d-a1" in message
    assert "num-server-rounds" in message


def test_comma_separated_values_are_split_and_trimmed() -> None:
    settings = Settings.from_run_config({"tasks": " demo:trec , hf:a/b?text=x,,/data/spam "})
    assert settings.task_sources == ("demo:trec", "hf:a/b?text=x", "/data/spam")


def test_adapter_settings_become_a_spec_with_the_model_s_own_d_a2_where_it_is_zero() -> None:
    config = {"adapter.rank": 3, "adapter.alpha": 6, "adapter.targets": "*.query, *.value"}
    spec = Settings.from_run_config(config).adapter.spec()
    assert spec == AdapterSpec("kron_lora", 3, 6.0, 0.1, 2, None, ("*.query", "*.value"))
    assert Settings.from_run_config({"adapter.d-a2": 8}).adapter.spec().d_a2 == 8
    assert Settings().adapter.spec() == AdapterSpec()


def test_shared_head_has_an_output_per_label_or_one_for_choices() -> None:
    assert Settings().shared_head_outputs == 0
    labelled = Settings.from_run_config({"head": "shared", "head-labels": "red, green,blue"})
    assert (labelled.shared_head_outputs, labelled.shared_labels) == (3, ("red", "green", "blue"))
    choices = Settings.from_run_config({"head": "shared"})
    assert (choices.shared_head_outputs, choices.shared_labels) == (1, ())


def test_partition_settings_are_those_the_partitioners_know() -> None:
    from clients.partition import PARTITIONERS
    from fedkron.settings import PARTITIONS

    assert PARTITIONS == PARTITIONERS
    assert PartitionSettings().kind in PARTITIONS
