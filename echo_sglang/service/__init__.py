"""Offline batches that outlive the server: durable store, files, validation, runner, HTTP API."""
