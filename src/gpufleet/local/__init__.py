"""A whole fleet on this machine: the real control plane as processes, simulated GPU nodes, and their
supervisor.
"""
