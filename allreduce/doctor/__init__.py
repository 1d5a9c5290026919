"""What is wrong with the hosts and the network of a job: `python -m allreduce.doctor`."""
