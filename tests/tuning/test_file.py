"""Tuning files: what is written is read, and what is wrong is said in one sentence."""

import re
from pathlib import Path

import pytest
from worlds import run_threads

from allreduce import Communicator, UsageError
from allreduce.tuning import Choice, LayoutTuning, Tuning
from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, Link
from allreduce.tuning.file import read, text

TUNING = Tuning(
    links={LOCAL_STAGE: Link(1e-6, 2e-10, 3e-11), NETWORK: Link(2e-5, 1e-9, 3e-11)},
    layouts=(
        LayoutTuning(
            nodes=(2, 1),
            local="rs_ag",
            choices={"allreduce": (Choice(4096, "recursive_doubling"), Choice(None, "binomial"))},
            times={"allreduce": {"binomial": ((1024, 1e-4), (4096, 2e-4))}},
            lanes=3,
            rails=1,
            segment_bytes=65536,
        ),
        LayoutTuning(nodes=(3,), local="none", choices={"broadcast": (Choice(None, "binomial"),)}),
    ),
)


def written(folder: Path, content: str | None = None) -> Path:
    file = folder / "tuning.toml"
    file.write_text(text(TUNING, "for a test") if content is None else content)
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read(written(tmp_path))
    assert (found.links, found.layouts) == (TUNING.links, TUNING.layouts)
    assert found.source == f"file {tmp_path / 'tuning.toml'} (for a test)"
    assert len(found.digest) == 16


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("format = 1", "", "format is missing: this is no tuning file"),
        ("format = 1", "format = 9", "format is 9"),
        ("format = 1", "format = ", "is no TOML"),
        ('made = "for a test"', "made = 1", "made must be a string"),
        ("[links.network]", "[links.pigeons]", "links.pigeons is no key"),
        ("alpha = 2e-05", 'alpha = "fast"', "links.network.alpha must be a number"),
        ("alpha = 2e-05", "alpha = nan", "links.network.alpha is nan"),
        ("alpha = 2e-05", "", "links.network.alpha must be a number"),
        ("nodes = [2, 1]", "nodes = [2, 0]", "layout[0].nodes"),
        ("nodes = [2, 1]", "nodes = 3", "layout[0].nodes must be a list"),
        ('local = "rs_ag"', 'local = "tree"', "layout[0].local is 'tree'"),
        ("lanes = 3", "lanes = 0", "layout[0].lanes is 0"),
        ("lanes = 3", "lames = 3", "layout[0].lames is no key"),
        ("up_to = 4096", "up_to = 0", "choices.allreduce[0].up_to is 0"),
        ("up_to = 4096, ", "", "choices.allreduce must have rows of which the last"),
        ('"recursive_doubling"', '"telepathy"', "[0].algorithm is 'telepathy'"),
        ("allreduce = [", "allreduces = [", "choices.allreduces is no key"),
        ("[1024, 0.0001]", "[8192, 0.0001]", "times.allreduce.binomial must have"),
        ("[1024, 0.0001]", "[1024]", "times.allreduce.binomial must be a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    content = text(TUNING, "for a test")
    assert old in content
    file = written(tmp_path, content.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"tuning file {file}")
    assert says in message
    assert "python -m allreduce.tune" in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"[project]\nname = 'x'\n", b""])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"other.toml.*python -m allreduce.tune"):
        read(file)


def test_a_file_that_is_not_there_is_named_on_every_rank(tmp_path: Path) -> None:
    there = written(tmp_path)

    def named(rank: int) -> dict[str, object]:
        return {"tuning": tmp_path / "absent.toml" if rank == 1 else there}

    results = run_threads(3, lambda comm: None, nodes=2, per_rank=named, errors=True)
    for error in results:
        assert isinstance(error, UsageError), results
        assert "rank 1" in str(error)
        assert "absent.toml: No such file" in str(error)


@pytest.mark.parametrize("without", [0, 2])
def test_ranks_with_other_files_are_named(tmp_path: Path, without: int) -> None:
    there = written(tmp_path)

    def some(rank: int) -> dict[str, object]:
        return {} if rank == without else {"tuning": there}

    results = run_threads(3, lambda comm: None, nodes=2, per_rank=some, errors=True)
    for error in results:
        assert isinstance(error, UsageError), results
        assert "another tuning file" in str(error)


def test_a_file_of_another_layout_is_refused_on_every_rank(tmp_path: Path) -> None:
    there = written(tmp_path)
    results = run_threads(3, lambda comm: None, nodes=3, tuning=there, errors=True)
    for error in results:
        assert isinstance(error, UsageError), results
        assert "no layout has nodes = [1, 1, 1], local = rs_ag" in str(error)
        assert "there is nodes = [2, 1], local = rs_ag; nodes = [3], local = none" in str(error)


def test_one_rank_alone_hears_of_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "absent.toml"
    (error,) = run_threads(1, lambda comm: None, tuning=file, errors=True)
    assert isinstance(error, UsageError)
    assert "absent.toml: No such file" in str(error)


def choices_of(comm: Communicator) -> tuple[object, ...]:
    names = [comm._group.choose(_collective("allreduce"), n) for n in (1, 4096, 4097)]
    part = comm.split(0)
    assert part is not None
    options = {**comm._options}
    with part:
        text_of_part = part.explain(1 << 20)
    picked = {name: options[name] for name in ("lanes", "rails", "segment_bytes")}
    return names, picked, comm.explain(4096), text_of_part


def _collective(name: str) -> object:
    from allreduce.schedules import parse_collective

    return parse_collective(name)


def test_a_file_decides_algorithms_and_options(tmp_path: Path, monkeypatch) -> None:
    file = written(tmp_path)
    monkeypatch.setenv("ALLREDUCE_TUNING", str(file))
    for names, options, words, part in run_threads(3, choices_of, nodes=2):
        assert names == ["recursive_doubling", "recursive_doubling", "binomial"]
        assert options == {"lanes": 3, "rails": 1, "segment_bytes": 65536}
        for each in (words, part):
            assert f"file {file} (for a test)" in each
        assert "binomial             measured 200 us" in words


def test_what_was_not_measured_is_not_called_so(tmp_path: Path) -> None:
    def body(comm: Communicator) -> str:
        return comm.explain(100 << 20)

    words = run_threads(3, body, nodes=2, tuning=written(tmp_path))[0]
    assert "extrapolated" in words
    assert "why: fastest of those measured, at other sizes, or as fast and preferred" in words
    assert " measured 2" not in words
    assert re.search(r"extrapolated \d+ us \(measured from \d+ to \d+ B\), predicted", words)
    assert re.search(r"predicted \d+ us: \d+% for messages, \d+% for bytes", words)


def test_arguments_win_over_a_file(tmp_path: Path) -> None:
    given = {"lanes": 1, "rails": 2, "segment_bytes": 4096}
    for _, options, _, _ in run_threads(3, choices_of, nodes=2, tuning=written(tmp_path), **given):
        assert options == given


def test_a_part_of_the_group_takes_the_links_of_the_whole(tmp_path: Path) -> None:
    def body(comm: Communicator) -> str:
        part = comm.split(0 if comm.rank != 1 else None)  # one rank of each node
        if part is None:
            return ""
        with part:
            return part.explain(1 << 20)

    words = run_threads(3, body, nodes=2, tuning=written(tmp_path))
    assert "predicted" in words[0]
    assert words[0] == words[2]
