"""Builds the simulation: its own files, and the core's objects as `make build` has left them, or
a build with HIER_SANITIZE.

A mutant is the same program with some files of the core replaced.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from allreduce.commands import native_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
_SANITIZER = os.environ.get("HIER_SANITIZE", "").replace(",", "-")
PLAIN = ROOT / "build" / "-".join(filter(None, ["simulation", _SANITIZER]))  # without mutants
JOBS = len(os.sched_getaffinity(0))


def build(folder: Path = PLAIN, replaced: Mapping[str, str] | None = None) -> Path:
    """The program `simulate` in `folder`; `replaced` has new texts for files of csrc, by name.

    Raises native_build.BuildError with the compiler's words.
    """
    overlay, names = folder / "overlay", set(replaced or {})
    for name, text in (replaced or {}).items():
        file = overlay / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    # Of its own files only headers may concern it.
    own_folder = folder if any(name.endswith(".h") for name in names) else PLAIN
    own = [_unit(source, own_folder, overlay, source.name) for source in sorted(HERE.glob("*.cc"))]
    sources = _core_sources()
    core = [_core_unit(source, folder, overlay, names) for source in sources]
    native_build.run_units([unit for unit in (*core, *own) if unit], CSRC, JOBS)
    objects = [
        unit.output if unit else _object(source) for source, unit in zip(sources, core, strict=True)
    ]
    inputs = (*objects, *(unit.output for unit in own))
    output = folder / "simulate"
    flags = ("-pthread", *native_build.sanitizer_flags())
    command = (*native_build.cxx(), *flags, "-o", str(output), *map(str, inputs), "-ldl")
    native_build.Unit(command=command, output=output, inputs=inputs).run(CSRC)
    return output


def _core_sources() -> list[Path]:
    """All of the core but its face to Python."""
    sources = native_build.core_sources(CSRC)
    return [source for source in sources if source.relative_to(CSRC).parts[0] != "python"]


def _object(source: Path) -> Path:
    name = source.relative_to(CSRC)
    tag = str(sysconfig.get_config_var("SOABI"))
    objects = "-".join(filter(None, ["objects", tag, _SANITIZER]))
    found = ROOT / "build" / objects / name.with_suffix(".cc.o")
    if not found.exists():
        raise native_build.BuildError(f"{found} is missing: run `make build`")
    return found


def _core_unit(
    source: Path, folder: Path, overlay: Path, names: set[str]
) -> native_build.Unit | None:
    """How to compile a file of the core that a replacement concerns; None: it is as it was."""
    closure = {str(file.relative_to(CSRC)) for file in native_build.include_closure(CSRC, source)}
    if not closure & names:
        return None
    name = str(source.relative_to(CSRC))
    return _unit(overlay / name if name in names else source, folder, overlay, name)


def _unit(source: Path, folder: Path, overlay: Path, name: str) -> native_build.Unit:
    output = folder / "objects" / f"{name}.o"
    overlays = (f"-I{overlay}",) if folder != PLAIN else ()
    includes = (*overlays, f"-I{CSRC}", f"-I{HERE}")
    command = (
        *native_build.cxx(),
        *native_build.core_flags(),
        *includes,
        "-c",
        str(source),
        "-o",
        str(output),
    )
    headers = [*HERE.glob("*.h"), *(overlay.rglob("*.h") if overlays else ())]
    return native_build.Unit(
        command=command,
        output=output,
        inputs=(source, *sorted(headers)),
        salt=native_build.cxx_version(),
    )
