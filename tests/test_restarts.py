"""Another boot of this machine id is this machine's own only where a record on its own disk shows it."""

import json
from pathlib import Path

import pytest

from jobrunner import identity, paths, restarts
from jobrunner.settings import configure, get_settings, reset

BEFORE = f"{identity.machine_id()}/an-earlier-boot/{identity.pid_namespace()}"


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(restarts, "_found", {})
    configure(data_dir=tmp_path)
    return tmp_path / "processes"


def write(record: Path, host: str, by: str = "wrapper") -> str:
    record.mkdir(parents=True)
    (record / "start").write_text(json.dumps({"by": by, "host": host, "at": ""}))
    return str(record)


def test_a_neighbour_with_a_cloned_machine_id_is_not_this_machine_restarted(records: Path) -> None:
    write(records / "mine", identity.host_id())
    write(records / "refused", BEFORE, by="refused")
    (records / "damaged").mkdir()
    (records / "damaged" / "start").write_text("[")
    assert not identity.can_serve(BEFORE)
    assert not identity.can_serve(BEFORE, str(records / "not-here"))


def test_a_record_of_that_boot_proves_the_restart(records: Path) -> None:
    write(records / "some", BEFORE)
    assert identity.can_serve(BEFORE)


def test_the_jobs_own_record_proves_it_wherever_it_is(tmp_path: Path) -> None:
    assert identity.can_serve(BEFORE, write(tmp_path / "elsewhere", BEFORE))


def test_a_record_on_a_disk_that_hosts_share_proves_nothing(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(records / "some", BEFORE)
    monkeypatch.setattr(restarts, "is_on_own_disk", lambda _path: False)
    assert not identity.can_serve(BEFORE)


def test_the_same_boot_in_another_namespace_is_elsewhere() -> None:
    machine, boot, _ = identity.host_id().split("/")
    assert not identity.can_serve(f"{machine}/{boot}/1")
    assert identity.can_serve(None)
    assert identity.can_serve(identity.host_id())


def test_a_user_without_a_home_has_the_proof_where_its_records_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "user_data_dir", lambda: None)
    monkeypatch.setattr(paths, "_TEMPORARY", (str(tmp_path),))
    reset()
    write(get_settings().records_dir / "some", BEFORE)
    assert identity.can_serve(BEFORE)


def test_a_user_who_has_no_place_for_records_has_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "user_data_dir", lambda: None)
    monkeypatch.setattr(paths, "_TEMPORARY", ())
    monkeypatch.delenv("TMPDIR", raising=False)
    reset()
    assert not identity.can_serve(BEFORE)


@pytest.mark.parametrize(("kind", "is_own"), [("ext4", True), ("nfs4", False), ("fuse.sshfs", False)])
def test_the_file_system_of_the_nearest_mount_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str, is_own: bool
) -> None:
    place = tmp_path / "a disk" / "processes"
    place.mkdir(parents=True)
    point = str(tmp_path / "a disk").replace(" ", "\\040")
    mounts = f"1 0 8:1 / / rw - tmpfs none rw\n2 1 8:2 / {point} rw shared:1 - {kind} /dev/x rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_options: mounts)
    assert restarts.is_on_own_disk(place) is is_own
