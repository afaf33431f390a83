"""Make the asyncio client from the other one: ``make async-client``.

Every function that sends a request, waits, or calls one that does becomes a coroutine, and its calls are awaited; names
are those of the twins.  Only the transport is written twice, by hand.  test_async_client.py checks that the files are
those that this makes, and mypy that no ``await`` is missing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "maskfleet" / "client"
TWINS = CLIENT / "asynchronous"
MODULES = ("events", "download", "job", "client")

#: Names that are others in the twin.
RENAMED = {
    "Client": "AsyncClient",
    "Job": "AsyncJob",
    "Transport": "AsyncTransport",
    "Generator": "AsyncGenerator",
    "Iterator": "AsyncIterator",
    "closing": "aclosing",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
#: What waits in the transport, which is not read here.
OF_TRANSPORT = {"call", "put", "location", "close"}
#: Context managers of the transport: what they give arrives piece by piece.
ENTERED = {"chunks", "lines"}
#: What our own functions are called on; a name that belongs to one of them belongs to no other.
OURS = {"", "self", "self._client", "self._transport", "job"}
#: Functions that compute or read a file for so long that other tasks must go on: they get a thread.
IN_THREADS = {"source_of", "bytes_of", "digest_of"}
#: Methods that a notebook calls, which cannot wait.
LEFT_OUT = {"picture"}


def dotted(node: ast.expr) -> tuple[str, str]:
    """Return what a function is called on, and its name."""
    if isinstance(node, ast.Attribute):
        base, name = dotted(node.value)
        return f"{base}.{name}".strip("."), node.attr
    return "", node.id if isinstance(node, ast.Name) else ""


class Waiting:
    """The functions that wait, and of these the ones that yield, by name."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.names = set(OF_TRANSPORT)
        self.yielding: set[str] = set()
        functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        count = 0
        while count != len(self.names | self.yielding):
            count = len(self.names | self.yielding)
            for function in functions:
                if function.name not in LEFT_OUT and any(map(self.is_one, ast.walk(function))):
                    generates = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))
                    (self.yielding if generates else self.names).add(function.name)

    def is_one(self, node: ast.AST) -> bool:
        """Whether this is a call that waits."""
        if not isinstance(node, ast.Call):
            return False
        base, name = dotted(node.func)
        return (
            (base, name) == ("time", "sleep")
            or name in IN_THREADS
            or self.is_entered(node)
            or (base in OURS and name in self.names | self.yielding)
        )

    def is_entered(self, node: ast.AST) -> bool:
        """Whether this is a context manager whose value arrives piece by piece."""
        if not isinstance(node, ast.Call):
            return False
        base, name = dotted(node.func)
        return (base == "transport" and name in ENTERED) or (name == "closing" and self.arrives(node.args[0], set()))

    def arrives(self, node: ast.expr, streams: set[str]) -> bool:
        """Whether what is looped over arrives piece by piece.  streams: variables that hold such."""
        if isinstance(node, ast.IfExp):
            return self.arrives(node.body, streams)
        if isinstance(node, ast.Call):
            base, name = dotted(node.func)
            return base in OURS and name in self.yielding
        return isinstance(node, ast.Name) and node.id in streams


class Twin(ast.NodeTransformer):
    """Turns one module into its twin."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.streams: set[str] = set()

    def visit(self, node: ast.AST) -> ast.AST:
        """Change a node after its parts; decide by how it was."""
        change = getattr(self, f"change_{type(node).__name__}", None)
        decide = getattr(self, f"decide_{type(node).__name__}", None)
        decided = decide(node) if decide else None
        self.generic_visit(node)
        if change is None:
            return node
        changed: ast.AST = change(node, decided) if decide else change(node)
        return ast.copy_location(changed, node) if changed is not node else node

    def decide_Call(self, node: ast.Call) -> str:  # noqa: N802 - ast's names, as below
        base, name = dotted(node.func)
        if name in IN_THREADS:
            return "thread"
        if (base, name) == ("time", "sleep"):
            return "sleep"
        return "await" if base in OURS and name in self.waiting.names else ""

    def change_Call(self, node: ast.Call, how: str) -> ast.AST:  # noqa: N802
        if how == "thread":
            node = ast.Call(ast.parse("asyncio.to_thread", mode="eval").body, [node.func, *node.args], node.keywords)
        if how == "sleep":
            node.func = ast.parse("asyncio.sleep", mode="eval").body
        return ast.Await(node) if how else node

    def decide_FunctionDef(self, node: ast.FunctionDef) -> bool:  # noqa: N802
        self.streams = set()
        return node.name in self.waiting.names | self.waiting.yielding | {"__enter__", "__exit__"}

    def change_FunctionDef(self, node: ast.FunctionDef, waits: bool) -> ast.AST:  # noqa: N802
        node.name = RENAMED.get(node.name, node.name)
        return ast.AsyncFunctionDef(**vars(node)) if waits else node

    def change_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # noqa: N802
        node.name = RENAMED.get(node.name, node.name)
        node.body = [part for part in node.body if getattr(part, "name", "") not in LEFT_OUT]
        return node

    def decide_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        if self.waiting.arrives(node.value, self.streams):
            self.streams |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def change_Assign(self, node: ast.Assign, _: None) -> ast.AST:  # noqa: N802
        return node

    def decide_For(self, node: ast.For) -> bool:  # noqa: N802
        return self.waiting.arrives(node.iter, self.streams)

    def change_For(self, node: ast.For, arrives: bool) -> ast.AST:  # noqa: N802
        return ast.AsyncFor(**vars(node)) if arrives else node

    def decide_With(self, node: ast.With) -> bool:  # noqa: N802
        entered = [item.optional_vars for item in node.items if self.waiting.is_entered(item.context_expr)]
        self.streams |= {name.id for name in entered if isinstance(name, ast.Name)}
        return bool(entered)

    def change_With(self, node: ast.With, enters: bool) -> ast.AST:  # noqa: N802
        return ast.AsyncWith(**vars(node)) if enters else node

    def decide_Expr(self, node: ast.Expr) -> bool:  # noqa: N802
        return isinstance(node.value, ast.YieldFrom) and self.waiting.arrives(node.value.value, self.streams)

    def change_Expr(self, node: ast.Expr, arrives: bool) -> ast.AST:  # noqa: N802
        if not isinstance(node.value, ast.YieldFrom):
            return node
        body: list[ast.stmt] = [ast.Expr(ast.Yield(ast.Name("item", ast.Load())))]
        loop = ast.AsyncFor if arrives else ast.For
        return loop(ast.Name("item", ast.Store()), node.value.value, body, [])

    def change_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:  # noqa: N802
        base, _, module = (node.module or "").rpartition(".")
        if base == "maskfleet.client" and module in (*MODULES, "transport"):
            node.module = f"maskfleet.client.asynchronous.{module}"
        return node

    def change_Import(self, node: ast.Import) -> ast.AST:  # noqa: N802
        if node.names[0].name == "time":
            node.names = [ast.alias("asyncio"), *node.names]
        return node

    def change_alias(self, node: ast.alias) -> ast.AST:
        node.name = RENAMED.get(node.name, node.name)
        return node

    def change_Name(self, node: ast.Name) -> ast.AST:  # noqa: N802
        node.id = RENAMED.get(node.id, node.id)
        return node


def made(folder: Path = CLIENT) -> Iterator[tuple[str, str]]:
    """Yield each twin's file name and text, as ruff formats it."""
    trees = [ast.parse((folder / f"{name}.py").read_text()) for name in MODULES]
    waiting = Waiting(trees)
    for name, tree in zip(MODULES, trees, strict=True):
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        tree.body = tree.body[1:]
        text = ast.unparse(ast.fix_missing_locations(Twin(waiting).visit(tree)))
        source = f"For asyncio.  Made from ``maskfleet.client.{name}`` by ``make async-client``; change that."
        heading = f'"""{first}\n\n{source}\n"""'
        text = text.replace("in a ``with``", "in an ``async with``")
        yield f"{name}.py", formatted(f"{heading}\n\n{text}\n", TWINS / f"{name}.py")


def formatted(text: str, path: Path) -> str:
    for command in (["check", "--fix", "--quiet", "--select", "I,F401,UP,W"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(path), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for name, text in made():
        (TWINS / name).write_text(text)
