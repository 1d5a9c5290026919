"""`python -m allreduce.tune`: measures algorithms and options on these ranks, writes a file."""
