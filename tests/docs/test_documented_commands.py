"""Every command and Python block in README.md and docs/ works, in the order in which a reader meets them."""

from pathlib import Path

import pytest
from blocks import PAGES, ROOT, RUN, SHELL, SHOWN, blocks, commands
from given import GIVEN
from sandbox import Sandbox, sandbox
from shelf import Shelf

NOT_RUN = {
    "flwr supernode register keys/node0/node.pub clinics": "several machines",
    "flwr supernode list clinics": "several machines",
    "fedkron run --superlink clinics -c "
    '\'num-server-rounds=10 output-dir="/var/lib/fedkron/runs" run-name="first"\'': "several machines",
    "flwr supernode register keys/node1/node.pub clinics": "several machines",
    "fedkron federation --nodes 2 -c "
    '\'tasks="data/clinic-a,data/clinic-b" num-server-rounds=3 run-name="rehearsal"\'': "a minute",
    "fedkron federation --nodes 2 -c "
    "'tasks=\"data/clinic-a,data/clinic-b\" num-server-rounds=10'": "a minute",
    "fedkron sweep simulations/sweep.toml": "half an hour; tests/sweep runs real ones",
    "fedkron run -n 100 -c 'fraction-train=0.2 fraction-evaluate=0.2 num-server-rounds=20'": "minutes; "
    "benchmarks/simulation_scale.py",
    "fedkron run -n 1000 -c 'fraction-train=0.03 fraction-evaluate=0.03 train.max-train-examples=10 "
    "train.max-test-examples=50'": "minutes; benchmarks/simulation_scale.py",
    "tensorboard --logdir runs --port 6006": "not ours; tests/server/test_scalar_log.py reads what it reads",
    "fedkron push runs/RUN USER/film --license Apache-2.0 --peft": "the Hub; tests/registry has one",
}
"""Commands that are not run, and why. tests/deploy does on one machine what needs several."""

EXCERPTS = {"docs/tutorials/existing-flower-app.md": "docs/tutorials/flower-app"}
"""Pages whose Python blocks are parts of files that their commands run."""

READ = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]

pytestmark = pytest.mark.xdist_group("documentation")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.mark.parametrize("page", READ)
def test_what_a_page_tells_the_reader_to_do_works(page: str, shelf: Shelf, tmp_path: Path) -> None:
    names: dict[str, object] = GIVEN[page](shelf) if page in GIVEN else {}
    with sandbox(page, tmp_path / "fedkron", shelf) as place:
        for block in blocks(page):
            if block.language in SHELL:
                for command in block.commands():
                    if command not in NOT_RUN:
                        place.run(command)
            elif block.language == "python" and page in EXCERPTS:
                assert_is_part_of(block.text, EXCERPTS[page])
            elif block.language == "python":
                run_python(block.text, place, names)


def assert_is_part_of(text: str, folder: str) -> None:
    """The block stands in one of the folder's files, whatever its indentation there."""
    files = [path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")]
    assert any(text.strip() in dedented for file in files for dedented in (file, dedent_all(file)))


def dedent_all(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def run_python(text: str, place: Sandbox, names: dict[str, object]) -> None:
    place.provide(text.replace('"', " "))
    exec(compile(place.with_addresses(text), place.page, "exec"), names)


def test_commands_that_are_not_run_are_in_the_documentation() -> None:
    assert NOT_RUN.keys() <= {command for page in PAGES for command in commands(page)}


@pytest.mark.parametrize("page", PAGES)
def test_a_block_is_run_or_says_that_it_shows_something(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {*RUN, *SHOWN}


def test_the_difference_that_is_shown_is_the_one_that_is_applied() -> None:
    (shown,) = (b.text for b in blocks("docs/tutorials/existing-flower-app.md") if b.language == "diff")
    applied = (ROOT / "docs/tutorials/flower-app/two-lines.diff").read_text(encoding="utf-8")
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in applied.splitlines()]
