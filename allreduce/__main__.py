"""`python -m allreduce`: the commands that come with this package."""

COMMANDS = {
    "allreduce.bench": "measures collectives on a cluster of yours, or here with --ranks 4",
    "allreduce.doctor": "finds what is wrong with the hosts and the network of a job, before it",
    "allreduce.tune": "measures the ranks of a job thoroughly, and writes a tuning file",
    "allreduce.emulate": "runs a command on hosts of an emulated network, with a rate and a delay",
    "allreduce.show": "draws a schedule: python -m allreduce.show halving_doubling 6",
    "allreduce.cuda": "says what GPUs were found, and what would be chosen for them",
    "trainer.run": "trains ResNet-50: python -m trainer.run --algo halving_doubling",
    "trainer.pack": "makes one memory-mapped file of uint8 out of a data set",
    "trainer.report": "compares finished runs, and draws them",
}

if __name__ == "__main__":
    print("Commands, each with --help:\n")
    for module, does in COMMANDS.items():
        print(f"  python -m {module:<16}  {does}")
