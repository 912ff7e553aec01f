"""`fedkron predict`: ask an exported bundle, on this CPU, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkron.errors import TaskError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fedkron.edge.language_runtime import LanguageModel
    from fedkron.edge.runtime import Bundle

Answer = dict[str, Any]
"""What is printed with --json for one input."""

_FOR_TASKS = ("task", "choice")
_FOR_LANGUAGE_MODELS = ("max_new_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class _Input:
    """What was asked: as it was given, as the bundle takes it, and the adapter that answers."""

    given: str
    value: str | Image
    adapter: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        help="answers of a bundle on this CPU",
        description="Answer with an exported bundle: ONNX Runtime, numpy and tokenizers, no torch. It "
        "classifies texts or images, picks one of several choices, or continues texts.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument(
        "input",
        nargs="*",
        help="texts, questions, image files or prompts (default: lines of standard input)",
    )
    parser.add_argument("--task", help="which task's head answers (default: all that fit)")
    parser.add_argument("--choice", action="append", help="a choice to pick from; give two or more")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="an adapter of the bundle, or a file with one of the same contract; give one, or one for each "
        "input (default: the adapter of the export)",
    )
    parser.add_argument("--merged", action="store_true", help="use the graph with the adapter folded in")
    parser.add_argument("--list", action="store_true", help="print the adapters and their tasks, and end")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    writing = parser.add_argument_group("language models")
    writing.add_argument("--max-new-tokens", type=int, help="length of a continuation (default: 128)")
    writing.add_argument(
        "--temperature", type=float, help="0 for the most probable tokens, above 0 to draw (default: 0)"
    )
    writing.add_argument(
        "--top-p", type=float, help="draw from tokens of this probability together (default: 1)"
    )
    writing.add_argument("--seed", type=int, help="of the draws (default: 0)")
    parser.set_defaults(command=predict)


def predict(options: argparse.Namespace) -> int:
    """Print an answer per task and input, or a continuation per prompt."""
    from fedkron.edge.language_model import LanguageModelInput
    from fedkron.edge.manifest import read_manifest

    is_language_model = isinstance(read_manifest(options.bundle).input, LanguageModelInput)
    _refuse(options, _FOR_TASKS if is_language_model else _FOR_LANGUAGE_MODELS)
    return _write(options) if is_language_model else _answer(options)


# ---------------------------------------------------------------- tasks


def _answer(options: argparse.Namespace) -> int:
    from fedkron.edge.runtime import Bundle

    bundle = Bundle.open(options.bundle, threads=options.threads)
    if options.list:
        return _print_adapters(bundle, options.json)
    answers = (_choices if options.choice else _classes)(bundle, _inputs(bundle, options), options)
    if options.json:
        _print_json(answers)
        return 0
    for answer in answers:
        print(f"{answer['task']}: {answer['label']} ({answer['probability']:.3f})  {answer['input']}")
    return 0


def _classes(bundle: Bundle, inputs: Sequence[_Input], options: argparse.Namespace) -> list[Answer]:
    answers = []
    for task, asked in _tasks(bundle, inputs, options.task, "classification").items():
        predictions = bundle.predict(
            [one.value for one in asked],
            task,
            adapter=[one.adapter for one in asked],
            merged=options.merged,
        )
        answers += [
            {"task": task, "input": one.given, "adapter": one.adapter, **asdict(prediction)}
            for one, prediction in zip(asked, predictions, strict=True)
        ]
    return answers


def _choices(bundle: Bundle, inputs: Sequence[_Input], options: argparse.Namespace) -> list[Answer]:
    answers = []
    for task, asked in _tasks(bundle, inputs, options.task, "multiple_choice").items():
        for one in asked:
            prediction = bundle.choose(
                one.given, options.choice, task, adapter=one.adapter, merged=options.merged
            )
            answers.append({"task": task, "input": one.given, "adapter": one.adapter, **asdict(prediction)})
    return answers


def _tasks(bundle: Bundle, inputs: Sequence[_Input], task: str | None, kind: str) -> dict[str, list[_Input]]:
    """Who is asked what: a task for all inputs, or for each input all tasks of this kind of its adapter."""
    if task is not None:
        return {task: list(inputs)}
    asked: dict[str, list[_Input]] = {}
    for one in inputs:
        heads = bundle.tasks(one.adapter).values()
        fitting = [head.name for head in heads if head.kind == kind]
        if not fitting:
            has = ", ".join(f"{head.name} ({head.kind})" for head in heads) or "none"
            raise TaskError(
                f"adapter {one.adapter!r} has no {kind} task but {has}: --choice goes with multiple_choice"
            )
        for name in fitting:
            asked.setdefault(name, []).append(one)
    return asked


def _inputs(bundle: Bundle, options: argparse.Namespace) -> list[_Input]:
    from fedkron.edge.texts import TextInput

    given = _given(options)
    adapters = _adapters_asked(bundle, options.adapter, len(given))
    is_text = isinstance(bundle.manifest.input, TextInput)
    return [
        _Input(one, one if is_text else _image(one), adapter)
        for one, adapter in zip(given, adapters, strict=True)
    ]


def _image(path: str) -> Image:
    from PIL import Image, ImageOps

    try:
        # Turned upright, as the camera has noted it down; this reads all of the file.
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TaskError(f"{path} is not an image that can be read: {error}") from error


# ---------------------------------------------------------------- language models


def _write(options: argparse.Namespace) -> int:
    from fedkron.edge.language_runtime import LanguageModel, Sampling

    model = LanguageModel.open(options.bundle, threads=options.threads)
    if options.list:
        return _print_adapters(model, options.json)
    settings = {name: getattr(options, name) for name in _FOR_LANGUAGE_MODELS}
    sampling = Sampling(**{name: value for name, value in settings.items() if value is not None})
    prompts = _given(options)
    adapters = _adapters_asked(model, options.adapter, len(prompts))
    if len(prompts) == 1 and not options.json:
        pieces = model.stream(prompts[0], sampling, adapter=adapters[0], merged=options.merged)
        print(prompts[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0
    texts = model.generate(prompts, sampling, adapter=adapters, merged=options.merged)
    if options.json:
        found = zip(prompts, adapters, texts, strict=True)
        _print_json([{"input": i, "adapter": adapter, "text": text} for i, adapter, text in found])
        return 0
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt}{text}")
    return 0


# ---------------------------------------------------------------- both


def _refuse(options: argparse.Namespace, names: Sequence[str]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if given:
        raise TaskError(f"{given[0]} has no meaning for this bundle: leave it out")


def _given(options: argparse.Namespace) -> list[str]:
    given: list[str] = options.input or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise TaskError("there is no input: give one as an argument, or lines on standard input")
    return given


def _adapters_asked(bundle: Bundle | LanguageModel, given: Sequence[str], number: int) -> list[str]:
    """The name of an adapter for each input; files are loaded, under a name that nothing else has."""
    from fedkron.edge.store import DEFAULT

    if len(given) not in (0, 1, number):
        raise TaskError(f"there are {len(given)} adapters for {number} inputs: give one, or one for each")
    for one in dict.fromkeys(given):
        if one not in bundle.adapters:
            if not Path(one).is_file():
                has = ", ".join(bundle.adapters)
                raise TaskError(f"{one!r} is no file, and no adapter of this bundle: it has {has}")
            bundle.load(Path(one), one)
    return list(given) if len(given) == number else [*given, DEFAULT][:1] * number


def _print_adapters(bundle: Bundle | LanguageModel, as_json: bool) -> int:
    if as_json:
        _print_json(
            [
                {
                    "adapter": name,
                    "tasks": [
                        {"name": head.name, "kind": head.kind, "labels": list(head.labels)}
                        for head in adapter.heads
                    ],
                }
                for name, adapter in bundle.adapters.items()
            ]
        )
        return 0
    for name, adapter in bundle.adapters.items():
        tasks = ", ".join(f"{head.name} ({head.kind})" for head in adapter.heads)
        print(f"{name}: {tasks or 'no tasks'}")
    return 0


def _print_json(content: list[Answer]) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False))
