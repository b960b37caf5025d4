"""The control plane: REST API, durable queue, reconciler. Imports neither torch nor ray."""
