"""MkDocs' hooks: pages from outside docs/, the help of commands, the pages of internals."""

import os
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from allreduce.schedules.export import LAYOUTS, page_of

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that pages link to, by their places in the site.
OUTSIDE = [
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "examples/README.md"),
    *("examples/*.py", "examples/*/*.sh", "benchmarks/results/*"),
]
_HELP = re.compile(r"<!-- help of (.*?) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of docs/internals where the navigation has an empty section."""
    pages = sorted((ROOT / "docs/internals").glob("*.md"))
    for section in config.nav:
        for entry in section.get("Explanation", []) if isinstance(section, dict) else []:
            if "Internals" in entry:
                entry["Internals"] = [f"internals/{page.name}" for page in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    files.append(File.generated(config, "index.md", content=_home()))
    for layout in LAYOUTS:
        data = File.generated(config, f"explore/data/{layout}.js", content=page_of(layout))
        files.append(data)
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = str(path.relative_to(ROOT))
            file = File.generated(config, place, abs_src_path=str(path))
            if place.startswith("benchmarks/"):
                file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links out of docs/ to the places in the site; insert the commands' help."""
    if page.file.src_uri.count("/") == 0:
        markdown = markdown.replace("](../", "](")
    if page.file.src_uri.startswith("internals/"):
        markdown = markdown.replace("](../../", "](../")
    if page.file.src_uri in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        markdown = markdown.replace("](docs/", "](").replace("](README.md", "](index.md")
    if page.file.src_uri == "examples/README.md":
        markdown = markdown.replace("](../docs/", "](../").replace(
            "](../README.md", "](../index.md"
        )
    markdown = markdown.replace("](README.md", "](index.md")
    markdown = markdown.replace('"LAYOUTS"', f'"{" ".join(LAYOUTS)}"')
    return _HELP.sub(lambda match: "\n".join(map(_help, match[1].split())), markdown)


def _home() -> str:
    text = (ROOT / "README.md").read_text()
    return text.replace("](docs/", "](").replace("](benchmarks/results)", "](performance.md)")


def _help(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "COLUMNS": "96", "PYTHONPATH": path, "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    return f"\n## `python -m {module}`\n\n```text\n{done.stdout.rstrip()}\n```\n"
