"""Hooks of mkdocs.yml: what the documents link to outside docs/ becomes pages, too, and no page needs another host.

In the repository a document may link to any file.  For the site, each file that is linked to is added under
``source/``: Markdown as it is, with its own links followed; any other text as a listing; a folder as the list of its
files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: A link's target and anchor, outside of code.  Images are links here, too.
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
#: The languages of listings, by the ends of files' names; others are shown as they are.
LANGUAGES = {
    ".py": "python",
    ".lua": "lua",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".sh": "bash",
    ".js": "js",
}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".svg", ".gif", ".ipynb"}
#: What is loaded from elsewhere, as opposed to linked to.
ELSEWHERE = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//")

#: The site's name of each document or file of the repository that has a page, by its path there.
_uris: dict[str, str] = {}
_paths: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> None:
    """Add the decisions to the navigation, in their order."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    config.nav = [
        *(config.nav or []),
        {"Decisions": ["decisions/index.md", *(f"decisions/{name}" for name in decisions)]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add pages for what the documents link to outside docs/."""
    _uris.clear()
    _paths.clear()
    for file in files:
        _name(f"docs/{file.src_uri}", file.src_uri)
    titles = [
        f"- [{(ROOT / path).read_text().partition(chr(10))[0].lstrip('# ')}]({posixpath.basename(path)})"
        for path in sorted(_uris)
        if path.startswith("docs/decisions/")
    ]
    index = "# Decisions\n\nWhy things are as they are, and what would prove them wrong.\n\n" + "\n".join(titles)
    files.append(File.generated(config, "decisions/index.md", content=index))
    _name("docs/decisions", "decisions/index.md")
    ahead = [path for path in _uris if path.endswith(".md")]
    while ahead:
        here = ahead.pop()
        for target, _ in LINK.findall(CODE.sub("", (ROOT / here).read_text())):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
            if path in _uris or not (ROOT / path).exists():  # what does not exist is reported when the page is made
                continue
            if (ROOT / path / "README.md").exists():
                _uris[path] = f"source/{path}/README.md"
                path = f"{path}/README.md"
                if path in _uris:
                    continue
            files.append(_file(path, config))
            if path.endswith(".md"):
                ahead.append(path)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to files outside docs/ to their pages."""
    here = _paths.get(page.file.src_uri)
    if here is None:
        return markdown
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: _link(found, here, page.file.src_uri), part) for part in parts[::2]]
    return "".join(parts)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError if a page loads something from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        if found := ELSEWHERE.search(path.read_text()):
            raise PluginError(f"{path} loads from another host: {found[0]}")
    for path in Path(config.site_dir).rglob("*.css"):
        if re.search(r"url\([\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", path.read_text()):
            raise PluginError(f"{path} loads from another host")


def _name(path: str, uri: str) -> None:
    _uris[path], _paths[uri] = uri, path


def _link(found: re.Match[str], here: str, uri: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
    if target not in _uris:
        return found[0]  # mkdocs reports it
    return posixpath.relpath(_uris[target], posixpath.dirname(uri) or ".") + (found[2] or "")


def _file(path: str, config: MkDocsConfig) -> File:
    """Return the page of a file or folder outside docs/, or the file itself if it is a picture."""
    place = ROOT / path
    if place.suffix in PICTURES:
        _name(path, f"source/{path}")
        return File.generated(config, _uris[path], abs_src_path=str(place), inclusion=InclusionLevel.NOT_IN_NAV)
    if place.suffix == ".md":
        _name(path, f"source/{path}")
        text = place.read_text()
    elif place.is_dir():
        _name(path, f"source/{path}/index.md")
        names = sorted(each.name for each in place.iterdir() if each.name != "__pycache__")
        text = f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names)
    else:
        _name(path, f"source/{path}.md")
        text = f"# {path}\n\n`````{LANGUAGES.get(place.suffix, 'text')}\n{place.read_text()}\n`````\n"
        _paths.pop(_uris[path])  # a listing has no links
    head = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n" if place.suffix != ".md" else ""
    return File.generated(config, _uris[path], content=head + text, inclusion=InclusionLevel.NOT_IN_NAV)
