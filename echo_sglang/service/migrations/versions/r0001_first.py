"""Files, batches, their lines and results, idempotency keys, webhook events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of an empty store."""
    _create_files()
    _create_batches()
    _create_lines_and_results()
    _create_keys_and_events()


def downgrade() -> None:
    """Drop everything."""
    for table in ("events", "idempotency_keys", "results", "lines", "batches", "files"):
        op.drop_table(table)


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    op.create_index("files_by_owner", "files", ["owner", "created_at", "id"])
    op.create_index("files_by_expiry", "files", ["expires_at"])


def _create_batches() -> None:
    states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("completion_window", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("output_file", sa.String(64), nullable=False, unique=True),
        sa.Column("error_file", sa.String(64), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("ends_as", sa.String(16)),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("total", "completed", "failed")),
        *(
            sa.Column(f"{name}_tokens", sa.BigInteger, nullable=False)
            for name in ("input", "output", "cached")
        ),
        sa.Column("model", sa.Text),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("output_expires_after_s", sa.Integer),
        sa.Column("pause_requested", sa.Boolean, nullable=False),
        *(sa.Column(f"{state}_at", sa.Double) for state in (*states, "cancelled")),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_fence", sa.BigInteger, nullable=False),
        sa.Column("lease_until", sa.Double),
    )
    op.create_index("batches_by_owner", "batches", ["owner", "created_at", "id"])
    op.create_index("batches_by_state", "batches", ["state", "expires_at"])
    op.create_index("batches_by_input", "batches", ["input_file_id"])


def _create_lines_and_results() -> None:
    op.create_table(
        "lines",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("order_key", sa.LargeBinary, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("in_flight", sa.Boolean, nullable=False),
    )
    op.create_index("lines_in_order", "lines", ["batch_id", "in_flight", "order_key", "number"])
    op.create_table(
        "results",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("batch_id", "number", name="results_once_a_line"),
    )


def _create_keys_and_events() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_digest", sa.String(64), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    op.create_index("events_by_due", "events", ["due_at"])
