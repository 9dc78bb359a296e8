"""Uses CPU for argv[1] seconds, then prints its cgroup's own account of it."""

import sys
import time

end_s = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end_s:
    pass
print("done", flush=True)
