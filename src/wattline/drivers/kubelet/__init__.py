"""Which pod holds which GPU: PodResources, DRA claims, and processes as the fallback."""
