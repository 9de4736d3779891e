"""Simulated events, written as the files that ``nufm.data`` reads.

From primaries to files: :mod:`events` draws the particles, :mod:`transport` follows them through a
:mod:`medium`, :mod:`voxels` and :mod:`truth` make labelled voxels of what they leave, :mod:`dataset` writes
and caches. NumPy and Numba only.
"""
