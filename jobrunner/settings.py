"""Settings: from the environment, `jobrunner.toml` and defaults; what code says comes before all of them.

    from jobrunner.settings import configure, get_settings

    configure(heartrate=10)
    get_settings().effective_database_url

See docs/configuration.md for the table of settings and the order of the sources.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from jobrunner import known_secrets, paths
from jobrunner.clock import INTERVAL_LEAST, SECONDS_MOST
from jobrunner.database_url import DatabaseUrl
from jobrunner.errors import SettingsError
from jobrunner.redaction import mask_value, remember_secrets
from jobrunner.references import has_reference, resolve
from jobrunner.settings_sources import (
    ENV_PREFIX,
    Leaf,
    Tree,
    explain,
    gather,
    leaves,
    plain,
    secret_name,
)

_Value = TypeVar("_Value")
_KIND = re.compile(r"\w[\w.-]{0,99}")
_NO_HOME = Path("/nonexistent/jobrunner")


def _no_bool(value: Any) -> Any:
    # Pydantic would take `true` for one second.
    return str(value).lower() if isinstance(value, bool) else value


def _at_most(limit: float) -> AfterValidator:
    def check(value: float) -> float:
        if value > limit:
            raise ValueError(f"must be {limit:g} or less")
        return value

    return AfterValidator(check)


_Finite = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[_Finite, Field(gt=0), _at_most(SECONDS_MOST)]
Interval = Annotated[_Finite, Field(ge=INTERVAL_LEAST), _at_most(SECONDS_MOST)]
TimeoutSeconds = Annotated[_Finite, Field(ge=0.001), _at_most(2e6)]  # PostgreSQL: milliseconds in 32 bits


def _user_data_dir() -> Path:
    return paths.user_data_dir() or _NO_HOME


class JobTypeSettings(BaseModel):
    """What holds for all jobs of one type. Seconds; None: the general setting holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heartrate: Interval | None = None
    poll_interval: Interval | None = None


class ConnectionSettings(BaseModel):
    """One named way to an outside system. All keys beside `kind` are the backend's own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str

    @field_validator("kind")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _KIND.fullmatch(value):
            raise ValueError("must be the name of a kind, such as batch or airbyte")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """All keys beside `kind`."""
        return dict(self.model_extra or {})

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of one of the backend's own keys."""
        return self.options.get(key, default)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Show no secret, in no log and no traceback."""
        yield "kind", self.kind
        yield from ((key, mask_value(key, value)) for key, value in self.options.items())


class Settings(BaseSettings):
    """All settings of one process. Raises `SettingsError` with one sentence where one is wrong.

    `Settings(heartrate=1)` reads the environment and the files too; its arguments come before them.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: str | None = None
    listen_url: str | None = None
    data_dir: Path = Field(default_factory=_user_data_dir)
    heartrate: Interval = 5.0
    grace_multiplier: Annotated[_Finite, Field(gt=1), _at_most(1e6)] = 2.1
    host_grace_s: Seconds = 3600.0
    poll_interval: Interval | None = None
    prepare_threshold: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=2**31 - 1)] | None = 5
    postgres_options: bool = True
    statement_timeout_s: TimeoutSeconds = 30.0
    lock_timeout_s: TimeoutSeconds = 5.0
    call_timeout_s: TimeoutSeconds = 40.0
    connect_timeout_s: TimeoutSeconds = 10.0
    sqlite_busy_timeout_s: TimeoutSeconds = 30.0
    job_types: dict[str, JobTypeSettings] = Field(default_factory=dict)
    connections: dict[str, ConnectionSettings] = Field(default_factory=dict)

    _tree: Tree = PrivateAttr(default_factory=dict)

    def __init__(self, **overrides: Any) -> None:
        tree = gather(type(self), overrides)
        try:
            super().__init__(**plain(tree))
        except ValidationError as error:
            raise SettingsError(explain(error, tree, _known_names())) from None
        self._tree = tree

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic calls by these names)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the merged tree alone: `gather` has read all sources, and knows who said what."""
        return (init_settings,)

    @field_validator("database_url", "listen_url")
    @classmethod
    def _is_a_known_url(cls, value: str | None) -> str | None:
        if value is not None and not has_reference(value):
            DatabaseUrl.parse(value)
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        # A process that changes its directory later must not change its database.
        return paths.absolute(value)

    @field_validator("prepare_threshold", mode="before")
    @classmethod
    def _may_be_none(cls, value: Any) -> Any:
        # Neither TOML nor the environment has a word for None.
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator("connections", mode="before")
    @classmethod
    def _kind_from_name(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"kind": name.removesuffix("_default"), **table}
            if isinstance(table, Mapping) and name.endswith("_default")
            else table
            for name, table in value.items()
        }

    @property
    def is_embedded(self) -> bool:
        """Whether the database is the SQLite file in `data_dir`."""
        return self.database_url is None

    @property
    def database(self) -> DatabaseUrl:
        """Where the jobs are kept, with variables filled in.

        Raises `SettingsError` where a variable is missing, or where no directory of this user's can hold
        the embedded database.
        """
        if self.database_url is not None:
            return self._resolved_url("database_url", self.database_url)
        if not self._has_data_dir():
            where = "there is no home" if self.data_dir == _NO_HOME else f"{self.data_dir} cannot be made"
            raise SettingsError(
                f"This user has no directory for the database ({where}): set JOBRUNNER_DATA_DIR to a "
                "directory that you may write to, or JOBRUNNER_DATABASE_URL."
            )
        return DatabaseUrl.of_file(str(self.data_dir / "jobrunner.db"))

    @property
    def effective_database_url(self) -> str:
        """The database's URL for SQLAlchemy, with its variables filled in: do not show it."""
        return str(self.database)

    @property
    def listener(self) -> DatabaseUrl | None:
        """Where to LISTEN: `listen_url`, or the database itself; None on SQLite."""
        if self.listen_url is not None:
            return self._resolved_url("listen_url", self.listen_url)
        return self.database if self.database.dialect == "postgresql" else None

    @property
    def effective_listen_url(self) -> str | None:
        """The URL to LISTEN on: `listen_url`, or the database's own; None on SQLite. Do not show it."""
        listener = self.listener
        return None if listener is None else str(listener)

    @property
    def records_dir(self) -> Path:
        """The directory of the records of this user's local processes: in `data_dir`, where there is one.

        A user without a home has them in a private temporary directory. Raises `SettingsError` where there
        is none either.
        """
        # Made here, not only looked at: a superuser is told that every file system can be written to.
        if self._has_data_dir() and ("data_dir" in self.model_fields_set or paths.is_made(self.data_dir)):
            return self.data_dir / "processes"
        try:
            return paths.private_temporary() / "processes"
        except ValueError as error:
            raise SettingsError(
                f"This user has no directory for the records of local processes ({error}): set "
                "JOBRUNNER_DATA_DIR to a directory that you may write to."
            ) from None

    def heartrate_for(self, job_type: str) -> float:
        """Return the seconds between the beats of such a job."""
        own = _named(self.job_types, job_type)
        return own[1].heartrate if own and own[1].heartrate is not None else self.heartrate

    def poll_interval_for(self, job_type: str) -> float | None:
        """Return the seconds between two looks at such a job; None: the backend's own default."""
        own = _named(self.job_types, job_type)
        return own[1].poll_interval if own and own[1].poll_interval is not None else self.poll_interval

    def connection(self, name: str | None, kind: str) -> tuple[str, ConnectionSettings]:
        """Return the connection's name as it is configured, and its settings with variables filled in.

        None means `<kind>_default`, which need not be configured, whatever `kind` is. A connection of kind
        `armada-jobservice` serves where `armada` is asked for. Raises `SettingsError` where the named
        one is missing, is of another kind, or needs a variable that is not set.
        """
        wanted = name or f"{kind}_default"
        found = _named(self.connections, wanted)
        if found is None:
            if wanted == f"{kind}_default":
                # A class's word, and no setting's: one that makes its backend itself need not name a kind.
                return wanted, ConnectionSettings.model_construct(kind=kind)
            known = ", ".join(sorted(self.connections)) or "none"
            raise SettingsError(
                f'there is no connection "{wanted}" (configured: {known}): '
                f"name one of them or add [connections.{wanted}] to jobrunner.toml"
            )
        own_name, connection = found
        if connection.kind != kind and not connection.kind.startswith(f"{kind}-"):
            of_kind = sorted(other for other, settings in self.connections.items() if settings.kind == kind)
            raise SettingsError(
                f'connection "{own_name}" is of kind "{connection.kind}", not "{kind}": '
                f"name one of that kind (configured: {', '.join(of_kind) or 'none'})"
            )
        options = resolve(connection.options, f"connections.{own_name}")
        remember_secrets(options)
        return own_name, ConnectionSettings(kind=connection.kind, **options)

    def provenance(self) -> list[tuple[str, str, str]]:
        """Return (key, value as it may be shown, where it was set) for every setting, sorted by key."""
        found = {path: leaf for path, leaf in leaves(self._tree) if leaf.value != {}}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if not isinstance(value, dict) and (name,) not in found:
                found[name,] = Leaf(value, "default")
        return sorted(
            (
                ".".join(path),
                "not set" if leaf.value is None else mask_value(secret_name(path), leaf.value),
                leaf.source,
            )
            for path, leaf in found.items()
        )

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Show no secret, in no log and no traceback."""
        yield from ((key, value) for key, value, source in self.provenance() if source != "default")

    def _has_data_dir(self) -> bool:
        """Whether `data_dir` was set, or this user's home can hold it."""
        if "data_dir" in self.model_fields_set:
            return True
        return self.data_dir != _NO_HOME and paths.can_be_made(self.data_dir)

    def _resolved_url(self, key: str, value: str) -> DatabaseUrl:
        try:
            return DatabaseUrl.parse(resolve(value, key))
        except ValueError as error:
            raise SettingsError(f"{key} {error}: correct it, or the variable that it names") from None


_overrides: dict[str, Any] = {}
_cached: Settings | None = None


def get_settings() -> Settings:
    """Return the settings of this process, read once. Raises `SettingsError`."""
    global _cached  # noqa: PLW0603 (one cache for the process, emptied by `reset`)
    if _cached is None:
        _cached = Settings(**_overrides)
    return _cached


def configure(**overrides: Any) -> Settings:
    """Set settings in code, before every other source; call again to add more.

    Raises `SettingsError` for an unknown name or a wrong value, and then changes nothing.
    """
    global _cached, _overrides  # noqa: PLW0603 (see `get_settings`)
    merged = _overlaid(_overrides, overrides)
    _cached = Settings(**merged)
    _overrides = merged
    return _cached


def configured() -> dict[str, Any]:
    """Return what `configure` was told in this process: for a child that shall have the same settings."""
    return dict(_overrides)


def reset() -> None:
    """Forget what `configure` was told and what was read: for tests."""
    global _cached, _overrides
    _cached, _overrides = None, {}
    known_secrets.forget_all()


def _overlaid(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        given = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        below = merged.get(key)
        merged[key] = (
            _overlaid(below if isinstance(below, Mapping) else {}, given)
            if isinstance(given, Mapping)
            else given
        )
    return merged


def _named(table: Mapping[str, _Value], name: str) -> tuple[str, _Value] | None:
    """Find by name; failing that, by the name in any case, which is all the environment can say."""
    if name in table:
        return name, table[name]
    return next(((key, value) for key, value in table.items() if key.casefold() == name.casefold()), None)


def _known_names() -> dict[tuple[str, ...], frozenset[str]]:
    return {(): frozenset(Settings.model_fields), ("job_types",): frozenset(JobTypeSettings.model_fields)}
