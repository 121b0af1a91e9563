"""Writing checkpoints so that the one before is lost only to a whole one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the file and then renames; Lightning would copy onto it from another file system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        assert storage_options is None  # they are of remote file systems
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                refused = error.__context__  # torch tells where in the file it stood, in place of what the disk said
                if isinstance(refused, OSError):
                    raise OSError(refused.errno, refused.strerror, str(path)) from error
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
