"""Stand-ins for Ray, MLflow, a worker and the clock, for the tests of whatever drives jobs.

They are part of the package, so that a plug-in's tests can use them too. Each passes the same tests
as the real thing (`tests/unit/service/test_fakes.py`).
"""
