"""Settings that must be made before the first import of triton."""

import os

import torch

if not torch.cuda.is_available():
    # The same kernel tests run compiled where there is a GPU and by Triton's interpreter elsewhere.
    os.environ.setdefault("TRITON_INTERPRET", "1")
