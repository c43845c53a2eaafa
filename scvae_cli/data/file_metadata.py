"""Copying of the owner, group, permissions and extended attributes of a file to the new file that replaces it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from scvae_cli.amounts import amount

# Extended attribute in which Linux stores the access rights of single users and groups (access control list, ACL).
_ACL = "system.posix_acl_access"


def keep_metadata(descriptor: int, of: Path) -> list[str]:
    """Copy the owner, permissions and attributes of the file `of` to an open file; return what could not be copied."""
    old = of.stat()
    lost = _keep_owner(descriptor, old)
    mode = stat.S_IMODE(old.st_mode)
    same_group = os.fstat(descriptor).st_gid == old.st_gid
    if not same_group:
        # The permissions of a group that could not be kept must not apply to another group.
        mode = mode & ~0o070 | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)
    lost += _keep_attributes(descriptor, of, with_acl=same_group)
    if stat.S_ISREG(old.st_mode) and old.st_nlink > 1:
        lost.append(
            f"its hard links ({amount(old.st_nlink - 1, 'other name keeps', 'other names keep')} the old content)"
        )
    return lost


def new_file_mode() -> int:
    """Return the permissions of a new file: reading and writing, unless a setting of the user (umask) forbids them."""
    # A process can read its umask only by setting another umask. The strictest umask is therefore set for a moment.
    umask = os.umask(0o777)
    os.umask(umask)
    return 0o666 & ~umask


def _keep_owner(descriptor: int, old: os.stat_result) -> list[str]:
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid):
        return []
    try:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    except OSError:
        lost = [f"owner {_name(old.st_uid, pwd.getpwuid)}"] if new.st_uid != old.st_uid else []
        try:
            os.fchown(descriptor, -1, old.st_gid)
        except OSError:
            lost.append(f"group {_name(old.st_gid, grp.getgrgid)}")
        return lost
    return []


def _keep_attributes(descriptor: int, of: Path, *, with_acl: bool) -> list[str]:
    if not hasattr(os, "listxattr"):  # os.listxattr does not exist on macOS
        return []
    try:
        names = os.listxattr(of)
    except OSError:  # the file system has no attributes
        return []
    lost = []
    for name in names:
        try:
            if name == _ACL and not with_acl:
                raise PermissionError
            value = os.getxattr(of, name)
            if not _has(descriptor, name, value):
                os.setxattr(descriptor, name, value)
        except OSError:
            lost.append("its ACL" if name == _ACL else f"extended attribute {name}")
    if _ACL not in names:  # an ACL that was inherited from the folder
        with contextlib.suppress(OSError):
            os.removexattr(descriptor, _ACL)
    return lost


def _has(descriptor: int, name: str, value: bytes) -> bool:
    try:
        return os.getxattr(descriptor, name) == value
    except OSError:
        return False


def _name(number: int, look_up: object) -> str:
    try:
        return str(look_up(number)[0])  # type: ignore[operator]  # getpwuid or getgrgid
    except KeyError:
        return str(number)
