"""Exports take seconds: one per family, and one bundle, for all tests."""

import pytest
from edge_cases import CONFIGS, SPECS, Exported, Written, random_head, tiny_backbone, tiny_base, with_adapter

from fedkron.edge.bundle import write_bundle
from fedkron.edge.features import export_features


@pytest.fixture(scope="session", params=CONFIGS)
def exported(request: pytest.FixtureRequest) -> Exported:
    backbone = tiny_backbone(request.param)
    return Exported(backbone, export_features(backbone))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Three tasks with 3 labels, 2 labels, and choices; texts are cut to 12 tokens."""
    base = tiny_base()
    model, adapter = with_adapter(base.backbone, SPECS["kron_lora"], base.fingerprint, seed=1)
    contract = adapter.layout.contract
    heads = [
        random_head("colour/of: it", ("red", "green", "blue"), contract),
        random_head("spam", ("ham", "spam"), contract),
        random_head("trivia", (), contract, kind="multiple_choice"),
    ]
    steps: list[str] = []
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(folder, base, adapter, heads, max_length=12, report=steps.append)
    return Written(folder, base, model, adapter, {head.task: head for head in heads}, steps)
