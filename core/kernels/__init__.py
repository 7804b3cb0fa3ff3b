"""Triton kernels for the element-wise arithmetic of a block: one pass over memory where PyTorch takes several.

They are compiled once for a dtype and a width, for any number of tokens. `ops.py` offers them in the place of
`core.wan.ops`. Nothing here is imported before `available.py` has found that Triton works.
"""
