"""What comes with the package to try it with: a small checkpoint and one photograph.

Both lie in models/ and examples/ of the repository; here are symlinks to them.
"""

from pathlib import Path

_HERE = Path(__file__).parent

#: A small SAM, trained on synthetic scenes: for demo and tests, not for work.
DEMO_MODEL = _HERE / "sam-demo"
#: A photograph of coins, 384×303 pixels.
DEMO_PHOTO = _HERE / "coins.png"
