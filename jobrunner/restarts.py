"""Whether another boot was this machine's own: the proof that a host restarted.

A machine id alone proves nothing: clones of one image share it, and the job may live on a neighbour.
Only a record that was written under that boot, on a disk of this host, shows that the boot was here.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobrunner.bounded import Bounded
from jobrunner.errors import SettingsError
from jobrunner.settings import get_settings

_AGAIN_S = 60.0  # after which a boot without a record is looked for again: a disk may be mounted late
_SHARED = frozenset(
    [
        *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"),
    ]
)
_OCTAL = re.compile(r"\\([0-7]{3})")  # how the kernel writes a space in a path
_found: Bounded[str, float] = Bounded()
"""The boots by when they were looked for without success; infinity: there is a record."""


def is_boot_of_this_machine(host_id: str, record: str | None = None) -> bool:
    """Whether a start record with this host id is here, on a disk that no other host shares.

    `record`: the job's own record directory, where it is known; else those of this user are searched.
    """
    if record is not None and _is_proof(Path(record, "start"), host_id):
        return True
    looked_s = _found.get(host_id)
    if looked_s is None or time.monotonic() - looked_s > _AGAIN_S:
        is_here = any(_is_proof(path, host_id) for path in _records())
        _found[host_id] = looked_s = float("inf") if is_here else time.monotonic()
    return looked_s == float("inf")


def _records() -> Iterator[Path]:
    """Yield the start records of this user's processes, wherever this host keeps them."""
    with suppress(SettingsError):  # there is no place for any
        yield from get_settings().records_dir.glob("*/start")


def _is_proof(start: Path, host_id: str) -> bool:
    try:
        record = json.loads(start.read_bytes())
        return record["by"] == "wrapper" and record["host"] == host_id and is_on_own_disk(start)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_on_own_disk(path: Path) -> bool:
    """Whether a path is on a file system that only this host writes to, as far as the system shows."""
    if sys.platform != "linux":
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    place, best, kind = path.resolve(), -1, ""
    for line in mounts:
        mounted, _, rest = line.partition(" - ")
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), mounted.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return bool(kind) and kind not in _SHARED and not kind.startswith("fuse")
