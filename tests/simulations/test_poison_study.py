"""The study of poisoned updates: what attackers send, what the server makes of it, figures by hand."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from clients.tasks import Classified
from fedkron.aggregation import RobustRule
from fedkron.layout import flatten
from simulations import poison
from simulations.poison import FULL, NOBODY, QUICK, Setting, Study, run
from simulations.poison_study import federation
from simulations.poison_study.attacks import BOOST, FLIP, INSIDE, NOISE, POISONED, TARGET, TEXT_ATTACKS
from simulations.poison_study.federation import federate
from simulations.poison_study.jobs import Attack, Case, Defence, Job, Outcome
from simulations.poison_study.plot import plot
from simulations.poison_study.summary import summarize
from simulations.poison_study.tables import show
from simulations.study.journal import Journal
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
NODES = 5
MEAN = Defence("mean", "factorwise")


@pytest.fixture
def case(tiny_bert: Path, tasks: Path) -> Case:
    """Five nodes with parts of one task and one head."""
    workload = Workload(
        tasks=(str(tasks / "colours"),),
        clients=NODES,
        rounds=2,
        train_texts=4,
        test_texts=12,
        batch_size=4,
        max_length=16,
        base=str(tiny_bert),
    )
    return Case("iid", workload, "red,green,blue", learning_rate=1e-2, head_learning_rate=3e-2)


def uploads_of(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the aggregator takes in, in the order of the nodes and rounds: update after update."""
    from fedkron.aggregation import robust

    seen: list[np.ndarray] = []
    original = robust.Robust.add

    def add(self: robust.Robust, adapter: dict[str, np.ndarray], weight: float) -> None:
        seen.append(flatten(adapter, self._layout) - self._held)
        original(self, adapter, weight)

    with monkeypatch.context() as watching:
        watching.setattr(robust.Robust, "add", add)
        federate(job)
    return seen


def test_attackers_send_through_the_codec_what_the_attack_makes_of_an_honest_update(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(case, workload=replace(case.workload, rounds=1))

    def first_round(attack: Attack) -> list[np.ndarray]:
        return uploads_of(Job(Defence("median", "factorwise"), attack, case, 0), monkeypatch)[:NODES]

    honest = first_round(NOBODY)
    norm = np.linalg.norm(honest[0])
    for name, factor in (("sign-flip", FLIP), ("scaled", BOOST)):
        attacked = first_round(Attack(name, 0.4))
        for mine, theirs in zip(attacked[:2], honest[:2], strict=True):
            # Two bits a parameter leave an error of this size.
            assert np.linalg.norm(mine - factor * theirs) < 0.5 * abs(factor) * np.linalg.norm(theirs)
        assert all(np.array_equal(a, b) for a, b in zip(attacked[2:], honest[2:], strict=True))
    noise = first_round(Attack("random", 0.2))[0]
    assert np.linalg.norm(noise) == pytest.approx(NOISE * norm, rel=0.4)
    assert abs(noise @ honest[0]) < 0.5 * np.linalg.norm(noise) * norm
    assert set(INSIDE) == {"sign-flip", "scaled", "random", "nan"}


def test_attackers_on_texts_train_on_other_texts() -> None:
    texts = [Classified(f"text {number}", number % 3) for number in range(8)]
    flipped = TEXT_ATTACKS["label-flip"](texts, 3)
    assert [(one.text, one.label) for one in flipped] == [(t.text, (t.label + 1) % 3) for t in texts]
    poisoned = TEXT_ATTACKS["backdoor"](texts, 3)
    assert poisoned[:4] == [Classified(f"cf text {number}", TARGET) for number in range(4)]
    assert poisoned[4:] == texts[4:]
    assert POISONED == 0.5


@pytest.mark.parametrize(
    ("attack", "said"), [("nan", "holds nan in this update"), ("nan-bytes", "holds nan in this payload")]
)
def test_nan_is_refused_and_the_others_go_on(attack: str, said: str, case: Case) -> None:
    outcome = federate(Job(MEAN, Attack(attack, 0.4), case, 0))
    assert outcome.refused == 2 * 2
    assert said in outcome.reason
    assert np.isfinite(outcome.loss[-1][0])


def test_what_is_recalled_changes_no_figure(case: Case) -> None:
    job = Job(Defence("krum", "merged"), Attack("backdoor", 0.2), case, 3)
    federation._answers.clear()
    first = federate(job)
    assert federation._answers
    second = federate(job)
    federation._answers.clear()
    assert replace(first, seconds=0) == replace(second, seconds=0) == replace(federate(job), seconds=0)


def test_the_server_is_told_of_the_attack_and_of_the_rule(case: Case, tmp_path: Path) -> None:
    def settings_of(rule: str, share: float) -> tuple[str, str, float, float]:
        job = Job(Defence(rule, "merged"), Attack("scaled", share), case, 0, norm_limit=7)
        found = job.settings(str(tmp_path))
        return found.aggregation, found.robust.rule, found.robust.attackers, found.admission.norm_limit

    assert settings_of("median", 0.4) == ("merged", "median", 0.4, 7)
    assert settings_of("multi-krum", 0.4) == ("merged", "multi-krum", 0.3, 7)
    assert settings_of("clip", 0.0) == ("merged", "clip", 0.2, 7)


# ---------------------------------------------------------------- figures


def outcome(accuracy: float, success: float | None = None, refused: int = 0) -> Outcome:
    return Outcome(
        tasks=("one",),
        accuracy=((accuracy,),),
        loss=((1.0,),),
        head_only=(),
        up=(1,),
        down=(1,),
        seconds=1.0,
        success=success,
        refused=refused,
        reason="because" if refused else "",
    )


def test_figures_by_hand(case: Case) -> None:
    attack, krum = Attack("backdoor", 0.4), Defence("krum", "factorwise")
    lines = summarize(
        {
            Job(MEAN, NOBODY, case, 0): outcome(0.8, 0.0),
            Job(MEAN, NOBODY, case, 1): outcome(0.6, 0.1),
            Job(krum, attack, case, 0): outcome(0.7, 0.3, refused=2),
            Job(krum, attack, case, 1): outcome(0.6, 0.7),
        }
    )
    plain, attacked = lines
    assert (plain.attack, plain.defence, attacked.attack, attacked.defence) == (NOBODY, MEAN, attack, krum)
    assert (plain.seeds, attacked.seeds) == (2, 2)
    assert plain.accuracy.mean == pytest.approx(0.7)
    assert plain.accuracy.standard_error == pytest.approx(0.1)
    assert plain.lost is not None
    assert (plain.lost.mean, plain.lost.standard_error) == (0, 0)
    assert attacked.lost is not None
    assert (attacked.lost.mean, attacked.lost.standard_error) == pytest.approx((0.05, 0.05))
    assert attacked.success is not None
    assert (attacked.success.mean, attacked.success.standard_error) == pytest.approx((0.5, 0.2))
    assert (attacked.refused, attacked.reason) == (2, "because")


def test_a_study_runs_to_tables_and_plot_and_repeats_nothing(case: Case, tmp_path: Path) -> None:
    attacks = (NOBODY, Attack("scaled", 0.2), Attack("backdoor", 0.4))
    study = Study(
        (Setting(case, attacks),),
        (MEAN, Defence("geometric-median", "merged")),
        refused=(Attack("nan-bytes", 0.2),),
        seeds=1,
    )
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        lines = run(study, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        assert run(study, Journal(Outcome, file), executor, SILENT) == lines
    assert file.read_text() == written
    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    assert [(job["attack"]["name"], job["defence"]["rule"]) for job in jobs] == [
        *((attack.name, rule) for attack in attacks for rule in ("mean", "geometric-median")),
        ("nan-bytes", "mean"),
    ]
    console = Console(file=io.StringIO(), width=200)
    show(lines, console)
    printed = console.file.getvalue()
    assert all(text in printed for text in ("scaled 20 %", "merged geometric-median", "holds nan"))
    for name in ("plot.svg", "again.svg"):
        plot(lines, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize("study", [FULL, QUICK])
def test_every_attack_has_its_plain_mean_to_compare_with_and_every_krum_enough_nodes(study: Study) -> None:
    for setting in study.settings:
        jobs = study.jobs(setting, 0)
        assert len(set(jobs)) == len(jobs)
        for job in jobs:
            assert replace(job, defence=replace(job.defence, rule="mean")) in jobs or study is QUICK
            nodes, expected = job.case.workload.clients, job.settings("runs").robust.attackers
            if "krum" in job.defence.rule:
                assert nodes >= 2 * RobustRule("krum", expected).tolerated(nodes) + 3


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        poison.main(["--seeds", "0"])
    assert "it must be at least 1" in capsys.readouterr().err
