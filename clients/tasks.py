"""What data a node has: the one module that the rest of the client imports tasks from."""

from pathlib import Path

from clients.examples import Classified, Example, MultipleChoice, Task
from clients.hub import read_hub
from clients.partition import PARTITIONERS, node_share, select_task, subset
from clients.task_files import read_folder
from fedkron.demo import resolve_task
from fedkron.errors import TaskError

__all__ = [
    "PARTITIONERS",
    "Classified",
    "Example",
    "MultipleChoice",
    "Task",
    "load_task",
    "node_share",
    "select_task",
    "subset",
]


def load_task(source: str) -> Task:
    """Load and check a whole task from its source.

    `demo:NAME` is a task of the built-in demo, `hf:OWNER/NAME[:CONFIG][?FIELD=COLUMN&...]` a data set of
    the Hugging Face Hub (or a local path that `datasets` can load), and anything else a folder with
    `train.jsonl`, `test.jsonl` and, for classification, `labels.json`. Raises `TaskError` for data that is
    missing or malformed, with the place and what to do.
    """
    if not source:
        raise TaskError("The task has no source: give demo:NAME, a folder, or hf:OWNER/NAME.")
    if source.startswith("demo:"):
        return read_folder(resolve_task(source))
    if source.startswith("hf:"):
        return read_hub(source.removeprefix("hf:"))
    return read_folder(Path(source).expanduser())
