"""python -m allreduce.show: the picture, the drawing, the trace and the generated page."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from schedule_cases import ALL, IDS, ROOTED

from allreduce.schedules import by_name
from allreduce.schedules.animation import animate
from allreduce.show import main

ROOT = Path(__file__).resolve().parents[2]
PICTURE = """\
halving_doubling(6)  (6 ranks, 4 chunks, 4 rounds)
  start                                                                              \
1111 1111 1111 1111 1111 1111
  round 0  0+>1[2-3] 1+>0[0-1] 2+>3[2-3] 3+>2[0-1] 4+>5[2-3] 5+>4[0-1]               \
2211 1122 2211 1122 2211 1122
  round 1  0+>2[1] 1+>3[3] 2+>0[0] 3+>1[2] 4+>0[0] 5+>1[2] 4+>2[1] 5+>3[3]   \
#211 11#2 2#11 112# 2211 1122
"""


def test_the_picture_shows_moves_and_what_each_rank_holds(capsys):
    assert main(["halving_doubling", "6"]) == 0
    picture = capsys.readouterr().out
    squeezed = [" ".join(line.split()) for line in picture.splitlines()]
    assert squeezed[:4] == [" ".join(line.split()) for line in PICTURE.splitlines()]
    assert squeezed[-1].endswith("#### #### #### #### #### ####")


@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_every_algorithm_has_a_picture_whose_last_line_is_finished(collective, name, capsys):
    assert main([name, "5", "--collective", collective]) == 0
    held = capsys.readouterr().out.split()[-5:]
    if collective in ("reduce_scatter", "scatter"):
        assert all(held[rank][rank] == "#" for rank in range(5))
    elif collective == "alltoall":
        assert all(set(held[rank][rank::5]) == {"#"} for rank in range(5))
        assert all(set(held[rank]) == {"#", "."} for rank in range(5))
    elif collective in ROOTED and collective != "broadcast":
        assert set(held[0]) == {"#"}
    else:
        assert set("".join(held)) == {"#"}


def test_long_rounds_are_wrapped(capsys):
    assert main(["direct", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120


def test_the_svg_has_an_arrow_for_each_move(tmp_path):
    file = tmp_path / "x.svg"
    assert main(["halving_doubling", "6", "--svg", str(file)]) == 0
    root = ElementTree.fromstring(file.read_text())
    arrows = root.findall("{http://www.w3.org/2000/svg}line")
    assert len(arrows) == len(by_name("halving_doubling", 6).moves())


def test_the_svg_has_a_default_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["hierarchical:ring", "--nodes", "2,2", "--svg"]) == 0
    assert (tmp_path / "hierarchical_ring_4.svg").exists()
    assert "wrote hierarchical_ring_4.svg" in capsys.readouterr().out


def test_the_trace_is_a_chrome_trace_of_every_step(tmp_path, capsys):
    file = tmp_path / "x.json"
    assert main(["ring", "4", "--simulate", str(file), "--bytes", "4096"]) == 0
    events = json.loads(file.read_text())["traceEvents"]
    steps = [event for event in events if event["ph"] == "X"]
    assert len(steps) == 2 * len(by_name("ring", 4).moves())
    assert {event["pid"] for event in steps} == {0, 1, 2, 3}
    assert all(event["dur"] >= 0 for event in steps)
    assert "4096 bytes take" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "4"], "allreduce has no algorithm 'x'"),
        (["ring"], "ring needs a world_size"),
        (["hierarchical:ring", "4"], "needs node_sizes"),
        (["ring", "4", "--svg", "/nowhere/x.svg"], "No such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_page_is_complete_and_a_stale_one_is_noticed(tmp_path, capsys):
    page = tmp_path / "algorithms.md"
    assert main(["--docs", str(page), "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert main(["--docs", str(page)]) == 0
    assert main(["--docs", str(page), "--check"]) == 0
    text = page.read_text()
    assert all(f"`{name}`" in text for _, name in ALL)
    page.write_text(text + "\n")
    assert main(["--docs", str(page), "--check"]) == 1


def test_the_repository_s_page_is_fresh():
    page = Path(__file__).parents[2] / "docs" / "algorithms.md"
    assert main(["--docs", str(page), "--check"]) == 0


def test_help_imports_no_torch(tmp_path):
    code = (
        "import sys\n"
        "sys.argv = ['show', '--help']\n"
        "from allreduce.show import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--simulate" in done.stdout


def test_the_animation_of_the_readme_is_the_schedule_that_runs() -> None:
    sizes = [4, 4]
    schedule = by_name("hierarchical:halving_doubling", node_sizes=sizes)
    drawn = animate(schedule, sizes, "hierarchical:halving_doubling(8)")
    assert (ROOT / "docs/hierarchical.svg").read_text() == drawn, (
        "python -m allreduce.show hierarchical:halving_doubling --nodes 4,4 "
        "--animate docs/hierarchical.svg"
    )
    shapes = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")
    classes = [shape.get("class") for shape in shapes]
    assert classes.count("move") == sum(map(len, schedule.rounds))
    assert classes.count("cell") == 8 * schedule.num_chunks
