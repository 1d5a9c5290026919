"""Detection of every launcher, from the variables that it leaves."""

from datetime import timedelta

import pytest

from allreduce import Timeout, UsageError, init
from allreduce.rendezvous.launcher_environment import Launch, detect_launch, first_host, open_store
from allreduce.rendezvous.store import MemoryStore
from allreduce.rendezvous.tcp_store import TcpStore

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "run7",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
PLAIN = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "node[003-005,9]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-5722@1",
}
MPICH = {
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "PMI_JOBID": "kvs_99",
}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def place(launch: Launch) -> tuple[str, int, int, int | None, int | None]:
    return (
        launch.launcher,
        launch.rank,
        launch.world_size,
        launch.local_rank,
        launch.local_size,
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, ("torchrun", 3, 4, 1, 2)),
        (PLAIN, ("environment", 3, 4, None, None)),
        (SLURM, ("slurm", 5, 8, 1, None)),
        ({**SLURM, "SLURM_NNODES": "1"}, ("slurm", 5, 8, 1, 8)),
        (OPEN_MPI, ("openmpi", 1, 2, 1, 2)),
        (MPICH, ("mpich", 1, 2, 1, 2)),
        ({}, ("single", 0, 1, 0, 1)),
    ],
    ids=["torchrun", "plain", "slurm", "slurm_one_node", "openmpi", "mpich", "nothing"],
)
def test_the_launcher_is_recognised(environ, expected) -> None:
    assert place(detect_launch(environ=environ)) == expected


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({**SLURM, **OPEN_MPI}, "openmpi"),  # mpirun inside an allocation: SLURM sees its daemon
        ({**SLURM, **MPICH}, "mpich"),
        ({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}, "slurm"),  # srun --mpi=pmi2
        ({**SLURM, **OPEN_MPI, **TORCHRUN}, "torchrun"),
    ],
)
def test_the_innermost_launcher_counts(environ, launcher: str) -> None:
    assert detect_launch(environ=environ).launcher == launcher


def test_arguments_go_before_every_launcher() -> None:
    launch = detect_launch(rank=0, world_size=2, master_port=1234, environ=TORCHRUN)
    assert place(launch)[:3] == ("arguments", 0, 2)
    assert (launch.master_addr, launch.master_port) == ("node0", 1234)


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        (without(TORCHRUN, "RANK"), "RANK"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE"),
        (without(PLAIN, "MASTER_ADDR"), "MASTER_ADDR"),
        (without(PLAIN, "MASTER_PORT"), "MASTER_PORT"),
        (without(SLURM, "SLURM_NTASKS"), "SLURM_NTASKS"),
        (without(SLURM, "SLURM_JOB_NODELIST"), "SLURM_JOB_NODELIST"),
        (without(SLURM, "SLURM_JOB_ID"), "SLURM_JOB_ID"),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE"),
        (without(OPEN_MPI, "PMIX_NAMESPACE"), "MASTER_PORT"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "MASTER_ADDR"),
        (without(MPICH, "PMI_RANK"), "PMI_RANK"),
        (without(MPICH, "PMI_JOBID"), "MASTER_PORT"),
        (without(MPICH, "MPI_LOCALNRANKS"), "MASTER_ADDR"),
    ],
)
def test_a_missing_variable_is_named(environ, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"the variable {missing} is missing"):
        detect_launch(environ=environ)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({**PLAIN, "RANK": "x"}, "RANK='x' must be an integer"),
        ({**PLAIN, "RANK": "4"}, "rank 4 of world size 4"),
        ({**PLAIN, "RANK": "-1"}, "rank -1"),
        ({**PLAIN, "MASTER_PORT": "70000"}, "master port 70000"),
    ],
)
def test_a_bad_value_is_named(environ, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        detect_launch(environ=environ)


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"world_size": 2}])
def test_half_of_the_arguments_is_refused(arguments) -> None:
    with pytest.raises(ValueError, match="give both"):
        detect_launch(environ={}, **arguments)


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI, MPICH])
def test_all_ranks_of_a_job_derive_the_same_port_and_another_job_another(environ) -> None:
    rank = next(n for n in environ if n.endswith(("RANK", "PROCID")))
    job = next(n for n in ("SLURM_JOB_ID", "PMIX_NAMESPACE", "PMI_JOBID") if n in environ)
    port = detect_launch(environ=environ).master_port
    assert port is not None
    assert 1024 < port < 32768
    assert detect_launch(environ={**environ, rank: "0"}).master_port == port
    assert detect_launch(environ={**environ, job: environ[job] + "1"}).master_port != port


def test_slurm_finds_rank_0_on_the_first_host() -> None:
    assert detect_launch(environ=SLURM).master_addr == "node003"
    assert detect_launch(environ={**SLURM, "MASTER_ADDR": "else"}).master_addr == "else"
    assert detect_launch(environ={**SLURM, "SLURM_NNODES": "1"}).master_addr == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node7", "node7"),
        ("node[003-005,9]", "node003"),
        ("node[9,003-005],gpu1", "node9"),
        ("gpu1,node[1-2]", "gpu1"),
        ("rack[2-3]-n[10-12].cluster", "rack2-n10.cluster"),
        ("a-b[1],c", "a-b1"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "[", "node[", "node[]", ",a", "a b;rm"])
def test_a_broken_node_list_is_refused(nodelist: str) -> None:
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        first_host(nodelist)


def test_an_address_without_a_rank_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing says which rank this process is"):
        detect_launch(master_addr="node0", master_port=29500, environ={})


def test_a_failed_init_frees_its_port(unused_port: int) -> None:
    for _ in range(2):
        with pytest.raises(Timeout, match="rank 1 never came"):
            init(
                rank=0,
                world_size=2,
                master_addr="127.0.0.1",
                master_port=unused_port,
                timeout=0.5,
            )


def test_a_world_of_one_needs_no_network() -> None:
    assert isinstance(open_store(detect_launch(environ={}), 1.0), MemoryStore)


@pytest.mark.parametrize(
    ("given", "missing"), [({}, "master_addr"), ({"master_addr": "x"}, "port")]
)
def test_a_store_without_an_address_says_what_to_give(given, missing: str) -> None:
    launch = detect_launch(rank=0, world_size=2, environ={}, **given)
    with pytest.raises(ValueError, match=missing):
        open_store(launch, 1.0)


def test_rank_0_serves_the_store(unused_port: int) -> None:
    environ = {**PLAIN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port)}
    environ["WORLD_SIZE"] = "2"
    server = open_store(detect_launch(environ={**environ, "RANK": "0"}), 10.0)
    client = open_store(detect_launch(environ={**environ, "RANK": "1"}), 10.0)
    client.set("a", b"1")
    assert server.get("a") == b"1"
    for store in (client, server):
        assert isinstance(store, TcpStore)
        store.close()


def test_torchruns_agent_serves_its_own_store_apart_for_each_attempt() -> None:
    distributed = pytest.importorskip("torch.distributed")
    agent = distributed.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30))
    environ = {**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    one = open_store(detect_launch(environ={**environ, "RANK": "0"}), 30.0)
    other = open_store(detect_launch(environ=environ), 30.0)
    later = open_store(detect_launch(environ={**environ, "TORCHELASTIC_RESTART_COUNT": "3"}), 30.0)
    one.set("a", b"\x00\xff")
    assert other.get("a") == b"\x00\xff"
    assert not later.check(["a"])


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
