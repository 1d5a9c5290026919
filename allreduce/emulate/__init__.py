"""A network of hosts on one machine, with a rate and a delay: `python -m allreduce.emulate`."""
