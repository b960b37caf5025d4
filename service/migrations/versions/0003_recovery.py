"""What recovery goes by: the cluster's session of an attempt, keys of submissions, the queue's id.

Revision ID: 0003
Revises: 0002
"""

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ATTEMPTS: dict[str, sa.types.TypeEngine[Any]] = {
    "session": sa.String(100),
    "session_lost_at": sa.Double(),
    "node_id": sa.String(100),
    "killed_at": sa.Double(),
    "resumed_step": sa.Integer(),
    "reason": sa.String(32),
    "evidence": sa.Text(),
}
"""New columns, all of them empty for attempts of before."""


def upgrade() -> None:
    """Apply."""
    owner = sa.Column("owner", sa.String(100), nullable=False, server_default="local")
    op.add_column("jobs", owner)
    for name, kind in ATTEMPTS.items():
        op.add_column("attempts", sa.Column(name, kind))
    op.drop_index("ix_jobs_state_priority_id", "jobs")
    op.drop_index("ix_jobs_run_closed_state", "jobs")
    op.create_index("ix_jobs_queue", "jobs", ["state", sa.text("priority DESC"), "id"])
    few = sa.text("desired <> 'run'")
    op.create_index("ix_jobs_not_run", "jobs", ["id"], sqlite_where=few, postgresql_where=few)
    few = sa.text("NOT run_closed AND experiment_id IS NOT NULL")
    op.create_index("ix_jobs_unclosed", "jobs", ["id"], sqlite_where=few, postgresql_where=few)
    op.create_index("ix_jobs_state_id", "jobs", ["state", "id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotency_keys"),
    )
    queue = op.create_table(
        "queue",
        sa.Column("id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_queue"),
    )
    op.bulk_insert(queue, [{"id": secrets.token_hex(8)}])


def downgrade() -> None:
    """Take back; what was to be deleted goes now."""
    op.execute("DELETE FROM jobs WHERE desired = 'delete'")  # and what refers to them
    op.drop_table("queue")
    op.drop_table("idempotency_keys")
    for name in ("ix_jobs_state_id", "ix_jobs_unclosed", "ix_jobs_not_run"):
        op.drop_index(name, "jobs")
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_state_priority_id", "jobs", ["state", "priority", "id"])
    op.create_index("ix_jobs_run_closed_state", "jobs", ["run_closed", "state"])
    for name in ATTEMPTS:
        op.drop_column("attempts", name)
    op.drop_column("jobs", "owner")
