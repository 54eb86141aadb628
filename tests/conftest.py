"""Settings that hold for all tests."""

from hypothesis import settings

# Machines are shared and slow at times: no test fails for time. Derandomised: CI repeats itself.
settings.register_profile("wattline", deadline=None, derandomize=True)
settings.load_profile("wattline")
