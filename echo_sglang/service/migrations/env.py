"""Runs migrations on the connection that `service.database` hands over."""

from alembic import context

from echo_sglang.service.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
