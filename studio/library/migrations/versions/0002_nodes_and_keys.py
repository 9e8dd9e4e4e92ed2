"""Several dispatchers on one database, and submissions that may arrive twice."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("node", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("key", sa.String(length=100), nullable=True))
    op.create_index(op.f("ix_jobs_key"), "jobs", ["key"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_key"), table_name="jobs")
    op.drop_column("jobs", "key")
    op.drop_column("jobs", "node")
