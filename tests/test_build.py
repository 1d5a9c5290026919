"""How native code is compiled: what is compiled again, with which flags, and what errors say."""

import re
import subprocess
from pathlib import Path

import pytest

from allreduce.commands import native_build


def unit(tmp_path: Path, *, salt: str = "") -> native_build.Unit:
    """A real compilation of a file that includes a header that includes another."""
    (tmp_path / "base").mkdir(exist_ok=True)
    for name, text in {
        "base/main.cc": '#include "base/near.h"\nint f() { return kFar; }\n',
        "base/near.h": '#pragma once\n#include "base/far.h"\n',
        "base/far.h": "#pragma once\nconst int kFar = 1;\n",
    }.items():
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text(text)
    source, output = tmp_path / "base/main.cc", tmp_path / "out/main.o"
    command = (*native_build.cxx(), f"-I{tmp_path}", "-c", str(source), "-o", str(output))
    return native_build.Unit(command=command, output=output, inputs=(source,), salt=salt)


def test_an_unchanged_file_is_compiled_once(tmp_path: Path) -> None:
    assert unit(tmp_path).run(tmp_path)
    assert not unit(tmp_path).run(tmp_path)


def test_a_new_time_alone_compiles_nothing(tmp_path: Path) -> None:
    unit(tmp_path).run(tmp_path)
    (tmp_path / "base/far.h").touch()
    assert not unit(tmp_path).run(tmp_path)


def test_a_change_of_an_indirect_header_compiles(tmp_path: Path) -> None:
    unit(tmp_path).run(tmp_path)
    (tmp_path / "base/far.h").write_text("#pragma once\nconst int kFar = 2;\n")
    assert unit(tmp_path).run(tmp_path)


def test_another_compiler_version_compiles(tmp_path: Path) -> None:
    unit(tmp_path, salt="g++ 12").run(tmp_path)
    assert unit(tmp_path, salt="g++ 13").run(tmp_path)


def test_a_failed_compilation_is_tried_again_and_says_why(tmp_path: Path) -> None:
    broken = unit(tmp_path)
    (tmp_path / "base/far.h").write_text("int kFar = ;\n")
    for _ in range(2):
        with pytest.raises(native_build.BuildError, match=r"far\.h:1"):
            broken.run(tmp_path)


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(native_build.BuildError, match="cannot run /nowhere/g"):
        native_build.run(["/nowhere/g++"])


def test_no_flag_changes_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXXFLAGS", raising=False)
    flags = native_build.core_flags()
    assert "-ffp-contract=off" in flags
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags)


def test_ptx_of_the_last_architecture_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIER_CUDA_ARCHS", "75 100")
    flags = " ".join(native_build.cuda_flags())
    assert "code=sm_75" in flags
    assert flags.count("code=compute_") == 1
    assert "code=compute_100" in flags


def codes() -> list[str]:
    """The architectures of a wheel's flags, in order."""
    return [
        f.partition(",code=")[2] for f in native_build.cuda_flags(wheel=True) if "-gencode" in f
    ]


def fake_nvcc(folder: Path, *archs: str) -> Path:
    tool = folder / "bin/nvcc"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n" + "".join(f"echo compute_{arch}\n" for arch in archs))
    tool.chmod(0o755)
    return tool


@pytest.fixture
def no_archs(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither variable says what to compile for."""
    monkeypatch.delenv("HIER_CUDA_ARCHS", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0", ["sm_80", "sm_90", "compute_90"]),
        ("12.0+PTX 9.0a 8.6", ["sm_86", "sm_90a", "sm_120", "compute_120"]),
        (" 7.0 7.5 8.9 ", ["sm_89", "compute_89"]),
    ],
)
def test_torchs_list_of_architectures_is_honoured(
    no_archs: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    no_archs.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert codes() == expected
    no_archs.setenv("HIER_CUDA_ARCHS", "100")
    assert codes() == ["sm_100", "compute_100"]


@pytest.mark.parametrize(("text", "words"), [("Hopper", "'Hopper' is no version"), ("7.5", "8.0")])
def test_a_list_of_architectures_that_cannot_serve_is_refused(
    no_archs: pytest.MonkeyPatch, text: str, words: str
) -> None:
    no_archs.setenv("TORCH_CUDA_ARCH_LIST", text)
    with pytest.raises(native_build.BuildError, match=words):
        native_build.cuda_flags()


def test_a_wheel_is_for_what_its_nvcc_knows(no_archs: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvcc(tmp_path, "75", "80", "86", "87", "90", "90a")
    no_archs.setenv("CUDA_HOME", str(tmp_path))
    assert codes() == ["sm_80", "sm_86", "sm_90", "compute_90"]
    assert native_build.cuda_archs(wheel=False) == native_build.DEVELOPER_ARCHS


def test_an_nvcc_that_knows_none_of_them_is_refused(
    no_archs: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_nvcc(tmp_path, "70", "75")
    no_archs.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(native_build.BuildError, match="knows none of the GPUs 80 86 90"):
        native_build.cuda_flags(wheel=True)


def test_this_nvcc_knows_every_gpu_of_the_wheels(no_archs: pytest.MonkeyPatch) -> None:
    nvcc = native_build.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc in CUDA_HOME, PATH, /usr/local/cuda or pip's nvidia packages")
    known = native_build.cuda_archs(wheel=True)
    said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=60)
    release = re.search(r"release (\d+)\.", said.stdout)
    assert release is not None
    if int(release[1]) < 13:
        pytest.skip(f"nvcc {release[1]} is older than the list, and knows {' '.join(known)} of it")
    assert known == native_build.WHEEL_ARCHS


def test_the_documents_name_the_gpus_of_the_wheels() -> None:
    text = (native_build.csrc_dir().parent / "docs/dependencies.md").read_text()
    assert f"`{' '.join(native_build.WHEEL_ARCHS)}`" in text


def test_core_sources_leave_cuda_and_torch_out() -> None:
    csrc = native_build.csrc_dir()
    names = {file.relative_to(csrc).as_posix() for file in native_build.core_sources(csrc)}
    assert "python/module.cc" in names
    assert not [name for name in names if name.startswith(("cuda/", "torch/", "python/cuda"))]


def test_the_core_that_runs_is_the_one_in_the_tree() -> None:
    core = native_build.require_core()
    assert core.source_hash == native_build.source_hash(native_build.csrc_dir())


def test_a_missing_core_is_one_sentence_with_a_remedy() -> None:
    message = native_build.missing_core_message(ImportError("no such file"))
    assert "\n" not in message
    assert "make build" in message


def test_every_file_that_the_package_should_have_is_there() -> None:
    """py.typed above all: without it type checkers take no types from an installed package."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    root = Path(native_build.__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    for package, patterns in data.items():
        for pattern in patterns:
            assert list((root / package.replace(".", "/")).glob(pattern)), (package, pattern)
    assert all("py.typed" in data[package] for package in ("allreduce", "trainer"))
