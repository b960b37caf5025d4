"""What runs on Ray. The control plane imports only `workers.specs` and `workers.attempt`."""
