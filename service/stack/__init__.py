"""The embedded stack of `capsctl up`: Ray, MLflow and the API on one machine, on loopback.

`state` is what a later `up` needs to find it again, `services` says how each part is started and
when it is ready, `processes` finds and ends processes, `supervisor` keeps all of it running.
"""
