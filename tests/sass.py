"""The machine code of allreduce._cuda, as NVIDIA's cuobjdump prints it: opcodes and registers.

    PYTHONPATH=tests python -m sass      # writes the baseline anew; nvcc and cuobjdump needed

A kernel is named "sm_90 reduce_kernel<Float16, Sum, 2>".
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from allreduce.commands import native_build

BASELINE = Path(__file__).parent / "cuda/sass_baseline.json"
BUILT = Path(native_build.__file__).parents[1] / f"_cuda{native_build.EXT_SUFFIX}"
NON_COHERENT = r"LDG?\.E.*\.CONSTANT"  # a load of what, as the compiler was told, nobody writes
# Of flags in memory that GPUs map from each other: the fence stands right before the store, or
# right behind the load.
RELEASE = r"MEMBAR\.\w+\.SYS( \S+){0,8}? ST\.E(\.\w+)*\.STRONG\.SYS\b"
ACQUIRE = r"LD\.E(\.\w+)*\.STRONG\.SYS( \S+){0,8}? CCTL\.IVALL\b"
REMEDY = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Every opcode of a kernel, with its suffixes, and the registers and stack of a thread."""

    opcodes: tuple[str, ...]
    registers: int
    stack_bytes: int

    def count(self, pattern: str) -> int:
        """How many opcodes match, from their beginning."""
        return sum(1 for opcode in self.opcodes if re.match(pattern, opcode))

    def has(self, sequence: str) -> bool:
        """Whether opcodes, with blanks between them, match somewhere."""
        return re.search(sequence, " ".join(self.opcodes)) is not None


def _print(cuobjdump: Path, option: str, *, file: Path) -> str:
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # of nvdisasm
    command = [str(cuobjdump), option, str(file)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _readable(text: str) -> str:
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, timeout=60)
    done.check_returncode()
    plain = re.sub(r"\bhier::cuda::", "", done.stdout)
    plain = re.sub(r"\bvoid (?=\w+<)", "", plain).replace("> >", ">>")
    return re.sub(r"\(\w+Args\)|\(int\)", "", plain).replace("> >", ">>")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each line of a kernel, behind the kernel's name."""
    arch = name = ""
    for line in _readable(text).splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch, name = found[1], ""
        elif found := re.match(r"\s*Function (?:: (.+)|(.+):)$", line):
            name = f"{arch} {(found[1] or found[2]).strip()}"
        elif name:
            yield name, line


def read(cuobjdump: Path, file: Path) -> dict[str, Kernel]:
    """All kernels of a library, of every architecture that it has machine code for."""
    opcodes: dict[str, list[str]] = {}
    for name, line in _lines(_print(cuobjdump, "-sass", file=file)):
        codes = opcodes.setdefault(name, [])
        if found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            codes.append(found[1])
    resources: dict[str, tuple[int, int]] = {}
    for name, line in _lines(_print(cuobjdump, "-res-usage", file=file)):
        if found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            resources[name] = int(found[1]), int(found[2])
    return {
        name: Kernel(
            opcodes=tuple(codes), registers=resources[name][0], stack_bytes=resources[name][1]
        )
        for name, codes in opcodes.items()
    }


def main() -> None:
    """Writes the registers of every kernel as the baseline."""
    cuobjdump = native_build.find_cuda_tool("cuobjdump")
    if cuobjdump is None:
        sys.exit(f"no cuobjdump: {REMEDY}")
    kernels = read(cuobjdump, BUILT)
    registers = {name: kernels[name].registers for name in sorted(kernels)}
    BASELINE.write_text(json.dumps(registers, indent=0) + "\n")


if __name__ == "__main__":
    main()
