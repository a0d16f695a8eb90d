"""What a submission found outside before it, whose work is whose, and how often it may be made again."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEX = "ix_job_connection_external_id"
SUBMITTED = sa.text(
    "submit_started_at IS NOT NULL AND external_id IS NOT NULL AND state IN ('queued', 'running')"
)


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("job", sa.Column("submit_baseline", sa.Text))
    op.add_column("job", sa.Column("resubmit", document))
    op.create_index(
        INDEX,
        "job",
        ["connection", "external_id"],
        unique=True,
        postgresql_where=SUBMITTED,
        sqlite_where=SUBMITTED,
    )


def downgrade() -> None:
    op.drop_index(INDEX, "job")
    op.drop_column("job", "resubmit")
    op.drop_column("job", "submit_baseline")
