"""Tasks from folders and from the demo: what is read, and how every mistake in a file is reported."""

import json
from pathlib import Path

import pytest

from clients.tasks import Classified, MultipleChoice, Task, load_task
from fedkron.demo import DEMO_TASKS
from fedkron.errors import TaskError

HAM = {"text": "See you at noon", "label": 0}
SPAM = {"text": "Win cash now", "label": 1}
QUESTION = {"id": "q1", "question": "Which is a bird?", "choices": ["cat", "owl", "fox"], "answer": 1}


def write(folder: Path, **files: object) -> Path:
    """Write `train`, `test` (rows, or raw text) and `labels` (names, or raw text) as a task folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, str) else json.dumps(content)
        if name != "labels" and isinstance(content, list):
            raw = "".join(json.dumps(row) + "\n" for row in content)
        (folder / ("labels.json" if name == "labels" else f"{name}.jsonl")).write_text(raw, encoding="utf-8")
    return folder


def error_of(folder: Path) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(str(folder))
    return str(caught.value)


def test_classification_folder_is_read_in_order_under_its_own_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "sms", train=[HAM, SPAM], test=[SPAM], labels=["ham", "spam"])
    assert load_task(str(folder)) == Task(
        name="sms",
        kind="classification",
        labels=("ham", "spam"),
        train=(Classified("See you at noon", 0), Classified("Win cash now", 1)),
        test=(Classified("Win cash now", 1),),
    )


def test_multiple_choice_folder_may_have_different_numbers_of_choices(tmp_path: Path) -> None:
    five = {"question": "2 + 2 = _", "choices": ["1", "2", "3", "4", "5"], "answer": 3}
    task = load_task(str(write(tmp_path / "quiz", train=[QUESTION, five], test=[five])))
    assert task.kind == "multiple_choice"
    assert task.labels == ()
    assert task.train[0] == MultipleChoice("Which is a bird?", ("cat", "owl", "fox"), 1)
    assert [len(example.choices) for example in task.train] == [3, 5]


def test_blank_lines_and_unusual_characters_within_texts_are_read_as_they_are(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c 😀 \r\n d"
    rows = json.dumps({"text": odd, "label": 0}, ensure_ascii=False) + "\n\n  \n" + json.dumps(SPAM) + "\n\n"
    task = load_task(str(write(tmp_path / "odd", train=rows, test=[HAM], labels=["ham", "spam"])))
    assert [example.text for example in task.train] == [odd, "Win cash now"]


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_every_demo_task_loads_and_beats_nothing_by_its_majority_alone(name: str) -> None:
    task = load_task(f"demo:{name}")
    assert task.name == name
    assert task.kind == "classification"
    assert 1 / len(task.labels) < task.majority < 0.9
    assert len(task.train) > len(task.test) > 500


def test_majority_of_classification_is_the_share_of_the_most_frequent_label() -> None:
    labels = [2, 0, 2, 1, 2]
    task = Task("t", "classification", ("a", "b", "c"), (), tuple(Classified("x", label) for label in labels))
    assert task.majority == 3 / 5


def test_majority_of_multiple_choice_is_the_mean_chance_of_its_questions() -> None:
    questions = [MultipleChoice("?", ("a", "b"), 0), MultipleChoice("?", ("a", "b", "c", "d"), 0)]
    assert Task("t", "multiple_choice", (), (), tuple(questions)).majority == pytest.approx(
        (1 / 2 + 1 / 4) / 2
    )


def test_missing_folder_is_named_with_all_ways_to_give_a_task(tmp_path: Path) -> None:
    message = error_of(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "demo:NAME" in message
    assert "hf:OWNER/NAME" in message


def test_empty_source_and_unknown_demo_task_are_errors() -> None:
    with pytest.raises(TaskError, match="no source"):
        load_task("")
    with pytest.raises(TaskError, match="demo:trec"):
        load_task("demo:nothing")


@pytest.mark.parametrize("missing", ["train.jsonl", "test.jsonl", "labels.json"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path / "task", train=[HAM, SPAM], test=[HAM], labels=["ham", "spam"])
    (folder / missing).unlink()
    assert f"{folder / missing} is missing" in error_of(folder)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_split_is_an_error(tmp_path: Path, split: str, content: str) -> None:
    files = {"train": [HAM], "test": [HAM], "labels": ["ham", "spam"]} | {split: content}
    message = error_of(write(tmp_path / "task", **files))
    assert f"{split}.jsonl has no examples" in message


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"text": "no end', "not valid JSON"),
        ("[1, 2]", "expected an object with fields, got [1, 2]"),
        ("null", "expected an object with fields, got None"),
        ('{"text": "no label"}', "missing 'label'"),
        ("{}", "missing 'text' and 'label'"),
        ('{"text": 7, "label": 0}', "text must be a text, got 7"),
        ('{"text": null, "label": 0}', "text must be a text, got None"),
        ('{"text": "half an emoji \\ud83d", "label": 0}', "not valid Unicode"),
        ('{"text": "x", "label": 2}', "label 2 is out of range: there are 2 labels, so it must be 0 to 1"),
        ('{"text": "x", "label": -1}', "label -1 is out of range"),
        ('{"text": "x", "label": "spam"}', "label must be a whole number, got 'spam'"),
        ('{"text": "x", "label": 1.0}', "label must be a whole number, got 1.0"),
        ('{"text": "x", "label": true}', "label must be a whole number, got True"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bad_classification_row_is_reported_with_file_and_line(
    tmp_path: Path, split: str, bad: str, said: str
) -> None:
    lines = f"{json.dumps(HAM)}\n\n{bad}\n"
    files = {"train": [SPAM], "test": [SPAM], "labels": ["ham", "spam"]} | {split: lines}
    message = error_of(write(tmp_path / "task", **files))
    assert f"{split}.jsonl, line 3: " in message
    assert said in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 3}, "answer 3 is out of range: there are 3 choices, so it must be 0 to 2"),
        ({"answer": -1}, "answer -1 is out of range"),
        ({"answer": "B"}, "answer must be a whole number, got 'B'"),
        ({"choices": ["only one"]}, "choices must be a list of 2 or more texts"),
        ({"choices": "owl"}, "choices must be a list of 2 or more texts, got 'owl'"),
        ({"choices": ["owl", 3]}, "a choice must be a text, got 3"),
        ({"question": None}, "question must be a text, got None"),
    ],
)
def test_bad_multiple_choice_row_is_reported_with_file_and_line(
    tmp_path: Path, change: dict, said: str
) -> None:
    message = error_of(write(tmp_path / "task", train=[QUESTION, QUESTION | change], test=[QUESTION]))
    assert "train.jsonl, line 2: " in message
    assert said in message


def test_row_of_the_other_kind_is_reported_with_the_fields_it_has(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "task", train=[QUESTION, HAM], test=[QUESTION]))
    assert "train.jsonl, line 2: missing 'question' and 'choices' and 'answer'" in message
    assert "this one has 'text', 'label'" in message


@pytest.mark.parametrize(
    "labels",
    [
        "{",
        '"ham"',
        '{"ham": 0}',
        "[]",
        '["ham"]',
        '["ham", 1]',
        '["ham", "ham"]',
        "null",
        '[["ham"], ["spam"]]',
    ],
)
def test_labels_file_must_be_a_list_of_different_names(tmp_path: Path, labels: str) -> None:
    assert "labels.json" in error_of(write(tmp_path / "task", train=[HAM], test=[SPAM], labels=labels))


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "task", train=[HAM], test=[HAM], labels=["ham", "spam"])
    (folder / "test.jsonl").write_bytes(b'{"text": "caf\xe9", "label": 0}\n')
    message = error_of(folder)
    assert "test.jsonl" in message
    assert "UTF-8" in message


def test_long_values_are_shortened_in_errors(tmp_path: Path) -> None:
    row = {"text": ["x" * 100_000], "label": 0}
    assert len(error_of(write(tmp_path / "task", train=[row], test=[HAM], labels=["ham", "spam"]))) < 500
