"""examples/README.md: a row for each file, and commands that name files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "examples/README.md").read_text()


def test_every_example_has_its_row() -> None:
    kinds = {".py", ".sh", ".yaml"}
    files = {file.name for file in (ROOT / "examples").rglob("*") if file.suffix in kinds}
    assert set(re.findall(r"^\| `(\S+)` \|", README, re.MULTILINE)) == files


def test_every_command_names_files_that_exist() -> None:
    named = re.findall(r"examples/\S+\.(?:py|sh)\b", README)
    assert len(named) > 10
    assert [file for file in named if not (ROOT / file).is_file()] == []
