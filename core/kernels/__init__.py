"""Kernels in Triton for what a block does element by element: one pass over memory where PyTorch takes several.

They are compiled once for a dtype and a width, for any number of tokens. `ops.py` has them in the place of
`core.wan.ops`; nothing here is imported before `available.py` has found that Triton works.
"""
