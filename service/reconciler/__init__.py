"""The loop that looks at every job, asks `service.reconcile` what to do, and does it."""

from service.reconciler.loop import ReconcilerLoop

__all__ = ["ReconcilerLoop"]
