"""`python -m allreduce.bench`: the speed of collectives on these ranks, and their results."""
