"""The tables. A change here needs a migration in `migrations/versions` (a test compares).

A validated line is in exactly one of two places: a row of `lines` while it has no result, a
row of `results` from the transaction that takes it out of `lines`. So no crash can lose one or
count one twice. Both are emptied when the batch's files are final: the store grows with the
batches at work, not with history.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Index("files_by_owner", "owner", "created_at", "id"),
    sa.Index("files_by_expiry", "expires_at"),
)

batches = sa.Table(
    "batches",
    metadata,
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
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("completed", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("prompt_bytes", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("allowed_tokens", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("model", sa.Text),
    sa.Column("errors", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("output_expires_after_s", sa.Integer),
    sa.Column("pause_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("in_progress_at", sa.Double),
    sa.Column("finalizing_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("failed_at", sa.Double),
    sa.Column("expired_at", sa.Double),
    sa.Column("cancelling_at", sa.Double),
    sa.Column("cancelled_at", sa.Double),
    sa.Column("lease_owner", sa.String(128)),
    sa.Column("lease_fence", sa.BigInteger, nullable=False, default=0),
    sa.Column("lease_until", sa.Double),
    sa.Index("batches_by_owner", "owner", "created_at", "id"),
    sa.Index("batches_by_state", "state", "expires_at"),
    sa.Index("batches_by_input", "input_file_id"),
)

lines = sa.Table(
    "lines",
    metadata,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("order_key", sa.LargeBinary, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    sa.Column("in_flight", sa.Boolean, nullable=False, default=False),
    sa.Index("lines_in_order", "batch_id", "in_flight", "order_key", "number"),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("batch_id", "number", name="results_once_a_line"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("body_digest", sa.String(64), nullable=False),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Index("events_by_due", "due_at"),
)
