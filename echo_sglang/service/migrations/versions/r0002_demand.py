"""What the lines of a batch ask for, to say whether it will make its window.

Batches of before have 0: their forecast is not known until they have a pace of their own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS = ("prompt_bytes", "allowed_tokens")


def upgrade() -> None:
    """From 0001 to 0002."""
    for name in _COLUMNS:
        column = sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        op.add_column("batches", column)


def downgrade() -> None:
    """From 0002 to 0001."""
    for name in _COLUMNS:
        op.drop_column("batches", name)
