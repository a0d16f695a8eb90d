"""`JobEvent`: one row for each transition of a job. Beats leave none."""

import datetime as dt

from sqlalchemy import BigInteger, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from jobrunner.database import Base
from jobrunner.sqltypes import StateType, StoredText, UtcDateTime, db_now
from jobrunner.states import JobState

BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up by itself only on INTEGER


class JobEvent(Base):
    """What happened to a job: when (the database's clock), from where to where, by whom and why."""

    __tablename__ = "job_event"
    __table_args__ = (Index(None, "job_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigId, ForeignKey("job.id", ondelete="CASCADE"))
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime, server_default=db_now())
    from_state: Mapped[JobState | None] = mapped_column(StateType)
    to_state: Mapped[JobState] = mapped_column(StateType)
    actor: Mapped[str] = mapped_column(StoredText())
    reason: Mapped[str | None] = mapped_column(StoredText())

    def __repr__(self) -> str:
        return f"<JobEvent {self.at} job={self.job_id} {self.from_state} -> {self.to_state} by {self.actor}>"
