"""Names of torch that it does not promise to keep: each is used here, and stands in one file."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
private_names = importlib.import_module("allreduce.torch.private_names")
nn = torch.nn

ROOT = Path(__file__).resolve().parents[2]
HOME = "allreduce/torch/private_names.py"
# Elsewhere: `replace_gloo` looks first; the optimizer and the trainer may not import the home.
ELSEWHERE = {
    "allreduce/torch/gloo.py": {"_get_backend_name", "_set_default_backend"},
    "allreduce/optim/sgd.py": {"_NormBase"},
    "trainer/checkpoint/states.py": {"_pytree"},
    # The store's classes are typed there alone; a group that was not made must not be counted.
    "trainer/launch/directory_store.py": {"_distributed_c10d"},
    "trainer/launch/members.py": {"_distributed_c10d", "_world"},
    "trainer/launch/process_group.py": {"_distributed_c10d"},
    "trainer/launch/rendezvous.py": {"_distributed_c10d"},
}
# Python's own, and what every nn.Module and storage has had since torch 0.4.
NOT_OF_TORCH = {"_exit", "_getframe", "_ArgumentGroup", "_option_string_actions", "_C"}
KEPT = {"_parameters", "_buffers", "_modules", "_cdata"}


def private_names_in(source: str) -> Iterator[str]:
    """Attributes of foreign objects, and imports of torch's, that begin with an underscore."""
    ours = {"self", "cls", "comm", "model", "before", "made", "super"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if part.startswith("_"))
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
            parts = [part for names in modules if names[0] == "torch" for part in names]
            yield from (part for part in parts if part.startswith("_"))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            root = node.value
            while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                root = root.func if isinstance(root, ast.Call) else root.value
            if not (isinstance(root, ast.Name) and root.id in ours) and node.attr[1] != "_":
                yield node.attr


def test_they_stand_in_one_file() -> None:
    found = {}
    for file in [*ROOT.glob("allreduce/**/*.py"), *ROOT.glob("trainer/**/*.py")]:
        names = {n for n in private_names_in(file.read_text()) if not n.startswith("_foreach_")}
        if names := names - NOT_OF_TORCH - KEPT:
            found[file.relative_to(ROOT).as_posix()] = names
    assert found.pop(HOME)
    assert found == ELSEWHERE


def test_a_name_elsewhere_is_seen() -> None:
    assert [*private_names_in("from torch.utils._pytree import tree_map\n")] == ["_pytree"]
    assert [*private_names_in("torch.autograd.f()._engine.x(self._y)\n")] == ["_engine"]
    assert [*private_names_in("import torch._dynamo as d\n")] == ["_dynamo"]


def test_a_backward_pass_knows_itself_and_calls_at_its_end() -> None:
    said = []
    x = torch.ones(2, requires_grad=True)

    def inside(grad: object) -> None:
        said.append(private_names.in_backward_pass())
        private_names.after_backward(lambda: said.append("the end"))

    x.register_hook(inside)
    (x * 2).sum().backward()
    assert said == [True, "the end"]
    assert not private_names.in_backward_pass()


def test_trees() -> None:
    tree = {"a": [torch.ones(1), 2]}
    assert private_names.tree_map_only(int, lambda leaf: 5, tree)["a"][1] == 5
    assert private_names.tree_leaves(tree)[1] == 2


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank, of Gloo."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_the_backend_of_the_cpu() -> None:
    assert private_names.backend_of_cpu(dist.group.WORLD).name() == "gloo"


@pytest.mark.usefixtures("alone")
def test_the_wrapper_whose_forward_pass_runs() -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            around.append(private_names.ddp_around())
            return super().forward(x)

    around: list = []
    module = Looks(2, 2)
    nn.parallel.DistributedDataParallel(module)(torch.ones(2))
    assert [id(p) for p in around[0]] == [id(p) for p in module.parameters()]
    assert private_names.ddp_around() is None


@pytest.mark.usefixtures("alone")
def test_what_joins_nothing() -> None:
    from torch.distributed.algorithms.join import Join, Joinable

    class Nothing(Joinable):
        join_hook = join_device = join_process_group = None

        def __init__(self) -> None:
            super().__init__()

    one = Nothing()
    one._join_config = private_names.join_disabled()
    assert Join.notify_join_context(one) is None


def test_every_normalisation_has_one_base() -> None:
    base = nn.modules.batchnorm._NormBase
    kinds = [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm2d]
    assert all(issubclass(kind, base) for kind in kinds)
