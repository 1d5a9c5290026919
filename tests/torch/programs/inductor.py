"""Functional collectives in code that torch.compile's inductor generates: calls a C++ compiler."""

import compiled
import torch
from harness import RANK, main


def check_inductor() -> None:
    for function, expected in compiled.FUNCTIONS:
        output = torch.compile(function, fullgraph=True)(compiled.EVERY[RANK])
        assert torch.allclose(output, expected(), atol=1e-6), function


if __name__ == "__main__":
    main(dict(globals()))
