"""The examples that train: torch's DDP, accelerate and Fabric on 2 nodes x 2 ranks, over hier."""

import importlib.metadata
import importlib.util
import re

import pytest

pytestmark = pytest.mark.timeout(110)

NEEDS = {
    "ddp.py": "torch",
    "accelerate_digits.py": "accelerate",
    "fabric_digits.py": "lightning_fabric",
}
LINE = re.compile(
    r"^rank (?P<rank>\d+) of 4, backend (?P<backend>\w+): "
    r"loss (?P<before>[\d.]+) -> (?P<after>[\d.]+), (?P<right>[\d.]+)% of the test images right, "
    r"weights (?P<weights>\w{8})$",
    re.MULTILINE,
)


@pytest.fixture(scope="module", params=NEEDS)
def ranks(request: pytest.FixtureRequest, run_example) -> list[dict[str, str]]:
    """What each rank of an example reported."""
    package = NEEDS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'hier-allreduce[torch,clients]'")
    if "hier" not in importlib.metadata.entry_points(group="torch.backends").names:
        pytest.skip("hier-allreduce is not installed: torch finds the backend by its entry point")
    out = run_example("torchrun.sh", request.param)
    return [found.groupdict() for found in LINE.finditer(out)]


def test_every_rank_ran_on_hier(ranks) -> None:
    assert sorted(rank["rank"] for rank in ranks) == ["0", "1", "2", "3"]
    assert {rank["backend"] for rank in ranks} == {"hier"}


def test_it_has_learned(ranks) -> None:
    for rank in ranks:
        assert float(rank["after"]) < 0.1 * float(rank["before"])
        assert float(rank["right"]) > 90


def test_all_ranks_hold_the_same_weights(ranks) -> None:
    assert len({(rank["weights"], rank["after"], rank["right"]) for rank in ranks}) == 1
