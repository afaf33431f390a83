"""docs/browser.md: its server's and its page's code, run as written, with a whole stack."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from maskfleet.stack.process import StackLine

#: What the page does when it is opened; its parts that are not in the document.
OPEN = """
const image = await (await fetch(process.argv[2])).json();
const masks = await segment(process.argv[3], image, [153, 126]);
const other = {...image, upload_id: "upl_" + "0".repeat(32)};
const refused = await segment(process.argv[3], other, [1, 1]).catch((problem) => problem.code);
console.log(JSON.stringify({masks, refused}));
"""


def block(document: str, language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.M | re.S)
    return str(found)


@pytest.mark.skipif(shutil.which("node") is None, reason="the page's script needs Node.js 20 or newer")
def test_the_page_of_the_document_segments_at_a_click(
    running_stack: StackLine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (repository / "docs" / "browser.md").read_text()
    monkeypatch.setenv("MASKFLEET_API_URL", running_stack.api_url)
    monkeypatch.setenv("MASKFLEET_API_KEY", running_stack.api_key)
    names: dict[str, Callable[[bytes], dict[str, str]]] = {}
    exec(block(document, "python"), names)  # noqa: S102 - the document's own code
    photo = (repository / "examples" / "coins.png").read_bytes()

    class OwnServer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(names["open_image"](photo)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    script = tmp_path / "page.mjs"
    script.write_text(block(document, "js") + OPEN)
    shutil.copy(repository / "api" / "static" / "playground" / "maskfleet.js", tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), OwnServer)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        answer = subprocess.run(
            ["node", str(script), f"http://127.0.0.1:{server.server_port}/", running_stack.api_url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()

    assert answer.returncode == 0, answer.stderr
    shown = json.loads(answer.stdout)
    assert [mask["area"] > 0 for mask in shown["masks"]] == [True]
    assert shown["refused"] == "image_not_allowed"
