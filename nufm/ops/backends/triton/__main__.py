"""``python -m nufm.ops.backends.triton``: compile every kernel for GPUs that need not be there."""

import sys

from nufm.ops.backends.triton.aot import main

sys.exit(main())
