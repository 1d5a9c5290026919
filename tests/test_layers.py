"""The arrows between the layers: every #include and every import obeys docs/design.md.

Each check is a function from a tree to its violations, so that a planted violation shows that it
can fail.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a directory of csrc may include besides itself; what those may include is allowed too.
ARROWS = {
    "base": set(),
    "schedule": set(),
    "program": {"schedule"},
    "analysis": {"program"},
    "reduce": {"base"},
    "transport": {"base"},
    "local": {"reduce", "base"},
    "engine": {"program", "reduce", "transport", "base"},
    "device": {"nccl", "reduce", "base"},
    "nccl": {"base"},
    "group": {"engine", "local", "transport", "device"},
    "cuda": {"group", "engine", "reduce", "device", "base"},
    "emulation": {"base"},
    "python": {"cuda", "group", "nccl", "analysis", "emulation"},
    "torch": {"group"},
}
# What a package or module of allreduce may import besides itself, when it is imported.
PACKAGES = {
    "errors": set(),
    "schedules": {"errors"},
    "rendezvous": {"errors"},
    "cuda": {"errors"},
    "tuning": {"schedules"},
    "communicator": {"rendezvous", "cuda", "tuning"},
    "commands": {"communicator"},
    "show": {"schedules"},
    "bench": {"commands"},
    "tune": {"commands"},
    "doctor": {"commands"},
    "emulate": {"commands"},
    "optim": {"cuda"},
    "torch": {"commands", "optim"},
}
# The same of trainer.
TRAINER_PACKAGES = {
    "errors": set(),
    "data": {"errors"},
    "config": {"data"},
    "output": {"config"},
    "model": {"config"},
    "checkpoint": {"output"},
    "launch": {"checkpoint"},
    "training": {"launch", "model"},
    "report": {"output"},
    "pack": {"data"},
    "dry_run": {"training"},
    "run": {"launch"},
}
# The same of benchmarks.
BENCHMARK_PACKAGES = {
    "peers": set(),
    "networks": {"peers"},
    "harness": {"peers", "networks"},
    "report": {"harness"},
    "large_minibatch": {"report"},
    "conftest": {"report"},
    "suite": {"conftest", "large_minibatch"},
    "gpu": set(),
    "gpu_check": {"gpu"},
    "kills": set(),
    "many_ranks": set(),
    "start_up": set(),
}
TREES = {"allreduce": PACKAGES, "trainer": TRAINER_PACKAGES, "benchmarks": BENCHMARK_PACKAGES}
# Of these modules others may use the names without an underscore.
PUBLIC = {
    "allreduce",
    *(f"allreduce.{name}" for name in ("cuda", "errors", "optim", "optim.schedules", "torch")),
    *(f"allreduce.{name}" for name in ("schedules", "schedules.simulate")),
    *(f"allreduce.{name}" for name in ("tuning.cost", "tuning.training_step")),
    *(f"allreduce.torch.ddp.{name}" for name in ("bucket_size", "buckets")),
    *(f"allreduce.commands.{name}" for name in ("local_processes", "parent_death")),
    "allreduce.rendezvous.store",  # docs/errors.md names it
}
IN_NO_PACKAGE = {"__init__"}
MARKERS = {"__main__.py", "py.typed", "_C.pyi"}  # what Python and type checkers ask for by name
MOST_ENTRIES = 15  # at the top of each
MOST_FLOORS = 8
BACKEND = "torch/backend.cc"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
CPP = {".h", ".cuh", ".inc", ".cc", ".cu"}
TORCH_HEADERS = ("torch/", "c10/", "ATen/", "caffe2/")
CUDA_HEADERS = ("cuda", "nccl", "cooperative_groups", "cub/", "thrust/")
# torch is the business of these packages alone; optim's schedules work without it as well.
TORCH_PACKAGES = {"torch", "optim"}


def reachable(layer: str, arrows: dict[str, set[str]] = ARROWS) -> set[str]:
    below = arrows[layer] | {layer}
    return below.union(*(reachable(other, arrows) for other in arrows[layer]))


def include_violations(root: Path) -> list[str]:
    csrc = root / "csrc"
    files = sorted(file for file in csrc.rglob("*") if file.suffix in CPP)
    return [line for file in files for line in bad_includes(csrc, file)]


def bad_includes(csrc: Path, file: Path) -> Iterator[str]:
    name = file.relative_to(csrc)
    layer = name.parts[0]
    if layer not in ARROWS:
        yield f"{name}: {layer} is no layer of csrc"
        return
    if layer == "torch" and name.suffix == ".cc" and name.as_posix() != BACKEND:
        yield f"{name}: torch's headers take 22 s a file; {BACKEND} is the only one"
    for bracket, header in INCLUDE.findall(file.read_text()):
        if bracket == "<":
            if header.startswith(TORCH_HEADERS) and layer != "torch":
                yield f"{name} includes <{header}>: only torch/ includes torch"
            if header.startswith("pybind11/") and layer not in {"python", "torch"}:
                yield f"{name} includes <{header}>: only python/ includes pybind11"
            if header.startswith(CUDA_HEADERS) and layer != "cuda":
                yield f"{name} includes <{header}>: only cuda/ includes CUDA"
            if header.startswith("torch/extension"):
                yield f"{name} includes <{header}>: it takes 40 s to compile"
        elif not (csrc / header).is_file():
            yield f'{name} includes "{header}": no such file; paths are relative to csrc'
        elif header.split("/")[0] not in reachable(layer):
            yield f'{name} includes "{header}": {layer} may not use {header.split("/")[0]}'


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of absolute imports; with lazy=False only what importing runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif lazy or not runs_later(node):
            yield from imports(node, lazy=lazy)


def runs_later(node: ast.AST) -> bool:
    """True for what importing the module does not run: functions, `if TYPE_CHECKING`."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def import_violations(root: Path) -> list[str]:
    found = []
    for top in ("allreduce", "trainer", "benchmarks"):
        for file in sorted((root / top).rglob("*.py")):
            name = file.relative_to(root)
            tree = ast.parse(file.read_text(), str(file))
            found += [f"{name} imports {text}" for text in bad_imports(name, tree)]
    return found


def bad_imports(name: Path, tree: ast.AST) -> Iterator[str]:
    everything = list(imports(tree, lazy=True))
    for module, _ in everything:
        top = module.split(".")[0]
        measured = name.parts[0] == "benchmarks" and top == "trainer"  # its step is measured there
        if not measured and top in {"tests", "benchmarks", "trainer"} - {name.parts[0]}:
            yield f"{module}: nobody imports {top}"
    inside = len(name.parts) > 1 and name.parts[1] not in MARKERS and name.stem not in IN_NO_PACKAGE
    if name.parts[0] in TREES and inside:
        yield from bad_packages(name, tree)
    if name.parts[0] == "allreduce" and name.parts[1] not in TORCH_PACKAGES:
        for module, _ in imports(tree, lazy=False):
            if module.split(".")[0] == "torch":
                yield f"{module} at module level: `import allreduce` needs no torch"
    if name.parts[0] == "trainer":
        yield from private_names(tree, everything)


def bad_packages(name: Path, tree: ast.AST) -> Iterator[str]:
    top, own = name.with_suffix("").parts[:2]
    packages = TREES[top]
    if own not in packages:
        yield f"nothing may: {own} is no package that is known here"
        return
    for module, member in imports(tree, lazy=False):
        parts = [*module.split("."), member]
        if parts[0] != top or parts[1] not in packages:
            continue  # the native core, or the package itself
        if parts[1] not in reachable(own, packages):
            yield f"{module}: {own} may not use {parts[1]}"


def private_names(tree: ast.AST, everything: list[tuple[str, str]]) -> Iterator[str]:
    for module, name in everything:
        parts = [*module.split("."), name]
        private = module not in PUBLIC or any(part.startswith("_") for part in parts)
        if parts[0] == "allreduce" and private:
            yield f"{module}.{name}: trainer uses the public names of allreduce only"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            path = ast.unparse(node)
            if path.startswith("allreduce.") and not node.attr.startswith("__"):
                yield f"{path}: trainer uses the public names of allreduce only"


def test_includes_obey_the_layers() -> None:
    assert include_violations(ROOT) == []


def test_imports_obey_the_layers() -> None:
    assert import_violations(ROOT) == []


@pytest.mark.parametrize("top", TREES)
def test_the_packages_are_few_and_on_few_floors(top: str) -> None:
    package, packages = ROOT / top, TREES[top]
    entries = {
        entry.name
        for entry in package.iterdir()
        if not entry.name.endswith((".so", ".so.key")) and entry.name != "__pycache__"
    }
    entries -= MARKERS
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    assert {Path(name).stem for name in entries} - {"__init__", "_C", "results"} == set(packages)

    def floor(name: str) -> int:
        return 1 + max(map(floor, packages[name]), default=0)

    assert max(map(floor, packages)) <= MOST_FLOORS


def test_every_layer_is_checked() -> None:
    layers = {folder.name for folder in (ROOT / "csrc").iterdir() if folder.is_dir()}
    assert layers <= set(ARROWS)
    assert len(layers) >= 9


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("csrc/base/fd.h", '#include "engine/engine.h"', "base may not use engine"),
        ("csrc/schedule/ring.cc", '#include "base/error.h"', "schedule may not use base"),
        ("csrc/torch/backend.cc", '#include "cuda/cuda.h"', "torch may not use cuda"),
        ("csrc/group/group.cc", '#  include "python/module.h"', "group may not use python"),
        ("csrc/group/group.cc", "#include <torch/torch.h>", "only torch/"),
        ("csrc/torch/more.cc", "", "is the only one"),
        ("csrc/torch/backend.cc", "#include <torch/extension.h>", "40 s"),
        ("csrc/engine/engine.cc", "#include <pybind11/pybind11.h>", "only python/"),
        ("csrc/group/group.cc", "#include <cuda_runtime.h>", "only cuda/"),
        ("csrc/base/fd.cc", '#include "fd.h"', "relative to csrc"),
        ("csrc/misc/misc.h", "", "no layer"),
    ],
)
def test_a_planted_include_is_found(tmp_path: Path, file: str, line: str, says: str) -> None:
    for header in ("engine/engine.h", "base/error.h", "cuda/cuda.h", "python/module.h"):
        plant(tmp_path / "csrc" / header, "")
    plant(tmp_path / file, f"// A file.\n{line}\n")
    (violation,) = include_violations(tmp_path)
    assert says in violation


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("allreduce/tuning/cost.py", "import torch", "needs no torch"),
        (
            "allreduce/tuning/cost.py",
            "try:\n    from torch import nn\nexcept ImportError: ...",
            "no torch",
        ),
        (
            "allreduce/torch/ddp/module.py",
            "import trainer.run",
            "nobody imports trainer",
        ),
        ("allreduce/tuning/cost.py", "def f():\n    import tests.conftest", "nobody imports tests"),
        ("trainer/run.py", "from allreduce.rendezvous.connect import Connections", "public names"),
        ("trainer/run.py", "from allreduce import _C", "public names"),
        (
            "allreduce/rendezvous/connect.py",
            "from allreduce.tuning.option import TuningRequest",
            "rendezvous may not use tuning",
        ),
        ("allreduce/tuning/cost.py", "import allreduce.bench.cases", "may not use bench"),
        ("allreduce/news/x.py", "import os", "no package that is known"),
        ("trainer/run.py", "import allreduce\nallreduce._C.f()", "public names"),
        ("trainer/run.py", "from benchmarks import peers", "nobody imports benchmarks"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, says: str) -> None:
    plant(tmp_path / file, f"{line}\n")
    (violation,) = import_violations(tmp_path)
    assert says in violation


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("allreduce/tuning/cost.py", "def f():\n    import torch"),
        (
            "allreduce/tuning/cost.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        ),
        ("allreduce/torch/ddp/module.py", "import torch"),
        ("trainer/run.py", "import allreduce\nfrom allreduce.torch import DistributedDataParallel"),
    ],
)
def test_an_allowed_import_is_no_violation(tmp_path: Path, file: str, line: str) -> None:
    plant(tmp_path / file, f"{line}\n")
    assert import_violations(tmp_path) == []


def plant(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
