"""An mp4 of the first evaluation episode."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from parl_cli.errors import ConfigError, writing

EVEN = 2  # the codec wants even sides


class VideoRecorder:
    """Writes what env 0 renders of its first episode: a frame for each observation but the last. A context manager.

    Under same-step autoreset the frame of the last one is gone once the step is done.

    Args:
        vectorizer: one env made with `render_mode="rgb_array"`.
        path: the mp4.

    Raises:
        ConfigError: the extra `video` is missing, or the env renders nothing.
        WriteError: the disk is full or read-only.
    """

    def __init__(self, vectorizer: Any, path: Path) -> None:
        try:
            import imageio_ffmpeg
        except ImportError:
            raise ConfigError('video=true: imageio-ffmpeg is missing; pip install "parl-cli[video]"') from None
        self._ffmpeg = imageio_ffmpeg
        self.vectorizer = vectorizer
        self.path = path
        self._writer: Any = None

    def __enter__(self) -> VideoRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with writing(self.path):
                self._writer.close()

    def capture(self) -> None:
        """Add a frame, unless the first episode is over."""
        if int(self.vectorizer.episode_numbers[0]) > 0:
            return
        frame = self.vectorizer.call("render")[0]
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise ConfigError("video=true: this env renders no rgb_array frames; leave video out")
        height, width = (side // EVEN * EVEN for side in frame.shape[:2])
        fps = self.vectorizer.metadata.get("render_fps", 30)
        with writing(self.path):
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                size = (width, height)
                self._writer = self._ffmpeg.write_frames(str(self.path), size, fps=fps, macro_block_size=EVEN)
                self._writer.send(None)
            self._writer.send(np.ascontiguousarray(frame[:height, :width]))
