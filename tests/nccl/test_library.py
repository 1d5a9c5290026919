"""Which NCCL is loaded, and what is said where none will do. Each search has its own process."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_nccl import compile_fake

pytestmark = pytest.mark.timeout(240)

SEARCH = """
import ctypes, sys
from allreduce import _C, errors
loaded, nccl_lib, *wheels = sys.argv[1:]
kept = ctypes.CDLL(loaded) if loaded else None
try:
    found = _C.find_nccl(nccl_lib, wheels)
    print(found.source, found.version, found.path)
except errors.UsageError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def copies(fake: Path, tmp_path: Path) -> dict[str, Path]:
    """The same library in four places."""
    places = {name: tmp_path / name / fake.name for name in ("torch", "env", "wheel", "system")}
    for place in places.values():
        place.parent.mkdir()
        shutil.copy(fake, place)
    return places


def search(
    *, loaded: object = "", nccl_lib: object = "", wheels: tuple[object, ...] = (), **env: str
) -> str:
    command = [sys.executable, "-c", SEARCH, *map(str, (loaded, nccl_lib, *wheels))]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_copy_of_this_process_comes_first(copies: dict[str, Path]) -> None:
    said = search(loaded=copies["torch"], nccl_lib=copies["env"], wheels=(copies["wheel"],))
    assert said == f"this process 2.18.0 {copies['torch']}"


def test_the_variable_comes_before_the_wheel(copies: dict[str, Path]) -> None:
    said = search(nccl_lib=copies["env"], wheels=(copies["wheel"],))
    assert said == f"NCCL_LIB 2.18.0 {copies['env']}"


def test_the_wheel_comes_before_the_system(copies: dict[str, Path], tmp_path: Path) -> None:
    system = str(copies["system"].parent)
    said = search(wheels=(tmp_path / "no", copies["wheel"]), LD_LIBRARY_PATH=system)
    assert said == f"wheel 2.18.0 {copies['wheel']}"
    assert search(LD_LIBRARY_PATH=system) == f"system 2.18.0 {copies['system']}"


def test_a_wrong_variable_is_an_error_although_there_is_a_wheel(copies: dict[str, Path]) -> None:
    said = search(nccl_lib="/nowhere/libnccl.so.2", wheels=(copies["wheel"],))
    assert said.startswith("NCCL_LIB=/nowhere/libnccl.so.2 cannot be loaded")
    assert "unset it" in said


def test_a_broken_wheel_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "libnccl.so.2"
    broken.write_text("no library")
    said = search(wheels=(broken,))
    if said.startswith("system "):
        pytest.skip(f"the system has an NCCL: {said}")
    assert said.startswith(f"NCCL is not found: {broken}: ")
    assert 'pip install "hier-allreduce[cuda13]" (or [cuda12]' in said


@pytest.mark.parametrize(
    ("version", "name"), [("21703", "2.17.3"), ("2708", "2.7.8"), ("10000", "1.0.0")]
)
def test_an_old_nccl_is_refused(copies: dict[str, Path], version: str, name: str) -> None:
    said = search(wheels=(copies["wheel"],), FAKE_NCCL_VERSION=version)
    assert f"{copies['wheel']} (found by: wheel) is NCCL {name}, which is too old" in said
    assert "pip install" in said


@pytest.mark.parametrize(("version", "name"), [("21800", "2.18.0"), ("23204", "2.32.4")])
def test_a_new_nccl_is_taken(copies: dict[str, Path], version: str, name: str) -> None:
    assert f"wheel {name} " in search(wheels=(copies["wheel"],), FAKE_NCCL_VERSION=version)


def test_a_missing_function_is_named(tmp_path: Path) -> None:
    built = compile_fake(tmp_path, flags=("-DWITHOUT_FINALIZE",))
    said = search(wheels=(built,))
    assert "has no function ncclCommFinalize; install NCCL 2.18 or newer" in said
    # A library that is too old as well is that first.
    assert "too old" in search(wheels=(built,), FAKE_NCCL_VERSION="21303")


def test_a_library_that_is_no_nccl_is_refused() -> None:
    other = next(
        (match[1] for line in Path("/proc/self/maps").read_text().splitlines()
         if (match := re.search(r"(/\S*/libm\.so\S*)", line))), None
    )  # fmt: skip
    if other is None:
        pytest.skip("no libm is loaded here")
    assert "has no function ncclGetVersion" in search(wheels=(other,))
