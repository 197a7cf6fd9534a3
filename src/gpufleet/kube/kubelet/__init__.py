"""What a node's kubelet says over gRPC: device plugins (v1beta1) and pod resources (v1)."""
