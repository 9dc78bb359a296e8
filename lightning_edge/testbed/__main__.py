"""`python -m lightning_edge.testbed` is the same as `lightning-edge testbed`."""

import sys

from lightning_edge.testbed.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
