"""What ``maskfleet up`` says once it is ready.  What a real one says: test_up.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from maskfleet.data import DEMO_MODEL
from maskfleet.stack.welcome import Welcome

OWN = Welcome(
    api_url="http://127.0.0.1:8001",
    api_key="mf_1",
    photo_uris=("s3://photos/…",),
    s3_endpoint="http://127.0.0.1:8333",
    own_s3=True,
    data=Path("/home/bee/.maskfleet"),
    model=str(DEMO_MODEL.resolve()),
    program="maskfleet",
)


def test_three_lines_can_be_copied_as_they_are() -> None:
    lines = OWN.text().splitlines()

    first = lines.index("  export MASKFLEET_API_URL=http://127.0.0.1:8001")
    assert lines[first + 1] == "  export MASKFLEET_API_KEY=mf_1"
    assert lines[first + 2].startswith("  maskfleet submit /")
    assert lines[first + 2].endswith("/coins.png --out masks")


def test_a_real_model_is_not_warned_of() -> None:
    assert "no good for photographs" in OWN.text()
    assert "no good for photographs" not in replace(OWN, model="facebook/sam-vit-base").text()


def test_a_store_of_somebody_elses_is_named_without_the_stacks_keys() -> None:
    given = replace(OWN, own_s3=False).text()
    amazons = replace(OWN, own_s3=False, s3_endpoint="").text()

    assert "s3://photos/… in the S3 at http://127.0.0.1:8333\n" in given
    assert "s3://photos/… in Amazon S3\n" in amazons
    assert "  photos" not in replace(OWN, photo_uris=()).text()
