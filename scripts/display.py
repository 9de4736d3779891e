"""Draw an event, as a PNG and as an HTML file to turn and zoom. See --help."""

import sys

from nufm.commands.display import main

if __name__ == "__main__":
    sys.exit(main())
