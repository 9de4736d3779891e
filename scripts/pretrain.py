"""Pretrain an encoder. Without arguments: a small run on simulated events. See --help."""

import os

# Before torch loads OpenMP: by default its threads wait in a loop so long that one other busy process makes a step ten
# times slower; at this count they are as fast on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from nufm.commands.pretrain import pretrain

if __name__ == "__main__":
    pretrain()
