"""Draw an event, as a PNG and as an HTML file to turn and zoom. See --help."""

import sys

from nufm.display.command import display


def load(source):
    from nufm.checkpoint import from_pretrained  # only with --checkpoint: it takes a second to import

    return from_pretrained(source)


if __name__ == "__main__":
    sys.exit(display(load))
