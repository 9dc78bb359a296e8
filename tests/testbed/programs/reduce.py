"""A small data-parallel job on torch.distributed: argv[1] all-reduces of one MB over gloo."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=30))
total = dist.get_world_size() * (dist.get_world_size() + 1) // 2
for step in range(1, int(sys.argv[1]) + 1):
    values = torch.full((250_000,), float(dist.get_rank() + 1))
    dist.all_reduce(values)
    assert values.eq(total).all()
    with open(os.environ["LIGHTNING_EDGE_STEP_FILE"], "a") as file:
        file.write(f"{step} {time.monotonic()}\n")
print(f"sum {total}", flush=True)
dist.destroy_process_group()
