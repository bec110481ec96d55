"""What a disk holds after a power cut: a file's contents as of its last fsync, a folder's names as of its last.

That is the least that POSIX promises. Real file systems often keep more.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """Records what is durable below a folder, from what a process does there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}  # by inode
        self.names: dict[int, dict[str, int]] = {}  # inode of each name, by the folder's inode
        self.syncs = 0
        self.ignored = lambda path: False
        self.on_sync = lambda: None

    def holds_all(self) -> None:
        """Whatever is there now is durable."""
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir():
                self._keep_names(path)
            else:
                self.contents[path.stat().st_ino] = path.read_bytes()

    def _keep_names(self, folder: Path) -> None:
        self.names[folder.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}

    def fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_relative_to(self.root) or self.ignored(path):
            return
        if path.is_dir():
            self._keep_names(path)
        else:
            self.contents[path.stat().st_ino] = path.read_bytes()
        self.syncs += 1
        self.on_sync()

    def after_a_cut(self, target: Path) -> Path:
        """Write what a power cut would leave now."""
        folders = {path.stat().st_ino for path in (self.root, *self.root.rglob("*")) if path.is_dir()}

        def restore(inode: int, to: Path) -> None:
            if inode in folders:
                to.mkdir(exist_ok=True)
                for name, inner in self.names.get(inode, {}).items():
                    restore(inner, to / name)
            else:
                to.write_bytes(self.contents.get(inode, b""))

        restore(self.root.stat().st_ino, target)
        return target


@contextlib.contextmanager
def recorded(root: Path, monkeypatch) -> Iterator[Disk]:
    """A recorder under everything that this process does below a folder, which is there and durable."""
    disk = Disk(root)
    usual = os.fsync

    def fsync(descriptor: int) -> None:
        usual(descriptor)
        disk.fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield disk
