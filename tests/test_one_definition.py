"""One name, one type: no two files of csrc define a type of one name in one namespace.

C++ calls such a program undefined and no tool need say so: the linker keeps one of two different
std::vector<T>::push_back, and the other type's elements are written past the end of their memory.
"""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPP = {".h", ".cuh", ".cc", ".cu"}
OPEN = re.compile(r"^namespace ?([\w:]*) ?\{")
CLOSE = re.compile(r"^\}  // namespace")
# Of the file's own, not nested in another type: those are indented.
DEFINITION = re.compile(
    r"^(?:struct|class|union|enum(?: class)?)\s+(?:alignas\([^)]*\)\s+)?(\w+)(?!::)\b[^;]*\{"
)


def types_of(text: str) -> list[str]:
    """The types that a file defines and other files would see, with their namespaces."""
    namespaces: list[str] = []
    names = []
    for line in text.splitlines():
        if opened := OPEN.match(line):
            namespaces.append(opened[1])  # "" is a file's own
        elif CLOSE.match(line):
            namespaces.pop()
        elif (defined := DEFINITION.match(line)) and "" not in namespaces:
            names.append("::".join([*namespaces, defined[1]]))
    return names


def twice(root: Path) -> list[str]:
    files = defaultdict(list)
    for file in sorted((root / "csrc").rglob("*")):
        if file.suffix in CPP:
            for name in types_of(file.read_text()):
                files[name].append(str(file.relative_to(root)))
    return [f"{name}: {', '.join(where)}" for name, where in files.items() if len(where) > 1]


def test_no_type_is_defined_twice():
    assert twice(ROOT) == []


HEADER = """namespace hier {
struct Span {
};
struct alignas(64) Wide {
};
}  // namespace hier
"""
OF_THE_FILE = """namespace hier {
namespace {
enum class Span : int { a };
}  // namespace
}  // namespace hier
"""


def test_a_second_definition_is_found(tmp_path):
    (tmp_path / "csrc").mkdir()
    for name, text in {"a.h": HEADER, "b.h": HEADER, "c.cc": OF_THE_FILE}.items():
        (tmp_path / "csrc" / name).write_text(text)
    assert twice(tmp_path) == [
        "hier::Span: csrc/a.h, csrc/b.h",
        "hier::Wide: csrc/a.h, csrc/b.h",
    ]
