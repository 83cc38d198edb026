"""Reading many files out of a folder or a tar archive, one at a time and safely.

Nothing is unpacked to disk, so that no name in an archive can do harm; links are not
followed; what is damaged or cut off is an error and not the end.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from ch02.cli import InputError

MAX_BYTES = 20_000_000  # of one file; the longest books have about 10 MB
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
DAMAGED = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


def read_raw(source):
    """Yield (name, bytes or the reason why there are none, bytes of source read).

    source: a folder, of which all files are read, or a tar archive, compressed or not.
    Raises InputError if the archive is damaged.
    """
    if source.is_dir():
        done = 0
        for file in files_below(source):
            try:
                size = file.stat().st_size
                raw = too_large(size) or file.read_bytes()
            except OSError as error:
                size, raw = 0, f"cannot be read: {error.strerror}"
            done += size
            yield label(file.relative_to(source).as_posix()), raw, done
        return
    try:
        with open(source, "rb") as file:
            # tarfile could decompress, too, but does not compare gzip's checksum
            magic = file.peek(6)
            opener = [OPENERS[start] for start in OPENERS if magic.startswith(start)]
            stream = opener[0](file) if opener else file
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictInfo) as archive:
                for member in archive:
                    if member.isreg():
                        raw = too_large(member.size)
                        raw = raw or archive.extractfile(member).read()
                        yield label(member.name), raw, file.tell()
                    elif not member.isdir():
                        yield label(member.name), "link or special file", file.tell()
            while stream.read(2**20):
                pass  # the checksum comes last
    except DAMAGED as error:
        raise InputError(
            f"--raw: {source} is neither a folder nor an intact tar archive ({error})"
        ) from None


class StrictInfo(tarfile.TarInfo):
    """A member of an archive; where tarfile takes damage for the end, an error."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):
                raise  # the end
            raise tarfile.ReadError(str(error)) from None


def files_below(folder):
    """All files of a folder and its subfolders, without links, in a fixed order."""

    def fail(error):
        raise error  # else a folder that cannot be read would be passed over

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.is_file() and not file.is_symlink():
                yield file


def too_large(size):
    """The reason for leaving out a file of this size, or None."""
    return f"larger than {MAX_BYTES // 10**6} MB" if size > MAX_BYTES else None


def label(name):
    """A file's name as the manifest shows it: relative, and text in any case."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return "/".join(parts).encode("utf-8", "replace").decode()
