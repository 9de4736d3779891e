"""Pretrain an encoder. Without arguments: a small run on simulated events. See --help."""

import os

# Before torch loads OpenMP: threads that wait in a loop starve the loader's workers and each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from nufm.cli import pretrain

if __name__ == "__main__":
    pretrain()
