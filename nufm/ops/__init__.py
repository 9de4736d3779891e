"""Numerics on packed tensors: space-filling curves, neighbours, sparse convolution, windowed attention,
pooling.

Functions know tensors, not events: rows of all events lie end to end, ``offsets`` (B+1,) int64 from 0 to N
tell them apart. The implementations here are in plain torch, for any device, and define what a faster backend
must compute. Lists that depend on coordinates only (:class:`~nufm.ops.kernel_map.KernelMap`,
:class:`~nufm.ops.attention.Windows`, :class:`~nufm.ops.pool.Segments`) are made once per resolution level and
shared by its layers.
"""
