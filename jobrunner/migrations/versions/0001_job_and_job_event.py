"""The tables job and job_event, and the kill flag's notification."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FILLFACTOR = 50


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    moment = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    now = sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now'))" if on_sqlite else "clock_timestamp()")

    op.create_table(
        "job",
        sa.Column("id", big, nullable=False),
        sa.Column("job_type", sa.String(250), nullable=False),
        sa.Column("name", sa.String(250)),
        sa.Column("dag_id", sa.String(250)),
        sa.Column("parent_id", big),
        sa.Column("state", sa.String(16), server_default="queued", nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.Column("start_date", moment),
        sa.Column("end_date", moment),
        sa.Column("latest_heartbeat", moment, server_default=now, nullable=False),
        sa.Column("heartrate", sa.Float(53), nullable=False),
        sa.Column("executor_class", sa.String(250)),
        sa.Column("hostname", sa.String(250)),
        sa.Column("unixname", sa.String(250)),
        sa.Column("pid", sa.Integer),
        sa.Column("process_started_at", sa.String(250)),
        sa.Column("runner_id", sa.String(36)),
        sa.Column("claims", sa.Integer, server_default="0", nullable=False),
        sa.Column("host_id", sa.String(250)),
        sa.Column("adoptable", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("kill_requested_at", moment),
        sa.Column("kill_requested_by", sa.Text),
        sa.Column("kill_reason", sa.Text),
        sa.Column("connection", sa.String(250)),
        sa.Column("spec", document),
        sa.Column("submit_token", sa.String(64)),
        sa.Column("submit_started_at", moment),
        sa.Column("attempt", sa.Integer, server_default="1", nullable=False),
        sa.Column("cancel_cause", sa.String(32)),
        sa.Column("cancel_started_at", moment),
        sa.Column("external_id", sa.Text),
        sa.Column("external_state", sa.Text),
        sa.Column("detail", document),
        sa.Column("deadline_at", moment),
        sa.Column("poll_interval", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["job.id"], name=op.f("fk_job_parent_id"), ondelete="SET NULL"
        ),
        sa.CheckConstraint("heartrate > 0", name=op.f("ck_job_heartrate")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'success', 'failed', 'killed', 'lost')", name=op.f("ck_job_state")
        ),
        sqlite_autoincrement=True,
        postgresql_with={"fillfactor": FILLFACTOR},
    )
    op.create_index("ix_job_state_id", "job", ["state", "id"])
    op.create_index("ix_job_job_type_end_date", "job", ["job_type", "end_date"])
    op.create_index("ix_job_end_date", "job", ["end_date"])
    op.create_index("ix_job_name_id", "job", ["name", "id"])
    op.create_index("ix_job_dag_id", "job", ["dag_id"])
    op.create_index("ix_job_parent_id", "job", ["parent_id"])

    op.create_table(
        "job_event",
        sa.Column("id", big, nullable=False),
        sa.Column("job_id", big, nullable=False),
        sa.Column("at", moment, server_default=now, nullable=False),
        sa.Column("from_state", sa.String(16)),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_event")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_event_job_id"), ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_event_job_id", "job_event", ["job_id"])

    if not on_sqlite:
        # Plain SQL from any client is a valid kill, and is heard at once.
        op.execute(
            """
            CREATE FUNCTION jobrunner_notify_kill() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              PERFORM pg_notify('jobrunner_kill', NEW.id::text);
              RETURN NULL;
            END $$
            """
        )
        op.execute(
            """
            CREATE TRIGGER jobrunner_kill AFTER UPDATE OF kill_requested_at ON job FOR EACH ROW
            WHEN (NEW.kill_requested_at IS NOT NULL) EXECUTE FUNCTION jobrunner_notify_kill()
            """
        )


def downgrade() -> None:
    op.drop_table("job_event")
    op.drop_table("job")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION jobrunner_notify_kill()")
