"""From whose checkpoint a job begins, in a column of its own.

Revision ID: 0004
Revises: 0003
"""

import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JOB_ID = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)

jobs = sa.table("jobs", *(sa.column(name, sa.Text) for name in ("id", "kind", "spec", "init_job")))


def upgrade() -> None:
    """Apply, and look it up in the specifications of the jobs that are there."""
    op.add_column("jobs", sa.Column("init_job", sa.String(64)))
    connection = op.get_bind()
    # Labels have such a key now and then; most specifications don't, and are not parsed.
    possible = sa.select(jobs).where(jobs.c.spec.contains('"job"'))
    origins = [(row.id, origin_of(row.kind, row.spec)) for row in connection.execute(possible)]
    found = [{"heir": heir, "origin": origin} for heir, origin in origins if origin]
    if found:
        change = sa.update(jobs).where(jobs.c.id == sa.bindparam("heir"))
        connection.execute(change.values(init_job=sa.bindparam("origin")), found)
    few = sa.text("init_job IS NOT NULL")
    op.create_index(
        "ix_jobs_init_job", "jobs", ["init_job"], sqlite_where=few, postgresql_where=few
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_jobs_init_job", "jobs")
    op.drop_column("jobs", "init_job")


def origin_of(kind: str, text: str) -> str | None:
    """The job in `init_from`, of a search in its base's; None also where the text is no such."""
    try:
        spec = json.loads(text)
    except ValueError:
        return None
    path = ("base", "init_from", "job") if kind == "search" else ("init_from", "job")
    found: Any = spec
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) and JOB_ID.fullmatch(found) else None
