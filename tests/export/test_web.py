"""The page in a real browser: it answers what Python answers, or says why it does not."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser_cases import chromium
from playwright.sync_api import Browser, Page, expect
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from web_cases import ENCODINGS, SECOND, ready, save_second_adapter, served, write_tiny_bundle

from export.web.server import PAGE
from fedkron.base import Base, load_base
from fedkron.demo import resolve_base
from fedkron.edge.device_adapter import read_device_adapter, save_device_adapter
from fedkron.edge.manifest import sha256
from fedkron.edge.runtime import Bundle

COLOURS = "colour/of: it"
ADAPTERS = ["default", "second"]
TEXTS = [
    "who is near the sky",
    "my rose",
    "",
    "naïve café ☂️ 你好",
    "the leash and the bone " * 20,
    "[PAD] [CLS] <b>milk</b> http://example.org?q=1",
    "\n\tbark",
]
QUESTIONS = [("who has _ and _", ["milk", "the bone", "$& rose"]), ("what is near", ["sky", "one leaf " * 9])]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder) as launched:
        yield launched
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> Base:
    return load_base(str(tiny_bert))


@pytest.fixture(scope="module")
def bundles(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("web")
    return {encoding: write_tiny_bundle(folder / encoding, base, encoding) for encoding in ENCODINGS}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


@pytest.fixture
def asked(page: Page, bundles: dict[str, Path]) -> Iterator[Page]:
    """The page of the int4 bundle, with an answer."""
    with served(bundles["int4"]) as address:
        ready(page, address)
        page.get_by_label("Task").select_option(COLOURS)
        page.get_by_label("Text", exact=True).fill(TEXTS[0])
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#bars li")).to_have_count(3)
        yield page


# ---------------------------------------------------------------- answers

ASK = """async ({ questions, labelled, choices }) => {
  const { Bundle } = await import("/js/bundle.js");
  const bundle = await Bundle.open(new URL("bundle/", location.href));
  const answers = [];
  for (const [text, task, adapter] of labelled) answers.push(await bundle.predict(text, task, adapter));
  for (const [text, options, task, adapter] of choices)
    answers.push(await bundle.choose(text, options, task, adapter));
  return answers;
}"""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_browser_answers_what_python_answers_whatever_adapter_a_call_names(
    page: Page, bundles: dict[str, Path], encoding: str
) -> None:
    python = Bundle.open(bundles[encoding], threads=1)
    labelled = [[text, task, name] for text in TEXTS for task in (COLOURS, "many") for name in ADAPTERS]
    choices = [[*question, "trivia", name] for question in QUESTIONS for name in ADAPTERS]
    with served(bundles[encoding]) as address:
        page.goto(address)
        answers = page.evaluate(ASK, {"labelled": labelled, "choices": choices})
    expected = [python.predict([text], task, adapter=name)[0] for text, task, name in labelled]
    expected += [python.choose(text, options, task, adapter=name) for text, options, task, name in choices]
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["label"] == wanted.label
        assert answer["probability"] == max(answer["probabilities"])
        np.testing.assert_allclose(answer["probabilities"], wanted.probabilities, atol=1e-5)
    # The adapters do disagree: one that is not switched would show.
    first, second = (np.array(a["probabilities"]) for a in answers[:2])
    assert np.abs(first - second).max() > 1e-2


def shown(page: Page) -> dict[str, float]:
    """Labels and their percentages on the page, from top to bottom."""
    bars = page.locator("#bars li").all()
    return {
        bar.locator(".label").inner_text(): float(bar.locator(".share").inner_text().removesuffix(" %"))
        for bar in bars
    }


def python_shows(bundle: Path, text: str, task: str, adapter: str) -> dict[str, float]:
    opened = Bundle.open(bundle, threads=1)
    probabilities = opened.predict([text], task, adapter=adapter)[0].probabilities
    head = opened.tasks(adapter)[task]
    labels = head.labels or [str(number) for number in range(len(probabilities))]
    ranked = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    return {label: round(100 * probability, 1) for label, probability in ranked}


def test_the_page_shows_the_answer_of_the_adapter_that_is_chosen(
    asked: Page, bundles: dict[str, Path]
) -> None:
    for adapter in (*ADAPTERS, "default"):
        asked.get_by_label("Adapter", exact=True).select_option(adapter)
        expected = python_shows(bundles["int4"], TEXTS[0], COLOURS, adapter)
        expect(asked.locator("#answer")).to_have_text(next(iter(expected)))
        assert list(shown(asked)) == list(expected)
        assert shown(asked) == pytest.approx(expected, abs=0.11)
        expect(asked.locator("#switch")).to_contain_text("ms")
    expect(asked.locator("#switch")).not_to_contain_text("fetched")


def test_the_ten_most_probable_labels_are_shown(asked: Page, bundles: dict[str, Path]) -> None:
    asked.get_by_label("Task").select_option("many")
    expect(asked.locator("#bars li")).to_have_count(10)
    expected = python_shows(bundles["int4"], TEXTS[0], "many", "default")
    assert shown(asked) == pytest.approx(dict(list(expected.items())[:10]), abs=0.11)
    expect(asked.locator("#nothing")).to_have_text("and 4 less probable ones")


def test_a_task_of_choices_asks_for_them(asked: Page, bundles: dict[str, Path]) -> None:
    expect(asked.get_by_label("Choices")).to_be_hidden()
    asked.get_by_label("Task").select_option("trivia")
    expect(asked.locator("#bars li")).to_have_count(0)
    asked.get_by_label("Choices").fill("\n")
    asked.get_by_role("button", name="Ask", exact=True).click()
    expect(asked.get_by_role("alert")).to_contain_text("no choices")
    asked.get_by_label("Choices").fill("milk\n\nthe bone\n")
    asked.get_by_label("Text", exact=True).fill("who has _")
    asked.get_by_role("button", name="Ask", exact=True).click()
    expected = Bundle.open(bundles["int4"]).choose("who has _", ["milk", "the bone"], "trivia")
    expect(asked.locator("#answer")).to_have_text(expected.label)
    assert sorted(shown(asked).values()) == pytest.approx(
        sorted(100 * p for p in expected.probabilities), abs=0.06
    )
    expect(asked.get_by_role("alert")).to_be_hidden()


def test_the_keyboard_is_enough_and_latencies_are_counted(asked: Page) -> None:
    asked.get_by_label("Text", exact=True).focus()
    asked.keyboard.press("Control+Enter")
    expect(asked.locator("#median")).to_contain_text("2 ×")
    asked.keyboard.press("Tab")
    asked.keyboard.press("Tab")
    asked.keyboard.press("Enter")
    expect(asked.locator("#median")).to_contain_text("22 ×")
    last, median = (asked.locator(place).inner_text().split(" ms")[0] for place in ("#last", "#median"))
    assert float(last) > 0
    assert float(median) > 0


def test_a_question_without_text_is_not_asked(asked: Page) -> None:
    asked.get_by_label("Text", exact=True).fill("")
    asked.get_by_role("button", name="Ask 20 times").click()
    assert asked.evaluate("document.querySelector('#text').validity.valueMissing")
    expect(asked.locator("#median")).to_contain_text("1 ×")


def test_there_is_nothing_that_axe_finds_inaccessible(asked: Page) -> None:
    choose_file(asked, "bad.safetensors", b"")
    expect(asked.get_by_role("alert")).to_be_visible()
    asked.add_script_tag(path=PAGE / "node_modules/axe-core/axe.min.js")
    for scheme in "light", "dark":
        asked.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = asked.evaluate("axe.run()")
        assert "color-contrast" in {rule["id"] for rule in found["passes"]}
        assert [(rule["id"], rule["help"]) for rule in found["violations"]] == []


def test_nothing_is_fetched_from_elsewhere_and_threads_would_work(
    page: Page, bundles: dict[str, Path]
) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    with served(bundles["fp32"]) as address:
        ready(page, address)
        assert page.evaluate("crossOriginIsolated")
    others = [url for url in fetched if urlsplit(url).scheme not in ("data", "blob")]
    assert {urlsplit(url).netloc for url in others} == {urlsplit(address).netloc}
    assert any(url.endswith(".wasm") for url in others)


# ---------------------------------------------------------------- adapters that are added, or refused


def choose_file(page: Page, name: str, content: bytes) -> None:
    page.get_by_label("Adapter file").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )


def test_an_adapter_file_is_added_and_answers(
    asked: Page, bundles: dict[str, Path], base: Base, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    save_second_adapter(file, bundles["int4"], base, seed=3)
    choose_file(asked, file.name, file.read_bytes())
    expect(asked.locator("#added")).to_have_text("mine.safetensors was checked and is in use.")
    expect(asked.get_by_label("Adapter", exact=True)).to_have_value("mine.safetensors")
    python = Bundle.open(bundles["int4"])
    python.load(file, "mine")
    answer = python.predict([TEXTS[0]], COLOURS, adapter="mine")[0]
    expect(asked.locator("#answer")).to_have_text(answer.label)
    assert max(shown(asked).values()) == pytest.approx(100 * answer.probability, abs=0.06)


def flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[-100] ^= 1
    return bytes(damaged)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def test_a_damaged_adapter_is_refused_and_the_one_in_use_stays(asked: Page, bundles: dict[str, Path]) -> None:
    good = (bundles["int4"] / SECOND).read_bytes()
    before = shown(asked)
    for damaged, message in (
        (flipped(good), "its checksum differs"),
        (replaced(good, b"green", b"brown"), "its checksum differs"),
        (replaced(good, rb"\"version\":1", rb"\"version\":9"), "version 9"),
        (good[:-1], "is damaged"),
        (good + b"\0", "is damaged"),
        (good[:300], "is damaged"),
        (b"", "is damaged"),
        (b"\xff" * 8 + good[8:], "is damaged"),
    ):
        choose_file(asked, "bad.safetensors", damaged)
        expect(asked.get_by_role("alert")).to_contain_text(message)
        expect(asked.locator("#added")).to_have_text("bad.safetensors was refused, default stays in use.")
        assert asked.get_by_label("Adapter", exact=True).locator("option").all_inner_texts() == ADAPTERS
        asked.get_by_role("button", name="Ask", exact=True).click()
        expect(asked.get_by_role("alert")).to_be_hidden()
    expect(asked.locator("#median")).to_contain_text("9 ×")
    assert shown(asked) == before


def test_an_adapter_of_another_base_or_another_slot_is_refused(
    asked: Page, bundles: dict[str, Path], tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    # It has the same size, and a checksum that is right.
    adapter = read_device_adapter(bundles["int4"] / SECOND)
    save_device_adapter(foreign, replace(adapter, contract="0" * 64))
    for file, message in (
        (foreign, "its contract is 000000000000…"),
        (bundles["int8"] / SECOND, "its slot_hash is"),
    ):
        choose_file(asked, "other.safetensors", file.read_bytes())
        expect(asked.get_by_role("alert")).to_contain_text("belongs to another base")
        expect(asked.get_by_role("alert")).to_contain_text(message)
        assert asked.get_by_label("Adapter", exact=True).locator("option").all_inner_texts() == ADAPTERS


@pytest.fixture
def copied(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles["int4"], tmp_path / "copied"))


def test_an_adapter_of_the_bundle_that_is_damaged_answers_nothing_and_nobody_answers_for_it(
    page: Page, copied: Path
) -> None:
    (copied / SECOND).write_bytes(flipped((copied / SECOND).read_bytes()))
    with served(copied) as address:
        ready(page, address)
        page.get_by_label("Text", exact=True).fill(TEXTS[0])
        page.get_by_label("Adapter", exact=True).select_option("second")
        expect(page.get_by_role("alert")).to_contain_text(f"{SECOND} is not what was exported")
        ask = page.get_by_role("button", name="Ask", exact=True)
        expect(ask).to_be_disabled()
        page.get_by_label("Text", exact=True).press("Control+Enter")
        page.get_by_label("Adapter", exact=True).select_option("default")
        expect(ask).to_be_enabled()
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#bars li")).to_have_count(0)
        ask.click()
        expect(page.locator("#bars li")).to_have_count(3)
        expect(page.locator("#median")).to_contain_text("1 ×")


# ---------------------------------------------------------------- bundles that are refused


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(content | changes))

    return edit


def flip(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(flipped((folder / name).read_bytes())) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def not_a_graph(folder: Path) -> None:
    (folder / "unmerged.onnx").write_bytes(b"no graph")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["unmerged.onnx"] = sha256(folder / "unmerged.onnx")
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip("base.bin"), "base.bin is not what was exported"),
        (flip("unmerged.onnx"), "unmerged.onnx is not what was exported"),
        (flip("tokenizer.json"), "tokenizer.json is not what was exported"),
        (remove("base.bin"), "base.bin is missing"),
        (remove("manifest.json"), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (edited(format="something"), "not that of a bundle"),
        (edited(version=1), "version 1, this page knows 2"),
        (edited(files={}), "tokenizer.json is not among the bundle's files"),
        (edited(files=None), "manifest.json is damaged"),
        (edited(input={"kind": "language_model"}), "language model"),
        (not_a_graph, "does not run in this browser"),
    ],
)
def test_a_damaged_bundle_is_not_opened(
    page: Page, copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    with served(copied) as address:
        damage(copied)
        ready(page, address)
        expect(page.get_by_role("alert")).to_contain_text(message)
        expect(page.locator("#about")).to_have_text("The bundle could not be opened.")
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
        expect(page.get_by_label("Adapter file")).to_be_disabled()


# ---------------------------------------------------------------- tokens and numbers

TRICKY = [
    *TEXTS,
    "Who wrote Hamlet ?",
    "x" * 300,
    "e\u0301 é \u1e9b\u0323 ﬁ ½ ① ｶﾀｶﾅ",
    "İstanbul ŞIK ǅ ß ẞ ΑΣ ΣΑΣ ὈΔΥΣΣΕΎΣ",
    "👨‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎",
    "한국어 日本語 テスト العربية עברית हिन्दी ไทย",
    "don't won't 'tis U.S.A. 3.14 1,000 -5 $5 C++ ... :-) ^_^ a_b",
    "\u00a0nbsp\u3000wide\u2028line\u2029para\x07bell \x7f \x85 \xad\u200b",
    "a\x00b\ufffdc two  spaces   three ",
    "[MASK] [SEP]x[SEP] [UNK] </s> <s> <pad>",
    "“quotes” «guillemets» — ‹›",
]


def bert() -> Tokenizer:
    return Tokenizer.from_file(str(Path(resolve_base("demo:all-minilm-l6-v2"), "tokenizer.json")))


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRICKY * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    text = " ".join(TRICKY)
    starts = {"▁" + word[:length] for word in text.split() for length in (2, 3, 5)}
    # No letter twice: of two equally probable splits either library may take either.
    pieces = sorted({*text} | {piece for piece in starts if len({*piece}) == len(piece)})
    scores = np.random.default_rng(0).uniform(-9, -1, len(pieces))
    special = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.3)]
    tokenizer = Tokenizer(models.Unigram([*special, *zip(pieces, scores.tolist(), strict=True)], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def words() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "the", "bone", "don", "t"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [bert, byte_pairs, unigram, words])
def test_texts_become_the_tokens_that_the_tokenizers_library_gives(
    page: Page, bundles: dict[str, Path], make: Callable[[], Tokenizer]
) -> None:
    tokenizer = make()
    tokenizer.no_padding()
    cuts = [(side, length) for side in ("left", "right") for length in (3, 12, 64)]
    expected = []
    for side, length in cuts:
        tokenizer.enable_truncation(length, direction=side)
        expected.append([encoding.ids for encoding in tokenizer.encode_batch(TRICKY)])
    with served(bundles["fp32"]) as address:
        page.goto(address)
        found = page.evaluate(
            """async ({ description, cuts, texts }) => {
              const { makeEncoder } = await import("/js/tokenizer.js");
              return cuts.map(([truncation_side, max_length]) =>
                texts.map(makeEncoder(description, { truncation_side, max_length })));
            }""",
            {"description": tokenizer.to_str(), "cuts": cuts, "texts": TRICKY},
        )
    assert found == expected


def test_every_float16_is_read_as_numpy_reads_it(page: Page, bundles: dict[str, Path]) -> None:
    with served(bundles["fp32"]) as address:
        page.goto(address)
        found = page.evaluate(
            """async () => {
              const { fromFloat16 } = await import("/js/safetensors.js");
              const numbers = fromFloat16(Uint16Array.from({ length: 65536 }, (_, bits) => bits));
              return Array.from(new Uint32Array(numbers.buffer));
            }"""
        )
    numbers = np.array(found, np.uint32).view(np.float32)
    np.testing.assert_array_equal(
        numbers, np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    )


# ---------------------------------------------------------------- the server


def test_files_come_with_the_headers_that_threads_and_wasm_need(bundles: dict[str, Path]) -> None:
    wasm = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"
    types = {"": "text/html", "js/main.js": "text/javascript", wasm: "application/wasm"}
    with served(bundles["fp32"]) as address:
        for path, expected in types.items():
            with urllib.request.urlopen(address + path) as response:
                assert response.headers.get_content_type() == expected
                assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    [
        "server.py",
        "..",
        "../compare.py",
        "bundle/../../fp16/base.bin",
        "bundle/",
        "js/",
        "package.json",
        "js/%2e%2e/server.py",
    ],
)
def test_nothing_but_page_and_bundle_is_served(bundles: dict[str, Path], path: str) -> None:
    with served(bundles["fp32"]) as address, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + path)


def run(*arguments: str, folder: Path = PAGE.parents[1]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export.web", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_program_says_what_is_wrong(bundles: dict[str, Path], tmp_path: Path) -> None:
    no_bundle = run(str(tmp_path))
    assert no_bundle.returncode == 1
    assert no_bundle.stderr == f"error: {tmp_path} is not a bundle: it has no manifest.json\n"
    with served(bundles["fp32"]) as address:
        taken = run(str(bundles["fp32"]), "--port", str(urlsplit(address).port))
    assert taken.returncode == 1
    assert "already in use" in taken.stderr
    without = shutil.ignore_patterns("node_modules", "__pycache__")
    shutil.copytree(PAGE.parent, tmp_path / "export", ignore=without)
    not_installed = run(str(bundles["fp32"]), folder=tmp_path)
    assert not_installed.returncode == 1
    assert "run make web, or npm ci --omit=dev --prefix export/web" in not_installed.stderr


def test_the_program_prints_the_address_and_serves_until_it_is_interrupted(bundles: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "export.web", str(bundles["fp32"]), "--port", "0"]
    with subprocess.Popen(command, cwd=PAGE.parents[1], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        address = program.stdout.readline().split()[1]
        with urllib.request.urlopen(address + "bundle/manifest.json") as response:
            assert json.load(response)["format"] == "fedkron-bundle"
        program.send_signal(2)
        assert program.wait(10) == 0
