"""All talk with Kubernetes: client, informers, leases, events, custom resources, and the way from objects to
values.
"""
