"""Fits of the engine's parameters from measurements, and their honest errors.

`serving` fits `EngineParams` and `CapResponse` from steady-state serving runs, `ops` the watts of
single kernels. `validation` says which rows may be on both sides of a split, `errors` sums errors
up, `solve` is the least-squares routine that both use.
"""
