"""Linear probe of a pretrained encoder: motif and PID from frozen features. See --help."""

from nufm.commands.probe import probe

if __name__ == "__main__":
    probe()
