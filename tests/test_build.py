"""How native code is compiled: what is compiled again, with which flags, and what errors say."""

from pathlib import Path

import pytest

from allreduce import _build


def unit(tmp_path: Path, *, salt: str = "") -> _build.Unit:
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
    command = (*_build.cxx(), f"-I{tmp_path}", "-c", str(source), "-o", str(output))
    return _build.Unit(command=command, output=output, inputs=(source,), salt=salt)


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
        with pytest.raises(_build.BuildError, match=r"far\.h:1"):
            broken.run(tmp_path)


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(_build.BuildError, match="cannot run /nowhere/g"):
        _build.run(["/nowhere/g++"])


def test_no_flag_changes_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXXFLAGS", raising=False)
    flags = _build.core_flags()
    assert "-ffp-contract=off" in flags
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags)


def test_ptx_of_the_last_architecture_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIER_CUDA_ARCHS", "75 100")
    flags = " ".join(_build.cuda_flags())
    assert "code=sm_75" in flags
    assert flags.count("code=compute_") == 1
    assert "code=compute_100" in flags


def test_core_sources_leave_cuda_and_torch_out() -> None:
    csrc = _build.csrc_dir()
    names = {file.relative_to(csrc).as_posix() for file in _build.core_sources(csrc)}
    assert "python/module.cc" in names
    assert not [name for name in names if name.startswith(("cuda/", "torch/", "python/cuda"))]


def test_the_core_that_runs_is_the_one_in_the_tree() -> None:
    core = _build.require_core()
    assert core.source_hash == _build.source_hash(_build.csrc_dir())


def test_a_missing_core_is_one_sentence_with_a_remedy() -> None:
    message = _build.missing_core_message(ImportError("no such file"))
    assert "\n" not in message
    assert "make build" in message
