"""The study of privacy: its figures against those of the same runs made and counted without it."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fedkron.privacy import epsilon
from fedkron.settings import CENTRAL_PRIVACY, LOCAL_PRIVACY, NO_PRIVACY, Settings, run_config
from simulations.privacy import FULL, QUICK, Study, run
from simulations.privacy_study.jobs import Job, Outcome
from simulations.privacy_study.plot import plot
from simulations.privacy_study.summary import summarize
from simulations.privacy_study.tables import show
from simulations.privacy_study.ways import ADAPTIVE, CENTRAL, CLIPPED, CODECS, LOCAL, NONE, WAYS
from simulations.study.journal import Journal
from simulations.study.workload import Workload

SILENT = Console(file=io.StringIO())
NODES = 3


@pytest.fixture
def study(tiny_bert: Path, tasks: Path) -> Study:
    """Three nodes with parts of one task and one head."""
    workload = Workload(
        tasks=(str(tasks / "animals"),),
        clients=NODES,
        rounds=2,
        train_texts=8,
        test_texts=12,
        batch_size=8,
        max_length=16,
        base=str(tiny_bert),
    )
    ways = (NONE, CLIPPED, CENTRAL[1], ADAPTIVE, LOCAL[1], CODECS[0])
    return replace(FULL, workload=workload, labels="cat,dog", ways=ways, seeds=2, clipping_norm=0.1)


def test_a_study_runs_seed_by_seed_to_table_and_plot_and_repeats_nothing(
    study: Study, tmp_path: Path
) -> None:
    file = tmp_path / "journal.jsonl"
    with ThreadPoolExecutor(1) as executor:
        runs = run(study, Journal(Outcome, file), executor, SILENT)
        written = file.read_text()
        assert run(study, Journal(Outcome, file), executor, SILENT) == runs
    assert file.read_text() == written
    jobs = [json.loads(line)["job"] for line in written.splitlines()]
    assert [job["seed"] for job in jobs] == [0] * len(study.ways) + [1] * len(study.ways)

    spent = {way: [outcome.epsilon for outcome in outcomes] for way, outcomes in runs.items()}
    assert spent[NONE] == spent[CLIPPED] == [(None, None)] * 2
    assert spent[CENTRAL[1]] == [tuple(epsilon([CENTRAL[1].noise] * r, study.delta) for r in (1, 2))] * 2
    assert spent[LOCAL[1]] == [tuple(epsilon([LOCAL[1].noise / 2] * r, study.delta) for r in (1, 2))] * 2
    norms = {way: [outcome.clipping_norm for outcome in outcomes] for way, outcomes in runs.items()}
    assert norms[NONE] == [None] * 2
    assert norms[CLIPPED] == norms[LOCAL[1]] == [0.1] * 2
    assert all(norm != 0.1 for norm in norms[ADAPTIVE])

    lines = summarize(runs, NODES)
    by_way = {line.way: line for line in lines}
    assert by_way[NONE].against is None
    ours, theirs = ([o.accuracy[-1][0] for o in runs[way]] for way in (CENTRAL[1], NONE))
    assert by_way[CENTRAL[1]].accuracy.mean == pytest.approx(sum(ours) / 2)
    against = by_way[CENTRAL[1]].against
    assert against is not None
    assert against.mean == pytest.approx((sum(ours) - sum(theirs)) / 2)

    console = Console(file=io.StringIO(), width=200)
    show(lines, 0.5, study.delta, console)
    for text in ("central, adaptive", "local", "central, int4", f"{by_way[ADAPTIVE].epsilon:.3g}"):
        assert text in console.file.getvalue()
    for name in ("plot.svg", "again.svg"):
        plot(lines, 0.5, tmp_path / name)
    assert (tmp_path / "plot.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize("study", [FULL, QUICK])
def test_ways_differ_in_privacy_and_codec_only_and_can_be_run(study: Study) -> None:
    jobs = [Job(way, study.workload, study.labels, 0, 1e-3, 0.5, study.delta) for way in study.ways]
    settings = [job.settings("runs") for job in jobs]
    first = settings[0]
    assert len({replace(s, privacy=first.privacy, codec=first.codec) for s in settings}) == 1
    assert len(set(settings)) == len(settings)
    assert {s.privacy.kind for s in settings} == {NO_PRIVACY, CENTRAL_PRIVACY, LOCAL_PRIVACY}
    for one in settings:
        assert Settings.from_run_config(run_config(one)) == one
    assert study.delta < 1 / study.workload.clients


def test_codecs_are_compared_under_the_same_noise() -> None:
    for way in CODECS:
        assert any(replace(way, upload=other.upload) == other for other in WAYS if other not in CODECS)
