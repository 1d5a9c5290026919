"""What `pytest benchmarks` runs."""
