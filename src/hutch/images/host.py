"""An image of the host itself: its programs, and of its configuration what programs need.

/usr, and where they are no links into it /bin, /sbin and the libraries, are shown read-only by the
runtime; nothing is copied. Files there keep their owners, who are nobody in a sandbox, so that
what only root may read on the host stays unread. Of /etc the image has a copy of what `_ETC`
names, and of that only what everybody may read: a list of what is needed cannot miss a secret.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

from hutch.models import ImageConfig

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER, _UID = "user", 1000
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "debian_version",
    "fonts", "gai.conf", "host.conf", "inputrc", "java-*", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "locale.*", "localtime", "login.defs", "lsb-release", "magic", "magic.mime",
    "mime.types", "nsswitch.conf", "os-release", "perl", "pki/tls/certs", "profile", "protocols",
    "python3*", "rpc", "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
    "vim", "xattr.conf",
)  # fmt: skip
_ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{_USER}:x:{_UID}:{_UID}::/home/{_USER}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": f"root:x:0:\ntty:x:5:\n{_USER}:x:{_UID}:\nnogroup:x:65534:\n",
}


def host_image(archive: Path, root: Path = Path("/")) -> ImageConfig:
    """Write the layer's tar archive, and return how programs run and what is shown of the host."""
    shown = ["/usr"]
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        _add_directory(tar, "usr", 0o755)
        for name in _TOP:
            path = root / name
            if path.is_symlink():
                tar.add(path, name, recursive=False)
            elif path.is_dir():
                _add_directory(tar, name, 0o755)
                shown.append(f"/{name}")
        for pattern in _ETC:
            for path in sorted((root / "etc").glob(pattern)):
                _add_readable(tar, path, root)
        for name, text in _ACCOUNTS.items():
            _add_file(tar, name, text.encode())
        _add_directory(tar, f"home/{_USER}", 0o755, owner=_UID)
    return ImageConfig(
        env={"PATH": _PATH, "LANG": "C.UTF-8"},
        workdir=f"/home/{_USER}",
        user=_USER,
        cmd=("/bin/sh",),
        host_paths=tuple(shown),
    )


def _add_directory(tar: tarfile.TarFile, name: str, mode: int, *, owner: int = 0) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, owner, owner
    tar.addfile(member)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.size = mode, len(content)
    tar.addfile(member, io.BytesIO(content))


def _add_readable(tar: tarfile.TarFile, path: Path, root: Path) -> None:
    """Add what everybody may read: files, links and directories, below directories likewise."""
    name = str(path.relative_to(root))
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(member)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
        _add_file(tar, name, path.read_bytes(), status.st_mode & 0o755)
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IROTH:
        _add_directory(tar, name, 0o755)
        for child in sorted(path.iterdir()):
            _add_readable(tar, child, root)
