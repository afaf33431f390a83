"""The sandbox's process with a bitmap decoder that leaks memory."""

from __future__ import annotations

from typing import Any

from PIL import BmpImagePlugin, Image

from maskfleet.worker.image.sandbox_process import ELSE_BYTES, main

left_behind: list[bytearray] = []


class LeakingBmp(BmpImagePlugin.BmpImageFile):
    def load(self) -> Any:  # as in Pillow
        left_behind.append(bytearray(ELSE_BYTES // 3))
        return super().load()


if __name__ == "__main__":
    Image.preinit()
    Image.register_open("BMP", LeakingBmp)
    main()
