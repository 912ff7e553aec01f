"""Tasks through the `datasets` client, from local folders that it loads just as it loads the Hub's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from clients.tasks import Classified, MultipleChoice, load_task
from fedkron.errors import TaskError

TRAIN = {"text": ["good", "bad", "fine"], "label": [1, 0, 1]}
TEST = {"text": ["awful"], "label": [0]}


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def parquet(folder: Path, features: Features | None = None, **splits: dict) -> Path:
    folder.mkdir()
    for split, columns in splits.items():
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def json_lines(folder: Path, **splits: list[dict]) -> Path:
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def error_of(source: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(source)
    return str(caught.value)


def test_class_label_column_gives_the_names_of_the_labels(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good", "unused"])})
    folder = parquet(tmp_path / "mood", features, train=TRAIN, test=TEST)
    task = load_task(f"hf:{folder}")
    assert (task.name, task.kind, task.labels) == ("mood", "classification", ("bad", "good", "unused"))
    assert task.train == (Classified("good", 1), Classified("bad", 0), Classified("fine", 1))
    assert task.test == (Classified("awful", 0),)


def test_whole_number_labels_name_themselves(tmp_path: Path) -> None:
    task = load_task(f"hf:{parquet(tmp_path / 'mood', train=TRAIN, test=TEST)}")
    assert task.labels == ("0", "1")


def test_columns_may_be_named_in_the_source(tmp_path: Path) -> None:
    splits = {
        name: {"the sentence": split["text"], "gold": split["label"]}
        for name, split in (("train", TRAIN), ("test", TEST))
    }
    folder = parquet(tmp_path / "mood", **splits)
    task = load_task(f"hf:{folder}?text=the+sentence&label=gold")
    assert task.test == (Classified("awful", 0),)
    message = error_of(f"hf:{folder}")
    assert "no column 'text', only the sentence, gold" in message
    assert "?text=COLUMN" in message


def test_validation_stands_in_where_there_is_no_test(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "mood", train=TRAIN, validation=TEST)
    assert load_task(f"hf:{folder}").test == (Classified("awful", 0),)


def test_test_is_preferred_to_validation(tmp_path: Path) -> None:
    other = {"text": ["other"], "label": [1]}
    folder = parquet(tmp_path / "mood", train=TRAIN, validation=other, test=TEST)
    assert load_task(f"hf:{folder}").test == (Classified("awful", 0),)


def test_multiple_choice_columns_make_a_multiple_choice_task(tmp_path: Path) -> None:
    row = {"question": "Which is a bird?", "endings": ["cat", "owl"], "answer": 1}
    other = {"question": "Which is red?", "endings": ["sky", "sea", "blood"], "answer": 2}
    folder = json_lines(tmp_path / "quiz", train=[row, other], test=[row])
    task = load_task(f"hf:{folder}?choices=endings")
    assert (task.kind, task.labels) == ("multiple_choice", ())
    assert task.train[1] == MultipleChoice("Which is red?", ("sky", "sea", "blood"), 2)


def test_choices_in_columns_of_their_own(tmp_path: Path) -> None:
    """As in PIQA and WinoGrande, where answers are counted from 1 and those of the test split are hidden."""
    row = {"sentence": "It was _.", "option1": "good", "option2": "bad", "answer": "2"}
    folder = json_lines(
        tmp_path / "quiz", train=[row], validation=[row | {"answer": "1"}], test=[row | {"answer": ""}]
    )
    source = f"hf:{folder}?question=sentence&choices=option1&choices=option2&first=1"
    task = load_task(f"{source}&test=validation")
    assert task.train == (MultipleChoice("It was _.", ("good", "bad"), 1),)
    assert task.test == (MultipleChoice("It was _.", ("good", "bad"), 0),)
    assert "split test, row 0: answer must be a whole number, got ''" in error_of(source)
    zero = json_lines(tmp_path / "zero", train=[row | {"answer": "0"}], test=[row])
    assert "row 0: answer -1 is out of range" in error_of(source.replace(str(folder), str(zero)))


def test_labelled_choices_whose_label_is_the_answer(tmp_path: Path) -> None:
    """As in ARC."""
    row = {
        "question": "Which is a bird?",
        "choices": {"text": ["cat", "dog", "owl"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }
    numbered = {**row, "choices": {"text": ["cat", "owl", "dog"], "label": ["1", "2", "3"]}, "answerKey": "2"}
    folder = json_lines(tmp_path / "arc", train=[row, numbered], test=[row])
    task = load_task(f"hf:{folder}?answer=answerKey")
    assert task.train[0] == MultipleChoice("Which is a bird?", ("cat", "dog", "owl"), 2)
    assert task.train[1] == MultipleChoice("Which is a bird?", ("cat", "owl", "dog"), 1)
    wrong = json_lines(tmp_path / "wrong", train=[{**row, "answerKey": "D"}], test=[row])
    assert "row 0: answer must be a whole number, got 'D'" in error_of(f"hf:{wrong}?answer=answerKey")


def test_a_task_folder_reads_the_same_through_the_client(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TRAIN["text"], TRAIN["label"], strict=True)]
    folder = json_lines(tmp_path / "mood", train=rows, test=rows[:2])
    (folder / "labels.json").write_text('["0", "1"]')
    assert load_task(f"hf:{folder}") == load_task(str(folder))


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ({"text": ["a", None], "label": [0, 1]}, TEST, "split train, row 1: text must be a text, got None"),
        ({"text": ["a", "b"], "label": [0, 2]}, TEST, "does not hold labels 0, 1, ... but"),
        (
            {"text": ["a", "b"], "label": ["no", "yes"]},
            {"text": ["c"], "label": ["no"]},
            "class_encode_column",
        ),
        ({"text": ["a"], "label": [0]}, TEST, "does not hold labels"),
        ({"text": ["a", "b"], "label": [0, 1]}, {"text": ["c"], "label": [-1]}, "does not hold labels"),
        ({"text": ["a", "b"], "label": [0.0, 1.0]}, {"text": ["c"], "label": [0.0]}, "whole number, got 0.0"),
    ],
)
def test_content_that_does_not_fit_is_reported_with_its_place(
    tmp_path: Path, train: dict, test: dict, said: str
) -> None:
    assert said in error_of(f"hf:{parquet(tmp_path / 'mood', train=train, test=test)}")


def test_hidden_test_labels_are_reported_as_out_of_range(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    folder = parquet(tmp_path / "mood", features, train=TRAIN, test={"text": ["?"], "label": [-1]})
    assert "split test, row 0: label -1 is out of range: there are 2 labels" in error_of(f"hf:{folder}")


def test_missing_and_empty_splits_are_reported(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "one", train=TRAIN)
    assert "has no split test or validation, only train" in error_of(f"hf:{folder}")
    assert "has no split dev, only train" in error_of(f"hf:{folder}?test=dev")
    features = Features({"text": Value("string"), "label": Value("int64")})
    folder = parquet(tmp_path / "none", features, train=TRAIN, test={"text": [], "label": []})
    message = error_of(f"hf:{folder}")
    assert '"test" corresponds to no data' in message
    assert "no split is empty" in message


def test_references_that_cannot_be_understood_are_reported(tmp_path: Path) -> None:
    assert "unknown field 'sentence'" in error_of("hf:owner/name?sentence=text")
    assert "cannot be understood" in error_of("hf:owner/name?text")
    assert "says answer twice" in error_of("hf:owner/name?answer=a&answer=b")
    assert "counted from 0 or 1" in error_of("hf:owner/name?first=A")
    assert "names no data set" in error_of("hf:")
    assert "names no data set" in error_of("hf:?text=sentence")
    assert "could not be loaded" in error_of(f"hf:{tmp_path / 'nowhere'}")


def test_unreachable_hub_is_explained_with_what_works_offline() -> None:
    # A process of its own, because the client reads the switch when it is imported.
    program = "from clients.tasks import load_task; load_task('hf:owner/name:config?text=sentence')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fedkron.errors.TaskError: hf:owner/name:config?text=sentence: ")
    for said in ("cannot be reached", "HF_HUB_OFFLINE", "demo:NAME", "folder"):
        assert said in last
