"""Pretrain an encoder. Without arguments: a small run on simulated events. See --help."""

from nufm.cli import pretrain

if __name__ == "__main__":
    pretrain()
