"""Jobs of two kinds: trainings and searches.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NOT_READABLE = "kind <> 'train'"
"""Rows that the release before would take for trainings, and fail on."""


# No batches: where Alembic copies a table on SQLite, dropping the old one deletes the rows of other
# tables that refer to it.


def upgrade() -> None:
    """Apply."""
    kind = sa.Column("kind", sa.String(16), nullable=False, server_default="train")
    op.add_column("jobs", kind)
    through = sa.Column("retry_through", sa.Integer(), nullable=False, server_default="0")
    op.add_column("jobs", through)
    op.create_index("ix_jobs_kind_id", "jobs", ["kind", "id"])


def downgrade() -> None:
    """Take back; searches go with it."""
    op.execute(f"DELETE FROM jobs WHERE {NOT_READABLE}")  # and what refers to them
    op.drop_index("ix_jobs_kind_id", "jobs")
    op.drop_column("jobs", "retry_through")
    op.drop_column("jobs", "kind")
