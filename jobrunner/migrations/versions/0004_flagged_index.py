"""An index of the jobs that carry the kill flag, by who runs them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEX = "ix_job_runner_id"
FLAGGED = sa.text("kill_requested_at IS NOT NULL")


def upgrade() -> None:
    op.create_index(INDEX, "job", ["runner_id"], postgresql_where=FLAGGED, sqlite_where=FLAGGED)


def downgrade() -> None:
    op.drop_index(INDEX, "job")
