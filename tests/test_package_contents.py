"""What a wheel and a source distribution may have: each planted fault is seen."""

import importlib.util
import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

import allreduce

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("contents", ROOT / ".ci/package_contents.py")
contents = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contents)

CORE = "allreduce/_C.cpython-311-x86_64-linux-gnu.so"
NAME = "hier_allreduce-1-cp311-cp311-manylinux_2_28_x86_64.whl"


def wheel(folder: Path, *more: str, without: str = "", name: str = NAME, core: bytes = b"") -> Path:
    """A wheel with what is needed, less `without`, and with `more`."""
    with zipfile.ZipFile(folder / name, "w") as file:
        for inside in {*contents.WHEEL_NEEDS, CORE, "hier_allreduce-1.dist-info/RECORD", *more}:
            if inside != without:
                file.writestr(inside, core if inside == CORE else b"")
    return folder / name


def archive(folder: Path, names: Iterable[str]) -> Path:
    with tarfile.open(folder / "hier_allreduce-1.tar.gz", "w:gz") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(f"hier_allreduce-1/{name}"), io.BytesIO())
    return folder / "hier_allreduce-1.tar.gz"


def test_a_whole_wheel_is_accepted(tmp_path: Path) -> None:
    assert contents.main([wheel(tmp_path)]) == 0


@pytest.mark.parametrize(
    "fault",
    [
        "tests/test_build.py",
        "allreduce/torch/_backend.cpython-311-x86_64-linux-gnu.so",
        "allreduce/torch/_backend.json",
        "allreduce/csrc/base/error.o",
        "hier_allreduce.libs/libstdc++.so.6",
        "trainer/__pycache__/run.cpython-311.pyc",
    ],
)
def test_a_file_that_does_not_belong_in_a_wheel_is_named(tmp_path: Path, fault: str) -> None:
    (error,) = contents.wheel_errors(wheel(tmp_path, fault))
    assert error.startswith(fault)


@pytest.mark.parametrize("missing", ["allreduce/py.typed", "allreduce/csrc/torch/backend.cc"])
def test_a_file_that_a_wheel_lacks_is_named(tmp_path: Path, missing: str) -> None:
    assert contents.wheel_errors(wheel(tmp_path, without=missing)) == [f"no {missing}"]


def test_a_wheel_has_one_core_without_debug_information(tmp_path: Path) -> None:
    assert "0 cores" in contents.wheel_errors(wheel(tmp_path, without=CORE))[0]
    assert "-g0" in contents.wheel_errors(wheel(tmp_path, core=b"..debug_info.."))[0]


def test_a_wheel_that_auditwheel_has_not_seen_is_refused(tmp_path: Path) -> None:
    name = "hier_allreduce-1-cp311-cp311-linux_x86_64.whl"
    assert "auditwheel" in contents.wheel_errors(wheel(tmp_path, name=name))[0]


def test_a_package_of_more_bytes_than_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contents, "BYTES_MAX", 10)
    assert contents.main([wheel(tmp_path)]) == 1
    assert "bytes, at most 10" in capsys.readouterr().err


def test_a_source_distribution_has_sources_alone(tmp_path: Path) -> None:
    assert contents.source_errors(archive(tmp_path, contents.SOURCE_NEEDS)) == []
    faulty = [*contents.SOURCE_NEEDS[1:], CORE]
    assert contents.source_errors(archive(tmp_path, faulty)) == [
        f"no {contents.SOURCE_NEEDS[0]}",
        f"{CORE} is a built file",
    ]


def test_the_build_never_requires_torch() -> None:
    """pip would fetch the newest torch into the build environment."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    assert [name for name in requirements if "torch" in name] == []


def test_the_conda_recipe_says_what_the_project_says() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    recipe = (ROOT / ".ci/conda/recipe.yaml").read_text()
    assert f'version: "{allreduce.__version__}"' in recipe
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    names = [name.partition(";")[0].replace(">=", " >=") for name in requirements]
    assert [name for name in names if name not in recipe] == []


def test_the_container_copies_what_is_there() -> None:
    lines = (ROOT / "examples/container/Containerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--" not in line]
    assert len(copies) > 3
    assert [name for names in copies for name in names if not (ROOT / name).exists()] == []
