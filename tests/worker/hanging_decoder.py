"""The sandbox's process with a GIF decoder that first creates the given file, then hangs in a native call."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from PIL import GifImagePlugin, Image

from maskfleet.worker.image.sandbox_process import main


class HangingGif(GifImagePlugin.GifImageFile):
    def load(self) -> Any:  # as in Pillow
        Path(sys.argv[1]).touch()
        while True:  # the call ends at a signal
            ctypes.CDLL(None).sleep(3600)


if __name__ == "__main__":
    Image.preinit()
    Image.register_open("GIF", HangingGif)
    main()
