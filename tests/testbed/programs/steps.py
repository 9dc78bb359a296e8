"""Announces argv[1] training steps, argv[2] seconds apart."""

import os
import sys
import time

for step in range(1, int(sys.argv[1]) + 1):
    time.sleep(float(sys.argv[2]))
    with open(os.environ["LIGHTNING_EDGE_STEP_FILE"], "a") as file:
        file.write(f"{step} {time.monotonic()}\n")
    print(f"step {step}", flush=True)
