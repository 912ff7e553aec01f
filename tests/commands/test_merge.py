"""`fedkron merge` as a user sees it: adapters of several tasks become one file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_cases import Capture, Command, Finished

from fedkron.cli import main
from fedkron.exchange import AdapterFile, load_adapter, save_adapter
from fedkron.exchange.conversion import lora_factors
from fedkron.exchange.terms import TERMS_DIGEST
from fedkron.layout import State

COMMAND = Command("merge")
output_of, facts_of, error_of = COMMAND.output_of, COMMAND.facts_of, COMMAND.error_of


def delta(adapter: AdapterFile) -> np.ndarray:
    """All of ΔW, dense, in one vector."""
    factors = (lora_factors(module, adapter.state) for module in adapter.layout.modules)
    return np.concatenate([(lora_B @ lora_A).ravel() for lora_B, lora_A in factors])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.fixture
def sources(finished: Finished, tmp_path: Path) -> list[Path]:
    """A real run, and two files with adapters that moved away from its own."""
    files = [finished.run]
    trained = load_adapter(finished.run / "adapter.safetensors")
    for seed, name in enumerate(("spam", "film")):
        rng = np.random.default_rng(seed)
        state: State = {}
        for tensor, values in trained.state.items():
            state[tensor] = (values + 0.1 * rng.standard_normal(values.shape)).astype(np.float32)
        files.append(tmp_path / f"{name}.safetensors")
        save_adapter(files[-1], replace(trained, state=state, lineage=(f"trained on {name}",)))
    return files


def loaded(sources: list[Path]) -> list[AdapterFile]:
    return [load_adapter(source / "adapter.safetensors" if source.is_dir() else source) for source in sources]


def test_the_mean_is_near_the_dense_mean_and_says_what_it_was_made_of(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out" / "merged.safetensors"
    facts = facts_of(capsys, *sources, "-o", out, "--weights", 1, 2, 3)
    merged, inputs = load_adapter(out), loaded(sources)
    mean = np.average([delta(adapter) for adapter in inputs], axis=0, weights=[1, 2, 3])
    lost = np.linalg.norm(delta(merged) - mean) / np.linalg.norm(mean)
    assert facts["projection_error"] == pytest.approx(lost, rel=1e-4)
    assert 0.01 < lost < 0.9
    for told, adapter in zip(facts["inputs"], inputs, strict=True):
        assert told["cosine"] == pytest.approx(cosine(delta(merged), delta(adapter)), rel=1e-4)
    assert [told["weight"] for told in facts["inputs"]] == [1, 2, 3]
    assert merged.layout.contract == inputs[0].layout.contract
    assert merged.base_name == inputs[0].base_name
    assert merged.spec == inputs[0].spec
    run = sources[0].name
    assert merged.lineage[-1] == (
        f"merged by mean from {run} (weight 1), spam.safetensors (weight 2), film.safetensors (weight 3), "
        f"relative projection error {lost:.4f}"
    )
    assert merged.lineage[-3:-1] == (
        "spam.safetensors: trained on spam",
        "film.safetensors: trained on film",
    )
    assert str(tmp_path) not in str(merged)


def test_a_merged_adapter_is_exported_with_the_heads_of_its_tasks(
    finished: Finished, sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out, bundle = tmp_path / "merged.safetensors", tmp_path / "bundle"
    output_of(capsys, *sources, "-o", out, "--method", "ties")
    head = finished.run / "nodes" / "animals-0" / "head.safetensors"
    assert main(["export", str(out), "--head", str(head), "-o", str(bundle), "--max-length", "16"]) == 0
    capsys.readouterr()
    assert main(["predict", str(bundle), "my bark is near", "--task", "animals", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["mean", "ties", "dare", "dare_ties"])
def test_one_adapter_with_all_its_numbers_stays_what_it_is(
    method: str, sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "merged.safetensors"
    density = [] if method == "mean" else ["--density", 1]
    facts = facts_of(capsys, sources[1], "-o", out, "--method", method, *density)
    assert facts["projection_error"] < 1e-6
    assert facts["inputs"][0]["cosine"] == pytest.approx(1)
    np.testing.assert_allclose(delta(load_adapter(out)), delta(loaded(sources)[1]), rtol=1e-4, atol=1e-6)


def test_a_larger_rank_loses_less_and_keeps_the_scale(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    errors = []
    before = loaded(sources)[0]
    for rank in (1, before.spec["rank"], 3 * before.spec["rank"]):
        out = tmp_path / f"rank-{rank}.safetensors"
        errors.append(facts_of(capsys, *sources, "-o", out, "--rank", rank)["projection_error"])
        merged = load_adapter(out)
        assert {m.scale for m in merged.layout.modules} == {m.scale for m in before.layout.modules}
        assert merged.spec["rank"] == rank
        assert merged.spec["alpha"] / rank == pytest.approx(merged.layout.modules[0].scale)
        assert merged.spec["kind"] == before.spec["kind"]
        assert {m.factors[2].shape[0] for m in merged.layout.modules} == {rank}
        mean = np.mean([delta(adapter) for adapter in loaded(sources)], axis=0)
        lost = np.linalg.norm(delta(merged) - mean) / np.linalg.norm(mean)
        assert errors[-1] == pytest.approx(lost, rel=1e-3)
    assert errors[0] > errors[1] > errors[2]


def test_settings_on_which_the_sources_differ_are_left_out(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    adapter = loaded(sources)[1]
    save_adapter(sources[1], replace(adapter, spec=adapter.spec | {"alpha": 7.0, "dropout": 0.5}))
    out = tmp_path / "merged.safetensors"
    output_of(capsys, *sources, "-o", out)
    assert load_adapter(out).spec.keys() == adapter.spec.keys() - {"alpha", "dropout"}
    output_of(capsys, *sources, "-o", out, "--rank", 3)
    assert load_adapter(out).spec.keys() == adapter.spec.keys() - {"alpha", "dropout", "rank"}


def test_dare_gives_the_same_bytes_for_the_same_seed(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    files = []
    for number, seed in enumerate((5, 5, 6)):
        files.append(tmp_path / f"{number}.safetensors")
        output_of(capsys, *sources, "-o", files[-1], "--method", "dare", "--seed", seed, "--density", 0.8)
    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert not np.allclose(delta(load_adapter(files[0])), delta(load_adapter(files[2])), rtol=0.01)
    assert other != first
    assert load_adapter(files[2]).info == {"merged": "dare, density 0.8, seed 6"}


def test_scaling_makes_a_sum_of_the_mean(sources: list[Path], tmp_path: Path, capsys: Capture) -> None:
    mean, total = tmp_path / "mean.safetensors", tmp_path / "sum.safetensors"
    output_of(capsys, *sources, "-o", mean)
    output_of(capsys, *sources, "-o", total, "--scaling", 3)
    np.testing.assert_allclose(
        delta(load_adapter(total)), 3 * delta(load_adapter(mean)), rtol=1e-3, atol=1e-5
    )
    assert "scaling 3" in load_adapter(total).lineage[-1]


def test_the_table_names_every_adapter_and_its_cosine(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "merged.safetensors"
    arguments = (*sources, "-o", out, "--method", "ties", "--density", 0.3)
    printed = output_of(capsys, *arguments)
    facts = facts_of(capsys, *arguments)
    assert "Merged by ties, density 0.3" in printed
    rows = [line.split() for line in printed.splitlines()]
    for told in facts["inputs"]:
        assert [told["name"], "1", f"{told['cosine']:.3f}"] in rows
    assert f"{facts['projection_error']:.2%}" in printed
    assert str(out) in printed.replace("\n", "")


def test_adapters_that_do_not_belong_together_are_refused_and_the_odd_one_is_named(
    sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    adapter = loaded(sources)[1]
    foreign, smaller, folded = (tmp_path / f"{name}.safetensors" for name in ("foreign", "smaller", "folded"))
    save_adapter(foreign, replace(adapter, layout=replace(adapter.layout, base="ab" * 32)))
    output_of(capsys, sources[1], "-o", smaller, "--rank", 1)
    save_adapter(folded, replace(adapter, info=adapter.info | {TERMS_DIGEST: "00"}))
    out = tmp_path / "out.safetensors"
    for odd, said in (
        (foreign, "is of another base than"),
        (smaller, "has other layers, kinds or sizes than"),
    ):
        error = error_of(capsys, *sources, odd, "-o", out)
        assert f"{odd} {said} {sources[0]}" in error
        assert loaded(sources)[0].layout.contract[:12] in error
        assert load_adapter(odd).layout.contract[:12] in error
    assert "terms" in error_of(capsys, *sources, folded, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--density", "0.5"], "--density is not for --method mean"),
        (["--method", "ties", "--density", "0"], "density is 0.0"),
        (["--method", "dare", "--seed", "-1"], "seed is -1"),
        (["--weights", "1", "2"], "--weights has 2 numbers for 3 adapters"),
        (["--weights", "1", "2", "-3"], "weight is -3.0"),
        (["--scaling", "0"], "scaling is 0.0"),
        (["--rank", "0"], "rank is 0"),
        (["nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: list[str], said: str, sources: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.safetensors"
    assert said in error_of(capsys, *sources, *arguments, "-o", out)
    assert not out.exists()


def test_a_folder_is_not_written_over(sources: list[Path], tmp_path: Path, capsys: Capture) -> None:
    assert f"{tmp_path} is a folder" in error_of(capsys, *sources, "-o", tmp_path)
