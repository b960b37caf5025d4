"""Alembic's migrations of the queue's database, run by `Store.migrate`."""
