"""Brings the database's schema up to date; several processes may do so at once.

Alembic is loaded only where there is something to do: the API starts some tenths of a second
sooner without it, and every start but the first after an upgrade finds nothing.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_LOCK = 0x63617073  # "caps", the key of PostgreSQL's advisory lock


def newest_revision() -> str:
    """The revision that this release's tables are of."""
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def is_up_to_date(connection: Connection) -> bool:
    """Whether nothing is to be done."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return found == [newest_revision()]


def upgrade(connection: Connection) -> None:
    """Apply what is missing, within a transaction that may write."""
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
