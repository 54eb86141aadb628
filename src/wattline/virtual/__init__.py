"""A virtual GPU node for tests and demonstrations: NVML, kubelet and cgroups without hardware."""
