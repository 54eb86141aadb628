"""GPUs behind one seam: NVML, DCGM, simulated."""
