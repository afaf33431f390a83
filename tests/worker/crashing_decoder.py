"""The sandbox's process with a GIF decoder that reads unmapped memory, as a broken native library does."""

from __future__ import annotations

import ctypes
from typing import Any

from PIL import GifImagePlugin, Image

from maskfleet.worker.image.sandbox_process import main


class CrashingGif(GifImagePlugin.GifImageFile):
    def load(self) -> Any:  # as in Pillow
        ctypes.string_at(0)
        return super().load()


if __name__ == "__main__":
    Image.preinit()
    Image.register_open("GIF", CrashingGif)
    main()
