"""The house keeps its rooms apart: who may import what, read from the source and tried in a fresh process."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("clients", "server", "export")
TORCH = {"torch", "transformers"}
FLOWER = {"flwr", "flwr_datasets"}
ONNX = {"onnx", "onnxruntime", "onnxscript"}
DEVICE = {
    "fedkron.edge.adapter_folder",
    "fedkron.edge.generation",
    "fedkron.edge.images",
    "fedkron.edge.language_runtime",
    "fedkron.edge.onnx_adapter",
    "fedkron.edge.runtime",
    "fedkron.edge.service",
    "fedkron.registry.pull",
}
"""What a device may load: `onnxruntime` runs the graphs there, nothing needs `onnx` itself."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(*packages: str) -> dict[str, Path]:
    """All modules in some packages (or single modules, `fedkron.layout`), by name."""
    found = {}
    for package in packages:
        place = ROOT.joinpath(*package.split("."))
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        found |= {module_name(file): file for file in files}
    assert found
    assert all(file.is_file() for file in found.values())
    return found


MODULES = modules_of("fedkron", *PROGRAMS)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, except what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from executed(other)
        else:
            yield from executed(child)


def imports_of(source: str, name: str, *, is_package: bool = False) -> set[str]:
    """Full names of all modules that a source imports, inside functions too."""
    package = name if is_package else name.rpartition(".")[0]
    found = set()
    for node in executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            submodules = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {origin} | (submodules & MODULES.keys())
    return found


def imports(name: str) -> set[str]:
    file = MODULES[name]
    return imports_of(file.read_text(encoding="utf-8"), name, is_package=file.name == "__init__.py")


def reached(names: Iterable[str]) -> set[str]:
    """Everything that is imported by these modules, and by those of ours that they import."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        # Importing a.b runs a too.
        parents = {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}
        waiting += [*parents, *(imports(name) if name in MODULES else ())]
    return seen


def rooms(names: Iterable[str]) -> set[str]:
    """The outermost package of each name."""
    return {name.partition(".")[0] for name in names}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_parser_sees_every_way_to_import() -> None:
    source = """
import os.path as p, torch.nn
from . import ledger
from .layout import State
from fedkron import errors
if TYPE_CHECKING:
    import flwr
else:
    import onnx
def f():
    from transformers import AutoModel
"""
    assert imports_of(source, "fedkron.report") == {
        "os.path",
        "torch.nn",
        "fedkron",
        "fedkron.ledger",
        "fedkron.layout",
        "fedkron.errors",
        "onnx",
        "transformers",
    }


def test_the_library_never_imports_the_programs_that_use_it() -> None:
    for name in modules_of("fedkron"):
        assert not rooms(imports(name)) & {*PROGRAMS, "simulations", "benchmarks", "tests"}, name


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_imports_no_other_program_and_nothing_that_stands_on_top(program: str) -> None:
    others = {*PROGRAMS, "simulations", "benchmarks", "tests"} - {program}
    for name in modules_of(program):
        assert not rooms(imports(name)) & others, name


@pytest.mark.parametrize(
    "room",
    [
        "fedkron.compression",
        "fedkron.aggregation",
        "fedkron.audit",
        "fedkron.secure",
        "fedkron.edge.device_adapter",
        "fedkron.edge.slot",
        *sorted(DEVICE),
        "fedkron.ledger",
        "fedkron.layout",
        "fedkron.kinds",
        "fedkron.exchange.files",
    ],
)
def test_what_runs_without_torch_reaches_neither_torch_nor_flower_nor_onnx(room: str) -> None:
    allowed = {"onnxruntime"} if room in DEVICE else set()
    assert not rooms(reached(modules_of(room))) & (TORCH | FLOWER | ONNX - allowed)


def test_the_program_in_a_bundle_needs_nothing_of_ours() -> None:
    assert not rooms(imports("fedkron.edge.standalone")) & ({"fedkron", "onnx"} | TORCH | FLOWER)


def test_adapters_reach_neither_flower_nor_onnx() -> None:
    assert not rooms(reached(modules_of("fedkron.adapters"))) & (FLOWER | ONNX)


@pytest.mark.parametrize(
    "room",
    ["fedkron.adapters", "fedkron.compression", "fedkron.aggregation", "fedkron.secure", "fedkron.ledger"],
)
def test_these_rooms_know_nothing_of_each_other_but_layout_kinds_errors_and_cache(room: str) -> None:
    for name in modules_of(room):
        own = {other for other in imports(name) if within(other, "fedkron") and not within(other, room)}
        assert own <= {"fedkron.layout", "fedkron.kinds", "fedkron.errors", "fedkron.bounded_cache"}, name


def test_a_server_or_a_device_loads_neither_torch_nor_transformers_nor_flower() -> None:
    program = f"""
import sys
import fedkron.compression, fedkron.aggregation, fedkron.settings, fedkron.ledger
import {", ".join(sorted(DEVICE))}
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert {{"numpy", "onnxruntime", "fedkron"}} <= loaded
print(*sorted(loaded & {{"torch", "transformers", "flwr", "onnx", "datasets"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
