"""The Kubernetes API server, for as little as possible: this node's pods and resource slices."""
