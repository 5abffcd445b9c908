"""Verdicts on disk: one JSON file each, named by the hash of what was asked. Safe for several processes."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

KEPT_WHEN_FULL = 0.8  # share of the largest size that stays
STALE = 3600.0  # seconds after which a half-written file is one of a process that was killed


class VerdictCache:
    """folder: made where it is not there. megabytes: above that the verdicts least recently used are deleted.

    Raises OSError when the folder cannot be made.
    """

    def __init__(self, folder: str, megabytes: int):
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.largest = megabytes * 1024**2
        self.size: int | None = None  # as this process knows it; None: not looked at yet

    def get(self, key: str) -> dict[str, Any] | None:
        """The verdict, or None where there is none that can be read."""
        path = self.path(key)
        try:
            kept = json.loads(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(kept, dict) or kept.get("key") != key or not isinstance(kept.get("verdict"), dict):
            return None
        return kept["verdict"]

    def put(self, key: str, verdict: dict[str, Any]) -> None:
        """Keep a verdict: whole or not at all. A full disk costs a repeated question, not the verdict at hand."""
        path = self.path(key)
        written = json.dumps({"key": key, "verdict": verdict}).encode()
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(written)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            self.size = sum(size for _, size, _ in self.files()) if self.size is None else self.size + len(written)
            if self.size > self.largest:
                self.trim()

    def trim(self) -> None:
        """Delete the least recently used until the folder is well below its largest size."""
        files = sorted(self.files())
        self.size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self.size <= KEPT_WHEN_FULL * self.largest:
                break
            with contextlib.suppress(OSError):  # another process may be at it, too
                os.unlink(path)
            self.size -= size

    def files(self) -> list[tuple[float, int, str]]:
        """(time of last use, bytes, path) of every verdict; files that a killed process left half-written are deleted."""
        found = []
        for inner in self.folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(inner):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if entry.name.endswith(".json"):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif entry.name.endswith(".part") and status.st_mtime < time.time() - STALE:
                        os.unlink(entry.path)
        return found

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.json"
