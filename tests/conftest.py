"""Settings of the whole test run."""

import os

# Before torch loads OpenMP: threads that wait in a loop starve the processes that some tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
