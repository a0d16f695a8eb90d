"""A key for each stored job, who owns it and where, what a claimer must know, and holds after a restore."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY_INDEX = "ix_job_key"
NUMBERS = {
    "heartrate": "heartrate > 0 AND heartrate <= 1e9",
    "poll_interval": "poll_interval IS NULL OR (poll_interval > 0 AND poll_interval <= 1e9)",
    "start_timeout": "start_timeout IS NULL OR (start_timeout > 0 AND start_timeout <= 1e9)",
    "claims": "claims >= 0 AND claims <= 2147483647",
    "attempt": "attempt >= 0 AND attempt <= 2147483647",
}
"""What each number must be. NaN and the infinities fail it on PostgreSQL, and text fails it on SQLite."""
REPAIRED = {"heartrate": "5", "poll_interval": "NULL", "start_timeout": "NULL", "claims": "0", "attempt": "1"}
"""What a number that is none becomes: no row of before may stop the upgrade."""

OLD_CLAIM = """
    NEW.runner_id IS NOT NULL AND NEW.runner_id {differs} OLD.runner_id
    AND (NEW.needs > 1 OR NEW.held_at IS NOT NULL) AND substr(NEW.runner_id, 15, 1) = '4'
"""
"""A claim by jobrunner 0.1, whose runner ids are UUIDs of version 4: it knows neither `needs` nor holds."""


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    moment = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
    for column, rule in NUMBERS.items():
        op.execute(f"UPDATE job SET {column} = {REPAIRED[column]} WHERE NOT ({rule})")  # noqa: S608  # constants
    op.add_column("job", sa.Column("key", sa.String(250)))
    op.create_index(KEY_INDEX, "job", ["key"], unique=True)
    op.add_column("job", sa.Column("runner_host_id", sa.String(250)))
    op.add_column("job", sa.Column("host_uid", sa.BigInteger().with_variant(sa.Integer(), "sqlite")))
    op.add_column("job", sa.Column("held_at", moment))
    if on_sqlite:
        # SQLite adds no constraint to a table that is there, but a column may bring one with it. To build
        # the table anew would delete the events (ON DELETE CASCADE) and forget which ids were used.
        rules = " AND ".join(f"({rule})" for rule in NUMBERS.values())
        op.execute(f"ALTER TABLE job ADD COLUMN needs INTEGER CONSTRAINT ck_job_numbers CHECK ({rules})")
        op.execute(
            f"""
            CREATE TRIGGER jobrunner_needs BEFORE UPDATE OF runner_id ON job FOR EACH ROW
            WHEN {OLD_CLAIM.format(differs="IS NOT")} BEGIN SELECT RAISE(IGNORE); END
            """
        )
        return
    op.add_column("job", sa.Column("needs", sa.Integer))
    op.drop_constraint("ck_job_heartrate", "job")
    for column, rule in NUMBERS.items():
        op.create_check_constraint(op.f(f"ck_job_{column}"), "job", rule)
    op.execute(
        """
        CREATE FUNCTION jobrunner_refuse_claim() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RETURN NULL;
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER jobrunner_needs BEFORE UPDATE OF runner_id ON job FOR EACH ROW
        WHEN ({OLD_CLAIM.format(differs="IS DISTINCT FROM")}) EXECUTE FUNCTION jobrunner_refuse_claim()
        """
    )


def downgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("DROP TRIGGER jobrunner_needs" + ("" if on_sqlite else " ON job"))
    if not on_sqlite:
        op.execute("DROP FUNCTION jobrunner_refuse_claim()")
        for column in NUMBERS:
            op.drop_constraint(f"ck_job_{column}", "job")
        op.create_check_constraint(op.f("ck_job_heartrate"), "job", "heartrate > 0")
    op.drop_index(KEY_INDEX, "job")
    for column in ("needs", "held_at", "host_uid", "runner_host_id", "key"):
        op.drop_column("job", column)
