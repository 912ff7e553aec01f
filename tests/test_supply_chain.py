"""What is installed is written down with its hash, and no data can bring code with it."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("fedkron", "clients", "server", "export", "simulations", "benchmarks", ".ci")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def sources(*folders: str) -> list[Path]:
    found = [file for name in folders for file in (ROOT / name).rglob("*.py")]
    return [file for file in found if "node_modules" not in file.parts]


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a keyword argument is, or what no constant is equal to."""
    values = [k.value for k in call.keywords if k.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else NotImplemented


def dangers(source: str) -> Iterator[str]:
    """Whatever in a program could run code that comes with its data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from (f"import {name}" for name in names if name.partition(".")[0] in PICKLES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load" and keyword(node, "weights_only") is not True:
                yield called
            if called in ("eval", "exec", "builtins.eval", "builtins.exec", "yaml.load", "yaml.unsafe_load"):
                yield called
            if (
                any(k.arg == "allow_pickle" for k in node.keywords)
                and keyword(node, "allow_pickle") is not False
            ):
                yield f"{called}(allow_pickle)"
            remote = [k for k in node.keywords if k.arg == "trust_remote_code"]
            if remote and keyword(node, "trust_remote_code") is not False:
                yield f"{called}(trust_remote_code)"
            if called.rpartition(".")[2] == "read_pickle":
                yield called


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "import numpy, joblib.numpy_pickle as j",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader=Loader)",
        "eval(text)",
        "exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert len(list(dangers(source))) == 1


def test_what_is_harmless_is_not_found() -> None:
    harmless = "import json\ntorch.load(p, weights_only=True)\nmodel.eval()\nnp.load(p, allow_pickle=False)\n"
    assert list(dangers(harmless)) == []


def test_no_program_reads_data_that_could_be_code() -> None:
    files = sources(*PROGRAMS)
    assert len(files) > 150
    found = {str(file.relative_to(ROOT)): list(dangers(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: names for name, names in found.items() if names} == {}


def test_every_model_that_a_run_loads_is_loaded_as_data() -> None:
    tree = ast.parse((ROOT / "fedkron" / "base.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    loads = [c for c in calls if c.func.attr in ("from_pretrained", "from_config")]  # type: ignore[attr-defined]
    assert len(loads) >= 7
    for call in loads:
        assert any(k.arg is None and ast.unparse(k.value) == "_NO_CODE" for k in call.keywords), ast.unparse(
            call
        )
        if ast.unparse(call.func) in ("AutoModel.from_pretrained", "model_class.from_pretrained"):
            assert keyword(call, "use_safetensors") is True, ast.unparse(call)


# ---------------------------------------------------------------- locks


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(canonical(line) for line in lines if not line.startswith("#"))


def canonical(requirement: str) -> tuple[str, str]:
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def locked(name: str) -> dict[str, str]:
    """Versions by name; each with a hash, and nothing else in the file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    versions = {}
    for requirement in lines.replace("\\\n", " ").splitlines():
        what, *hashes = requirement.split(" --hash=")
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", digest) for digest in hashes), requirement
        package, version = canonical(what.partition(";")[0].strip())
        assert re.fullmatch(r"[0-9][0-9a-z.+!]*", version), requirement
        versions[package] = version
    return versions


def test_the_locks_are_those_of_the_constraints() -> None:
    others = pins()
    torch = others.pop("torch")
    assert locked("requirements.lock") == others, "run `make lock`"
    assert locked("requirements-torch.lock")["torch"] == torch
    assert locked("requirements-torch.lock").keys().isdisjoint(others)
    cpu = locked("requirements-torch-cpu.lock")
    assert cpu.keys() == {"torch"}
    assert re.fullmatch(rf"{re.escape(torch)}\+\w+", cpu["torch"])


def test_what_fedkron_is_built_and_made_of_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    declared += [r for extra in project["project"]["optional-dependencies"].values() for r in extra]
    names = {canonical(re.split(r"[\[<>=!~; ]", requirement)[0])[0] for requirement in declared}
    assert names - pins().keys() == {"fedkron"}


def test_the_browser_page_s_packages_have_hashes() -> None:
    packages = json.loads((ROOT / "export" / "web" / "package-lock.json").read_text())["packages"]
    fetched = {name: package for name, package in packages.items() if name and not package.get("link")}
    assert fetched
    assert all(package["integrity"].startswith("sha512-") for package in fetched.values())
