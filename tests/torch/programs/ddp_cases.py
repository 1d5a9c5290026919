"""Small training programs, each run under torch's wrapper on gloo and under ours on hier.

A case is a function case_<name>(wrap) that returns tensors: what it trained, or gradients.
ddp_cases_compare.py runs them, and docs/backend.md has how each went.
"""

from collections.abc import Callable

import ddp_case_loops as loops
import ddp_case_modules as modules
from ddp_case_helpers import Wrap
from torch import Tensor

__all__ = ["CASES", "Wrap"]

CASES: dict[str, Callable[[Wrap], list[Tensor]]] = loops.families() | modules.families()
for functions in (vars(loops), vars(modules)):
    CASES |= {n.removeprefix("case_"): f for n, f in functions.items() if n.startswith("case_")}
