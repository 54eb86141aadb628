"""The node agent: who owns which GPU, what limit it may have, write, read back, report."""
