"""See command.py."""

import sys

from allreduce.emulate.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
