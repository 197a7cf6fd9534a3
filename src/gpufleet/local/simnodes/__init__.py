"""Simulated GPU nodes: one asyncio process that plays the kubelets of a local fleet.

`machines` says what the nodes are and `podlife` what a kubelet does with a pod, both pure; `modelled` and
`processes` are the two runtimes that play containers (on a clock, or as real child processes); `node` and
`kubelets` are the shell that watches, executes instructions and writes; the rest is what else a node is for
the API server: `registration`, `leases`, `endpoint` (logs) and `provisioner` (volumes).
"""
