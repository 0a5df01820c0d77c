"""Each test process gets a core of its own, before anything starts threads.

Runtimes whose threads wait for each other by spinning would slow one another down otherwise.
"""

import os

_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})
