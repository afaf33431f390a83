"""What ``maskfleet up`` says to people: a line for each part as it comes up, and then how to use the stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskfleet.data import DEMO_MODEL, DEMO_PHOTO


@dataclass(frozen=True, slots=True)
class Welcome:
    """A stack that is ready.

    photo_uris: what the ``s3_uri`` of a job may begin with.  s3_endpoint: empty for Amazon's.  own_s3: whether that is
    the stack's own.  program: how the user calls maskfleet.
    """

    api_url: str
    api_key: str
    photo_uris: tuple[str, ...]
    s3_endpoint: str
    own_s3: bool
    data: Path
    model: str
    program: str

    def text(self) -> str:
        """Return the address, the key, what to copy, and where the rest is."""
        lines = [
            "",
            "maskfleet is ready. Open it in a browser; this link holds the key:",
            "",
            f"  {self.api_url}/#key={self.api_key}",
            "",
            "Or copy these lines into another terminal:",
            "",
            f"  export MASKFLEET_API_URL={self.api_url}",
            f"  export MASKFLEET_API_KEY={self.api_key}",
            f"  {self.program} submit {DEMO_PHOTO} --out masks",
            "",
            f"  API      {self.api_url}, described at {self.api_url}/docs",
            f"  key      {self.api_key}",
        ]
        if self.photo_uris:
            keys = f", whose keys are in {self.data / 'keys.json'}" if self.own_s3 else ""
            where = f"the S3 at {self.s3_endpoint}{keys}" if self.s3_endpoint else "Amazon S3"
            lines.append(f"  photos   jobs may name those under {' '.join(self.photo_uris)} in {where}")
        lines += [
            f"  data     {self.data}, with the programs' logs in {self.data / 'logs'}",
            f"  webhooks are signed with the secret of `{self.program} webhook secret`",
        ]
        if self.model == str(DEMO_MODEL.resolve()):
            lines += [
                "",
                "The model is the bundled demo: small, trained on synthetic scenes, good for trying maskfleet out on",
                f"plain shapes, no good for photographs. For those: {self.program} up --model facebook/sam-vit-base",
            ]
        return "\n".join([*lines, "", "Ctrl-C stops it."])


def part_is_up(name: str, where: str, seconds: float) -> str:
    """Return the line for a part of the stack that has come up."""
    return f"  {name:<8} {where}  ({seconds:.1f} s)"
