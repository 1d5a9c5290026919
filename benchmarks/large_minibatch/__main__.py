"""`python -m benchmarks.large_minibatch`: see command.py."""

import sys

from benchmarks.large_minibatch.command import main

sys.exit(main())
