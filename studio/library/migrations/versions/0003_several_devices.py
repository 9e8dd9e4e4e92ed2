"""A job may have several devices, by commas."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _width(32, 255)


def downgrade() -> None:
    _width(255, 32)


def _width(now: int, then: int) -> None:
    if op.get_bind().dialect.name != "sqlite":  # which does not look at lengths
        op.alter_column("jobs", "device", existing_type=sa.String(length=now), type_=sa.String(length=then), existing_nullable=False)
