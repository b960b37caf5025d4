"""The queue's tables. Portable types only: SQLite and PostgreSQL run the same statements.

Times are seconds since 1970 by the database's own clock (`clock()`), so that no two processes can
disagree about them. Documents (spec, result, an event's data) are JSON text.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

NOT_RUN = text("desired <> 'run'")
"""Said word by word as in the index of these few jobs: a parameter would hide that it serves."""

UNCLOSED = text("NOT run_closed AND experiment_id IS NOT NULL")
"""Likewise: jobs whose runs in MLflow are open, or may be."""

HAS_ORIGIN = text("init_job IS NOT NULL")
"""Jobs that begin from another one's checkpoint, which are few."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False, server_default="train"),
    Column("name", String(100), nullable=False),
    Column("experiment", String(100), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("desired", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("not_before", Double),
    Column("reason", String(32)),
    Column("evidence", Text, nullable=False),
    Column("waiting_reason", Text, nullable=False),
    Column("errors", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("experiment_id", String(64)),
    Column("run_id", String(64)),
    Column("run_closed", Boolean, nullable=False),
    Column("result", Text),
    Column("retry_through", Integer, nullable=False, server_default="0"),
    Column("owner", String(100), nullable=False, server_default="local"),
    Column("init_job", String(64)),  # from whose checkpoint it begins
    Index("ix_jobs_queue", "state", text("priority DESC"), "id"),  # its order
    Index(None, "experiment", "id"),
    Index(None, "kind", "id"),
    Index(None, "owner", "id"),
    Index(None, "owner", "state", "id"),
    Index("ix_jobs_not_run", "id", sqlite_where=NOT_RUN, postgresql_where=NOT_RUN),
    Index("ix_jobs_unclosed", "id", sqlite_where=UNCLOSED, postgresql_where=UNCLOSED),
    Index("ix_jobs_init_job", "init_job", sqlite_where=HAS_ORIGIN, postgresql_where=HAS_ORIGIN),
    Index(None, "state", "id"),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(200), nullable=False),
    Index(None, "key", "value", "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("created_at", Double, nullable=False),
    Column("submitted_at", Double),
    Column("stop_kind", String(16)),
    Column("stop_reason", String(32)),
    Column("stop_requested_at", Double),
    Column("gone_since", Double),
    Column("ended_at", Double),
    Column("session", String(100)),
    Column("session_lost_at", Double),
    Column("node_id", String(100)),
    Column("killed_at", Double),
    Column("resumed_step", Integer),
    Column("reason", String(32)),
    Column("evidence", Text),
)

events = Table(
    "events",
    metadata,
    # SQLite counts up only what is exactly an INTEGER PRIMARY KEY.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("type", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index(None, "job_id", "id"),
)


# Keys outlive their jobs: a submission repeated after the deletion runs nothing again.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("job_id", String(32), nullable=False),
    Column("created_at", Double, nullable=False),
)

# What the API's callers show. Of the secret there is the digest of the whole token alone.
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(8), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("owner", String(100), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

# One row, made by the migration: two queues may share a cluster, and each knows its own jobs there.
queue = Table("queue", metadata, Column("id", String(32), primary_key=True))


class clock(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: SQLCompiler, **options: Any) -> str:
    # Not unixepoch('subsec'): SQLite before 3.42 answers NULL to it.
    return "round((julianday('now') - 2440587.5) * 86400.0, 3)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: SQLCompiler, **options: Any) -> str:
    # Not now(): that is the transaction's start, which may lie behind a wait for a lock.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
