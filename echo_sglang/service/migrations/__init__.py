"""Alembic migrations of the batch store, run by `service.database`."""
