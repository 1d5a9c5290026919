"""Documents name what is there: links, environment variables, modules; the explorer's data."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from allreduce.__main__ import COMMANDS
from allreduce.schedules import by_name
from allreduce.schedules.export import LAYOUTS, NETWORKS, SIZES, page_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "examples/*.md") for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
VARIABLE = re.compile(r"\b(?:ALLREDUCE|HIER)_[A-Z][A-Z_]*[A-Z]\b")


def test_every_relative_link_leads_somewhere() -> None:
    lost = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in LINK.findall(page.read_text())
        if not link.startswith(("http://", "https://")) and not (page.parent / link).exists()
    ]
    assert lost == []


def read_variables() -> set[str]:
    """The variables of ours that code reads: a name in quotes."""
    files = [
        file
        for top in ("allreduce", "trainer", "csrc", "benchmarks")
        for suffix in ("*.py", "*.cc", "*.h", "*.cu")
        for file in (ROOT / top).rglob(suffix)
    ]
    quoted = re.compile(rf"[\"']({VARIABLE.pattern})[\"'=]")
    return {
        name for file in [*files, ROOT / "setup.py"] for name in quoted.findall(file.read_text())
    }


def test_every_environment_variable_is_documented() -> None:
    table = (ROOT / "docs/environment.md").read_text()
    documented = set(re.findall(rf"`({VARIABLE.pattern})`", table))
    assert read_variables() - documented == set()


def test_a_variable_that_nobody_reads_is_not_documented() -> None:
    table = (ROOT / "docs/environment.md").read_text()
    rows = set(re.findall(rf"^\| `({VARIABLE.pattern})`", table, re.MULTILINE))
    assert len(rows) > 10
    everything = "\n".join(
        file.read_text()
        for top in ("allreduce", "trainer", "csrc", "benchmarks", ".ci")
        for file in (ROOT / top).rglob("*")
        if file.suffix in {".py", ".cc", ".h", ".cu", ""} and file.is_file()
    )
    everything += (ROOT / "setup.py").read_text() + (ROOT / "Makefile").read_text()
    assert {name for name in rows if name not in everything} == set()


def explored(layout: str) -> dict:
    text = page_of(layout)
    head = f"explore.add({json.dumps(layout)}, "
    assert text.startswith(head)
    return json.loads(text[len(head) :].removesuffix(");\n"))


@pytest.mark.parametrize("layout", ["4x1", "3+2"])
def test_the_explorer_shows_the_schedules_that_run(layout: str) -> None:
    page = explored(layout)
    assert tuple(page["nodes"]) == LAYOUTS[layout]
    for name, shown in page["algorithms"].items():
        nodes = page["nodes"] if name.startswith("hierarchical") else None
        schedule = by_name(name, sum(page["nodes"]), node_sizes=nodes)
        moves = [[tuple(move) for move in moves] for moves in shown["rounds"]]
        assert moves == [[(*m[:4], int(m[4])) for m in moves] for moves in schedule.rounds]
        assert len(shown["runs"]) == len(NETWORKS) * len(SIZES)
        for run in shown["runs"].values():
            last = max(span[5] for span in run["spans"])
            assert last == pytest.approx(run["seconds"] * 1e6, rel=1e-3, abs=0.02)


@pytest.mark.timeout(120)
def test_the_explorer_draws_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium: apt install chromium")
    (tmp_path / "explore/data").mkdir(parents=True)
    shutil.copy(ROOT / "docs/explore/explore.js", tmp_path / "explore")
    (tmp_path / "explore/data/2x4.js").write_text(page_of("2x4"))
    body = re.search(
        r"<div id=.*</script>", (ROOT / "docs/explore.md").read_text(), re.DOTALL
    ).group()
    page = tmp_path / "explore.html"
    page.write_text(f"<html><body>{body.replace('LAYOUTS', ' '.join(LAYOUTS))}</body></html>")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert 'data-drawn="2x4 hierarchical:halving_doubling 0"' in done.stdout
    assert "each node sends up to" in done.stdout
    assert done.stdout.count("<circle") == 16  # two for each rank


def test_the_list_of_commands_names_all_that_can_run() -> None:
    """`python -m allreduce` lists them."""
    runnable = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("allreduce", "trainer")
        for file in (ROOT / folder).rglob("*.py")
        if file.name == "__main__.py" or '__name__ == "__main__"' in file.read_text()
    }
    assert runnable - {"allreduce"} == set(COMMANDS)
