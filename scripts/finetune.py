"""Train a network on labelled events, from a pretrained encoder or from scratch. See --help."""

import os

# As in pretrain.py: before torch loads OpenMP, so that its threads do not wait in a loop for long.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from nufm.commands.finetune import finetune

if __name__ == "__main__":
    finetune()
