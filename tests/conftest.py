"""Settings that must be made before the first import of triton."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # The same kernel tests run compiled where there is a GPU and by Triton's interpreter elsewhere.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def float32_products_as_before():
    """Runs and benchmarks allow TF32 for the whole process; tolerances of later tests must not depend on it."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
