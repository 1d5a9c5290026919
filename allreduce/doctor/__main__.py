"""See command.py."""

import sys

from allreduce.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
