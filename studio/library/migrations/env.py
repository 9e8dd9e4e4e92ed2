"""Alembic's entry: runs the revisions on the connection that `database.migrate` passes in."""

from alembic import context

from studio.library.models import Table

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=connection.dialect.name == "sqlite", transaction_per_migration=False)
context.run_migrations()
