"""gpufleet: the GPU layer for Kubernetes as one product."""

__version__ = "0.1.0"
