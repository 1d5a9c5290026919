"""The sections of `python -m benchmarks.gpu_check`: modules with a function `run(rows)`."""
