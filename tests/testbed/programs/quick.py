"""Runs argv[1:] as Python code or as the testbed's command line, without importing the framework.

`import lightning_edge` brings torch and Lightning, which the testbed itself does not need; tests
that start it many times cannot wait for that each time.

    quick.py -c CODE        quick.py run --device ...
"""

import sys
import types
from pathlib import Path

package = types.ModuleType("lightning_edge")
package.__path__ = [str(Path(__file__).parents[3] / "lightning_edge")]
sys.modules["lightning_edge"] = package
if sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    from lightning_edge.testbed.cli import main

    sys.exit(main(sys.argv[1:]))
