"""`fedkron predict` on bundles of images and of language models."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import tiny_decoder, transformers_tokenizer
from edge_cases import SPECS, another_adapter, random_head, with_adapter
from PIL import Image
from torch import nn
from transformers import AutoModel, ViTConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedkron.base import Base, fingerprint, image_features
from fedkron.cli import main
from fedkron.edge.bundle import write_bundle
from fedkron.edge.language_bundle import write_language_bundle
from fedkron.exchange import AdapterFile, HeadFile, save_adapter

Capture = pytest.CaptureFixture[str]
Answers = list[dict[str, object]]
PROMPT = "Once upon"


@dataclass(frozen=True)
class Exported:
    """A bundle, the torch model with its adapter, and the adapter."""

    folder: Path
    model: nn.Module
    adapter: AdapterFile
    head: HeadFile | None = None


def silent(_: str) -> None:
    """A report that nobody reads."""


def output_of(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments), "--threads", "1"]) == 0
    return capsys.readouterr().out


def answers_of(capsys: Capture, *arguments: object) -> Answers:
    answers: Answers = json.loads(output_of(capsys, *arguments, "--json"))
    return answers


def error_of(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 24, "width": 24})


@pytest.fixture(scope="module")
def images(processor: ViTImageProcessorPil, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(3)
    backbone = AutoModel.from_config(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=24,
            patch_size=8,
        )
    ).eval()
    backbone.pooler = None
    base = Base("tiny-vit", backbone, None, fingerprint(backbone), processor)
    model, adapter = with_adapter(backbone, SPECS["kron_lora"], base.fingerprint, seed=1)
    head = random_head("animal", ("cat", "dog", "cow"), adapter.layout.contract)
    folder = tmp_path_factory.mktemp("bundles") / "images"
    write_bundle(folder, base, adapter, [head], report=silent)
    return Exported(folder, model, adapter, head)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three files of three formats; the last one was taken with the camera turned."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("one.png", "two.gif", "three.jpg")]
    for number, path in enumerate(paths):
        pixels = rng.integers(0, 256, (6 + number, 5, 3), np.uint8)
        image = Image.fromarray(pixels).resize((60, 40))
        exif = Image.Exif()
        exif[0x0112] = 6 if path.suffix == ".jpg" else 1
        image.save(path, exif=exif) if path.suffix != ".gif" else image.save(path)
    return paths


@torch.no_grad()
def torch_probabilities(
    images: Exported, processor: ViTImageProcessorPil, pictures: list[Image.Image]
) -> np.ndarray:
    assert images.head is not None
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    features = image_features(images.model, pixels)
    logits = features @ torch.tensor(images.head.weight).T + torch.tensor(images.head.bias)
    return torch.softmax(logits, -1).numpy()


@pytest.mark.parametrize("flags", [[], ["--merged"]])
def test_image_files_are_answered_as_torch_does(
    images: Exported, processor: ViTImageProcessorPil, photos: list[Path], capsys: Capture, flags: list[str]
) -> None:
    answers = answers_of(capsys, images.folder, *photos, *flags)
    pictures = [Image.open(path).convert("RGB") for path in photos]
    # What orientation 6 means: the top of the scene is at the right side of the file.
    pictures[2] = pictures[2].rotate(-90, expand=True)
    expected = torch_probabilities(images, processor, pictures)
    assert images.head is not None
    np.testing.assert_allclose([a["probabilities"] for a in answers], expected, atol=1e-4)
    assert [a["label"] for a in answers] == [images.head.labels[i] for i in expected.argmax(-1)]
    assert [a["input"] for a in answers] == list(map(str, photos))
    assert np.ptp(expected, axis=0).max() > 1e-3


def test_what_is_not_an_image_is_refused(images: Exported, photos: list[Path], capsys: Capture) -> None:
    cut = photos[0].with_name("cut.png")
    cut.write_bytes(photos[0].read_bytes()[:-2000])
    text = photos[0].with_name("text.png")
    text.write_text("no image")
    for path in cut, text, photos[0].with_name("nowhere.png"), photos[0].parent:
        error = error_of(capsys, images.folder, photos[0], path)
        assert f"{path} is not an image that can be read" in error


# ---------------------------------------------------------------- language models


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    decoder = tiny_decoder("llama")
    base = Base("tiny-llama", decoder, transformers_tokenizer(), fingerprint(decoder))
    model, adapter = with_adapter(decoder, SPECS["kron_lora"], base.fingerprint, seed=1)
    folder = tmp_path_factory.mktemp("bundles") / "language"
    write_language_bundle(folder, base, adapter, max_length=48, report=silent)
    return Exported(folder, model, adapter)


@torch.no_grad()
def torch_text(language: Exported, prompt: str, new: int) -> str:
    tokenizer = transformers_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    tokens = language.model.generate(ids, do_sample=False, max_new_tokens=new)
    return str(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("flags", [[], ["--merged"]])
def test_a_prompt_is_continued_as_torch_does(language: Exported, capsys: Capture, flags: list[str]) -> None:
    (answer,) = answers_of(capsys, language.folder, PROMPT, "--max-new-tokens", 12, *flags)
    # Bytes that are no characters yet come out differently at the end of a text.
    expected = torch_text(language, PROMPT, 12).rstrip("\ufffd")
    assert answer == {"input": PROMPT, "adapter": "default", "text": expected}
    printed = output_of(capsys, language.folder, PROMPT, "--max-new-tokens", 12, *flags)
    assert printed == f"{PROMPT}{answer['text']}\n"


def test_several_prompts_with_an_adapter_each(language: Exported, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other.safetensors"
    save_adapter(other, another_adapter(language.adapter, seed=5))
    prompts = [PROMPT, PROMPT, "A"]
    flags = ["--max-new-tokens", 8]
    asked = ["--adapter", "default", "--adapter", other, "--adapter", other]
    together = answers_of(capsys, language.folder, *prompts, *asked, *flags)
    alone = [
        answers_of(capsys, language.folder, prompt, "--adapter", adapter, *flags)[0]
        for prompt, adapter in zip(prompts, ("default", other, other), strict=True)
    ]
    assert together == alone
    assert together[0]["text"] != together[1]["text"]
    assert output_of(capsys, language.folder, *prompts, *asked, *flags) == "".join(
        f"{one['input']}{one['text']}\n" for one in together
    )


def test_draws_repeat_with_their_seed(language: Exported, capsys: Capture) -> None:
    ask = (language.folder, PROMPT, "--max-new-tokens", 20, "--temperature", 3)
    first = answers_of(capsys, *ask, "--seed", 1)
    assert answers_of(capsys, *ask, "--seed", 1) == first
    assert answers_of(capsys, *ask, "--seed", 2) != first
    # Only the most probable token is left to draw from.
    greedy = answers_of(capsys, language.folder, PROMPT, "--max-new-tokens", 20)
    assert answers_of(capsys, *ask, "--top-p", 1e-9) == greedy


def test_the_list_of_a_language_model_has_no_tasks(language: Exported, capsys: Capture) -> None:
    assert answers_of(capsys, language.folder, "--list") == [{"adapter": "default", "tasks": []}]
    assert output_of(capsys, language.folder, "--list") == "default: no tasks\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([PROMPT, "--task", "spam"], "--task has no meaning for this bundle"),
        ([PROMPT, "--choice", "a", "--choice", "b"], "--choice has no meaning for this bundle"),
        ([PROMPT, "--adapter", "nobody"], "no adapter of this bundle: it has default"),
        ([PROMPT, "--temperature", "-1"], "temperature is -1.0"),
        ([PROMPT, "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["x" * 48], "a prompt has 48 tokens"),
    ],
)
def test_what_cannot_be_continued_is_said(
    language: Exported, capsys: Capture, arguments: list[str], reason: str
) -> None:
    assert reason in error_of(capsys, language.folder, *arguments)


def test_their_own_program_and_the_service_send_to_predict(
    images: Exported, language: Exported, capsys: Capture
) -> None:
    for folder in images.folder, language.folder:
        assert main(["serve", str(folder), "--port", "0"]) == 1
        assert "use `fedkron predict`" in capsys.readouterr().err
        done = subprocess.run(
            [sys.executable, folder / "run.py", "x"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "use `fedkron predict`" in done.stderr
