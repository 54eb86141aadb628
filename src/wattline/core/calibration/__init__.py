"""Holding models against what is seen: correction factors, drift, and sweeps that may fail.

docs/concepts/calibration.md explains the whole. Formulas and constants are those of NVIDIA Dynamo's
closed-loop power design; what is done differently on purpose is listed there.
"""
