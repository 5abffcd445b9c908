"""Files and folders that are there whole or not at all, also after a kill or a loss of power."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

DRAFT = re.compile(r".+\.tmp-[0-9a-f]{8}")


def draft_of(target: Path) -> Path:
    """A name beside the target for what is not finished; `clear_drafts` knows such names."""
    return target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")


def write(target: Path, contents: bytes) -> None:
    """Replace a file; a reader sees the old one or the new one. OSError leaves the old one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(target)
    try:
        draft.write_bytes(contents)
        commit(draft, target)
    except OSError:
        draft.unlink(missing_ok=True)  # where the disk is full it would keep the last of the room
        raise


def commit(draft: Path, target: Path) -> None:
    """Put a finished file or folder in its place: the contents reach the disk before the name does."""
    inside = sorted(draft.rglob("*"), reverse=True) if draft.is_dir() else []
    for path in (*inside, draft):
        fsync(path)
    old = None
    if target.is_dir():
        old = draft_of(target)
        os.rename(target, old)
    os.replace(draft, target)
    fsync(target.parent)
    if old is not None:
        shutil.rmtree(old)


def discard(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    gone = draft_of(folder)
    os.rename(folder, gone)
    shutil.rmtree(gone)


def clear_drafts(folder: Path) -> list[str]:
    """Remove what killed processes have left unfinished anywhere in a folder that nobody else writes; the names."""
    drafts = [path for path in sorted(folder.rglob("*.tmp-*")) if DRAFT.fullmatch(path.name)]
    for path in drafts:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # gone with its folder
    return [path.name for path in drafts]


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
