"""Implementations of the ops beside the torch reference; the only folder that imports compiled packages.

Each module offers ``IMPLEMENTATIONS`` and ``unavailable()`` (see :mod:`nufm.ops.dispatch`) and raises
ImportError where its package is missing.
"""
