"""Runs migrations on the connection that `app.base.db` hands over."""

from alembic import context

import app.audit.checkpoints
import app.audit.events
import app.audit.rollup
import app.identity.external_users
import app.identity.refresh_tokens
import app.identity.reset_links
import app.identity.service_keys
import app.identity.users  # noqa: F401 - the tables register themselves
from app.base.db import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with: realtime-tokens migrate")

context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=False,  # the transaction belongs to whoever hands the connection over
)
context.run_migrations()
