"""`python -m lightning_edge.app` is the same as `lightning-edge`."""

import sys

from lightning_edge.app.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
