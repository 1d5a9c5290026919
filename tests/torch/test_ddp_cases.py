"""Small programs under torch's wrapper and under ours: docs/backend.md says how each compares."""

import json
import textwrap
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/backend.md"
BEGIN, END = "<!-- cases: begin -->\n", "<!-- cases: end -->\n"
DEADLINE = 500  # seconds

SAID = {
    "same": "The same values under both, to 1e-5",
    "torch's ranks part": "Ranks agree here; torch's wrapper leaves them with different values",
    "only ours": "Trained here; an error under torch's wrapper",
    "neither": "An error under both",
    "differ [True, True]": "Other values, alike on all ranks (torch's default keeps them; here "
    "`gradient_as_bucket_view=False` does)",
    "only torch": "Trained by torch's wrapper, refused here when the module is wrapped",
}


def block(found: dict[str, str]) -> str:
    """The part of the document, from each case's result."""
    lines = [f"{len(found)} cases:", ""]
    for result, words in SAID.items():
        cases = [name.replace("_", " ") for name, its in found.items() if its == result]
        text = f"- **{words} ({len(cases)}):** {', '.join(cases)}."
        lines += textwrap.wrap(text, 118, subsequent_indent="  ") if cases else []
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(DEADLINE + 60)
def test_cases_compare_as_the_document_says(run_forked, tmp_path: Path) -> None:
    log = run_forked("ddp_cases_compare.py", ranks=2, deadline=DEADLINE)
    files = [tmp_path / f"rank{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), log[-8000:]
    ranks = [json.loads(file.read_text()) for file in files]
    found = {name: result for name, (result, _) in ranks[0].items()}
    assert found == {name: result for name, (result, _) in ranks[1].items()}
    unknown = {name: ranks[0][name] for name, result in found.items() if result not in SAID}
    assert not unknown
    written = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert block(found) == written, f"docs/backend.md should have\n{block(found)}"
