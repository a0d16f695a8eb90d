"""How long the work of a job may wait before it starts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("start_timeout", sa.Float(53)))


def downgrade() -> None:
    op.drop_column("job", "start_timeout")
