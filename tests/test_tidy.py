"""The rules of style that no linter knows: each walks the sources, and each is proved able to fail.

A wait that is bounded in a way the walk cannot see says so beside it, with the reason:

    await self._room.wait()  # bounded: close() sets it, and close has a limit of grace_s

The files that may catch a cancellation are in `CANCELLATION_ENDS_HERE`, with their reasons. That `__all__` is
sorted is ruff's RUF022.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "holdfast"

MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70  # without the docstring: nobody should save on words to keep a function short

CANCELLATION_ENDS_HERE = {
    "app/threads.py": "the worker thread's own edge: what ended it is said, and readiness sees that it is gone",
    "engine/executor.py": "the run's outer edge: only here a cancellation becomes a terminal event",
    "tools/process.py": "told again while its processes end, a call waits for them, and raises then",
    "tools/runner.py": "a tool's own process: what ends it there is the answer that the worker reads",
    "telemetry/facade.py": "a sink's own thread: whatever a tracer raises, SystemExit too, costs a record",
    "stores/sqlite/writer.py": "a thread of its own: no cancellation reaches it, and its death must be told",
}

BOUNDED = re.compile(r"#\s*bounded:\s*\S+\s+\S+")
BOUNDING_CONTEXTS = {"timeout", "timeout_at"}
WAITS = {"acquire", "communicate", "drain", "get", "join", "put", "wait", "wait_closed"}
BLOCKING_WAITS = {"acquire", "join", "wait"}
QUEUES = {"LifoQueue", "PriorityQueue", "Queue", "SimpleQueue"}
DEFAULT_POOL = {
    "anyio.to_thread.run_sync",
    "asyncio.to_thread",
    "starlette.concurrency.iterate_in_threadpool",
    "starlette.concurrency.run_in_threadpool",
}
CATCHES_CANCELLATION = {"BaseException", "asyncio.CancelledError", "asyncio.exceptions.CancelledError"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]


class Source:
    """A parsed module that knows the parent of each node and the full names of what it imported."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path  # relative to the package, as in "engine/executor.py"
        self.lines = text.splitlines()
        self.tree = ast.parse(text)
        self.nodes = list(ast.walk(self.tree))
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self._imported: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self._imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                self._imported |= {a.asname: a.name for a in node.names if a.asname}

    def calls(self) -> Iterator[ast.Call]:
        return (node for node in self.nodes if isinstance(node, ast.Call))

    def functions(self) -> Iterator[Function]:
        return (node for node in self.nodes if isinstance(node, Function))

    def name(self, node: ast.AST) -> str:
        """The dotted name that an expression stands for, as in `asyncio.wait_for`; empty if it has none."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute | ast.Subscript):  # Queue[int] is Queue
            parts += [node.attr] if isinstance(node, ast.Attribute) else []
            node = node.value
        if not isinstance(node, ast.Name):
            return ".".join(["", *reversed(parts)]) if parts else ""
        return ".".join([self._imported.get(node.id, node.id), *reversed(parts)])

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """From the parent up to the function that holds the node."""
        while (node := self.parents.get(node)) is not None and not isinstance(node, Function | ast.Lambda):
            yield node

    def nested(self, node: ast.AST) -> bool:
        """Whether a function holds the node."""
        while (node := self.parents.get(node)) is not None:
            if isinstance(node, Function):
                return True
        return False

    def inside_timeout(self, node: ast.AST) -> bool:
        for outer in self.ancestors(node):
            if isinstance(outer, ast.AsyncWith | ast.With):
                for item in outer.items:
                    call = item.context_expr
                    if isinstance(call, ast.Call) and last(self.name(call.func)) in BOUNDING_CONTEXTS:
                        return has_limit(call)
        return False

    def marked_bounded(self, node: ast.expr) -> bool:
        """A `# bounded: reason` on a line of the expression, or alone on the line above it."""
        own = self.lines[node.lineno - 1 : node.end_lineno]
        above = self.lines[node.lineno - 2].strip() if node.lineno > 1 else ""
        return any(BOUNDED.search(line) for line in own) or bool(BOUNDED.match(above))


def last(name: str) -> str:
    return name.rpartition(".")[2]


def has_limit(call: ast.Call) -> bool:
    """Whether any argument could be a limit: None and True are the ways to write that there is none."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(not (isinstance(v, ast.Constant) and (v.value is None or v.value is True)) for v in values)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_none(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def waits_have_limits(source: Source) -> Iterator[Finding]:
    """Every wait has a limit: a timeout around it, one among its arguments, or a helper of holdfast.aio."""
    for call in source.calls():
        name = source.name(call.func)
        parent = source.parents[call]
        awaited = isinstance(parent, ast.Await)
        if name == "asyncio.wait":
            unlimited = is_none(keyword(call, "timeout"))
        elif not isinstance(call.func, ast.Attribute) or name.startswith("asyncio."):
            unlimited = False
        elif awaited and call.func.attr == "put":
            unlimited = not call.keywords
        elif awaited:
            unlimited = call.func.attr in WAITS and not has_limit(call)
        else:  # in a thread; as an argument it is a coroutine for a helper that limits it
            handed_on = isinstance(parent, ast.Call | ast.keyword | ast.Starred | ast.List | ast.Tuple | ast.Set)
            of_queue = call.func.attr == "get" and "queue" in source.name(call.func.value).lower()
            unlimited = not handed_on and (call.func.attr in BLOCKING_WAITS or of_queue) and not has_limit(call)
        if unlimited and not source.inside_timeout(call) and not source.marked_bounded(call):
            yield (
                call.lineno,
                f"{ast.unparse(call)} waits without a limit; use holdfast.aio or asyncio.timeout",
            )


def queues_have_sizes(source: Source) -> Iterator[Finding]:
    """Every queue has a size: what is full pushes back, what is endless fills the memory."""
    for call in source.calls():
        if last(source.name(call.func)) in QUEUES:
            size = keyword(call, "maxsize") or (call.args[0] if call.args else None)
            endless = size is None or (isinstance(size, ast.Constant) and not (size.value or 0) > 0)
            if endless and not source.marked_bounded(call):
                yield call.lineno, f"{ast.unparse(call)} has no size; name a maxsize"
        factory = keyword(call, "default_factory")
        if factory is not None and last(source.name(factory)) in QUEUES:
            yield (
                call.lineno,
                f"{ast.unparse(call)} makes a queue without a size; use a lambda with a maxsize",
            )


def engine_never_uses_wait_for(source: Source) -> Iterator[Finding]:
    """wait_for waits for the task that it cancels: a 2 s bound took 5.95 s."""
    if source.path.startswith("engine/"):
        for node in source.nodes:
            if isinstance(node, ast.Attribute | ast.Name) and source.name(node) == "asyncio.wait_for":
                yield node.lineno, "asyncio.wait_for in the engine; use asyncio.wait or holdfast.aio"


def tasks_have_owners(source: Source) -> Iterator[Finding]:
    """A task that nobody holds may be collected while it runs, and its exception is seen by nobody."""
    if not source.path.startswith("aio/"):
        for call in source.calls():
            if last(source.name(call.func)) in {"create_task", "ensure_future"}:
                yield call.lineno, f"{ast.unparse(call.func)} outside holdfast.aio; spawn it with an Owner"


def threads_have_pools(source: Source) -> Iterator[Finding]:
    """The loop's default pool is shared with getaddrinfo: one blocked tool too many and nothing resolves."""
    for node in source.nodes:
        if isinstance(node, ast.Attribute | ast.Name) and source.name(node) in DEFAULT_POOL:
            yield node.lineno, f"{source.name(node)} uses the loop's default pool; use a pool with a size"
        elif isinstance(node, ast.Call) and last(source.name(node.func)) == "run_in_executor":
            pool = node.args[0] if node.args else keyword(node, "executor")
            if is_none(pool):
                yield node.lineno, "run_in_executor with the loop's default pool; use a pool with a size"


def cancellation_passes_through(source: Source) -> Iterator[Finding]:
    """A swallowed cancellation is a Stop that does not stop."""
    if source.path in CANCELLATION_ENDS_HERE:
        return
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {source.name(kind) if kind else "BaseException" for kind in caught}
            if names & CATCHES_CANCELLATION and not reraises(node):
                yield node.lineno, f"except {' or '.join(sorted(names))} does not re-raise on every path"
        elif isinstance(node, ast.Call) and last(source.name(node.func)) == "suppress":
            swallowed = {source.name(kind) for kind in node.args} & CATCHES_CANCELLATION
            yield from ((node.lineno, f"{ast.unparse(node)} swallows {name}") for name in swallowed)


def reraises(handler: ast.ExceptHandler) -> bool:
    """Whether each way through the handler ends in `raise`, and none leaves before."""
    return not leaves(handler) and always_raises(handler.body, handler.name)


def always_raises(body: list[ast.stmt], caught: str | None) -> bool:
    match body[-1]:
        case ast.Raise(exc=None):
            return True
        case ast.Raise(exc=ast.Name(id=name)):
            return name == caught
        case ast.If(body=yes, orelse=no):
            return bool(no) and always_raises(yes, caught) and always_raises(no, caught)
        case ast.Try(finalbody=final) if final and always_raises(final, caught):
            return True
        case ast.With(body=inner) | ast.AsyncWith(body=inner):
            return always_raises(inner, caught)
        case _:
            return False


def leaves(node: ast.AST) -> bool:
    """Whether a return, break or continue stands below, in no function of its own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return | ast.Break | ast.Continue):
            return True
        if not isinstance(child, Function | ast.Lambda | ast.For | ast.AsyncFor | ast.While) and leaves(child):
            return True
        if isinstance(child, ast.For | ast.AsyncFor | ast.While) and any(
            isinstance(inner, ast.Return) for inner in ast.walk(child)
        ):
            return True
    return False


def public_names_are_exact(source: Source) -> Iterator[Finding]:
    """`__all__` of a package is what its __init__ defines or takes from holdfast: no more, no less."""
    listed = next((node for node in source.tree.body if exported(node) is not None), None)
    if last(source.path.removesuffix(".py").replace("/", ".")) != "__init__" or listed is None:
        return
    names = exported(listed) or []
    lazy = any(isinstance(node, Function) and node.name == "__getattr__" for node in source.tree.body)
    bound = bound_names(source.tree.body, lazy=lazy)
    for name in sorted({n for n in bound if not n.startswith("_")} - set(names)):
        yield listed.lineno, f"{name} is public here and not in __all__; list it or begin its name with _"
    for name in sorted(set(names) - bound):
        yield listed.lineno, f"{name} is in __all__ and not defined here"
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield listed.lineno, f"{name} is in __all__ twice"


def exported(node: ast.stmt) -> list[str] | None:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        return list(ast.literal_eval(node.value))
    return None


def bound_names(body: list[ast.stmt], *, lazy: bool) -> set[str]:
    """What a package's __init__ makes its own; `lazy`: also what it declares for types only."""
    bound: set[str] = set()
    for node in body:
        match node:
            case ast.ImportFrom(module=module, level=level) if level or (module or "").split(".")[0] == "holdfast":
                bound |= {alias.asname or alias.name for alias in node.names}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.Assign(targets=targets):
                bound |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound.add(name)
            case ast.If(body=inner) if lazy:
                bound |= bound_names(inner, lazy=lazy)
            case _:
                pass
    return bound - {"__all__"}


def modules_are_short(source: Source) -> Iterator[Finding]:
    """A module that outgrows this is telling you that it has more than one responsibility."""
    if len(source.lines) > MODULE_LINES_MAX:
        yield (
            len(source.lines),
            f"{len(source.lines)} lines; {MODULE_LINES_MAX} is the most, split it by role",
        )


def functions_are_short(source: Source) -> Iterator[Finding]:
    """A function is read in one look."""
    for function in source.functions():
        lines = function.end_lineno - function.lineno + 1
        if ast.get_docstring(function) is not None:
            lines -= function.body[0].end_lineno - function.body[0].lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield function.lineno, f"{function.name} has {lines} lines; {FUNCTION_LINES_MAX} is the most"


def arguments_are_named(source: Source) -> Iterator[Finding]:
    """A public function that hands **kwargs on hides from its reader and from mypy what it takes."""
    for function in source.functions():
        taken = function.args.kwarg
        hidden = function.name.startswith("_") and function.name != "__init__"
        if taken is None or hidden or source.nested(function):
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if any(k.arg is None and source.name(k.value) == taken.arg for k in call.keywords):
                yield call.lineno, f"{function.name} hands **{taken.arg} on; name the arguments"


RULES: list[Callable[[Source], Iterator[Finding]]] = [
    waits_have_limits,
    queues_have_sizes,
    engine_never_uses_wait_for,
    tasks_have_owners,
    threads_have_pools,
    cancellation_passes_through,
    public_names_are_exact,
    modules_are_short,
    functions_are_short,
    arguments_are_named,
]

# Put together here, so that this file does not contain what it forbids.
PACKAGE_INDEXES = [
    ".".join(["files", "pythonhosted", "org"]),
    ".".join(["registry", "npmjs", "org"]),
    "/".join([".".join(["pypi", "org"]), "simple"]),
]
INDEX_OPTION = re.compile(r"(index[-_]url|find[-_]links)\s*[ =:]\s*\S*:" + "//", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm)/|/opt/(pypi|wheels)", re.MULTILINE)
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME"]) + r")\b")


def no_package_index(text: str) -> Iterator[Finding]:
    """A committed file that names a package index works on one machine only."""
    for number, line in enumerate(text.splitlines(), 1):
        if any(host in line for host in PACKAGE_INDEXES) or INDEX_OPTION.search(line):
            yield number, "the address of a package index; take it out, in every commit"


def no_machine_path(text: str) -> Iterator[Finding]:
    """An absolute path of the machine that wrote it exists nowhere else."""
    for match in MACHINE_PATH.finditer(text):
        yield text.count("\n", 0, match.end()) + 1, "an absolute path of one machine; make it relative"


def nothing_unfinished(text: str) -> Iterator[Finding]:
    """What is not done is in an issue, with an owner, not in a comment."""
    for match in UNFINISHED.finditer(text):
        yield text.count("\n", 0, match.end()) + 1, f"{match[1]}: do it now, or file it"


TEXT_RULES: list[Callable[[str], Iterator[Finding]]] = [no_package_index, no_machine_path, nothing_unfinished]


@cache
def modules() -> list[Source]:
    return [
        Source(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


@cache
def committed_texts() -> dict[str, str]:
    """Every file that git tracks, else (an unpacked release) every file that is not hidden."""
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=5, check=False)
        names = [name for name in listing.stdout.decode().split("\0") if name]
    except FileNotFoundError:
        names = []
    if not names:
        inside = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [str(path) for path in inside if not any(part.startswith(".") for part in path.parts)]
    paths = {name: ROOT / name for name in names}
    return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in paths.items() if path.is_file()}


def by_name(rule: Callable[..., object]) -> str:
    return rule.__name__


@pytest.mark.timeout(60)  # the first parses all modules
@pytest.mark.parametrize("rule", RULES, ids=by_name)
def test_sources_keep_the_rule(rule: Callable[[Source], Iterator[Finding]]) -> None:
    """A rule that only people remember is broken within a month."""
    found = [f"src/holdfast/{s.path}:{line}: {says}" for s in modules() for line, says in rule(s)]
    assert not found, "\n".join(["", rule.__doc__ or "", *found])


@pytest.mark.parametrize("rule", TEXT_RULES, ids=by_name)
def test_committed_files_keep_the_rule(rule: Callable[[str], Iterator[Finding]]) -> None:
    """What is committed is read and run on other machines than this one."""
    found = [f"{name}:{line}: {says}" for name, text in committed_texts().items() for line, says in rule(text)]
    assert not found, "\n".join(["", rule.__doc__ or "", *found])


def test_the_rules_see_the_sources() -> None:
    """A walk over an empty list would keep every rule."""
    assert "__init__.py" in {source.path for source in modules()}
    assert "pyproject.toml" in committed_texts()


def test_changelog_has_a_place_for_the_next_note() -> None:
    """A change that users see is told to them, so there is always a section to write it into."""
    assert re.search(r"^## \[?Unreleased\]?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


# What each rule refuses and what it lets pass: (rule, path, text). The text stands in an `async def`, unless
# its first line is "#".
BAD = [
    (waits_have_limits, "x.py", "item = await queue.get()"),
    (waits_have_limits, "x.py", "await self.inbox.put(item)"),
    (waits_have_limits, "x.py", "await event.wait()"),
    (waits_have_limits, "x.py", "await event.wait()  # bounded:"),
    (waits_have_limits, "x.py", "await lock.acquire()"),
    (waits_have_limits, "x.py", "await process.communicate()"),
    (waits_have_limits, "x.py", "await asyncio.wait(tasks)"),
    (waits_have_limits, "x.py", "await asyncio.wait(tasks, timeout=None)"),
    (waits_have_limits, "x.py", "async with asyncio.timeout(None):\n    await event.wait()"),
    (
        waits_have_limits,
        "x.py",
        "async with asyncio.timeout(1):\n    async def later():\n        await event.wait()",
    ),
    (waits_have_limits, "x.py", "thread.join()"),
    (waits_have_limits, "x.py", "event.wait(None)"),
    (waits_have_limits, "x.py", "item = self._queue.get(True)"),
    (queues_have_sizes, "x.py", "asyncio.Queue()"),
    (queues_have_sizes, "x.py", "queue.Queue(maxsize=0)"),
    (queues_have_sizes, "x.py", "SimpleQueue()"),
    (queues_have_sizes, "x.py", "asyncio.Queue[bytes]()"),
    (queues_have_sizes, "x.py", "inbox: Queue = field(default_factory=Queue)"),
    (engine_never_uses_wait_for, "engine/x.py", "await asyncio.wait_for(work, 2)"),
    (
        engine_never_uses_wait_for,
        "engine/x.py",
        "from asyncio import wait_for as bound\nawait bound(work, 2)",
    ),
    (tasks_have_owners, "engine/x.py", "asyncio.create_task(work())"),
    (tasks_have_owners, "engine/x.py", "asyncio.get_running_loop().create_task(work())"),
    (tasks_have_owners, "gateway/x.py", "from asyncio import ensure_future\nensure_future(work())"),
    (threads_have_pools, "x.py", "await loop.run_in_executor(None, work)"),
    (threads_have_pools, "x.py", "await asyncio.to_thread(work)"),
    (threads_have_pools, "x.py", "from anyio import to_thread\nawait to_thread.run_sync(work)"),
    (cancellation_passes_through, "x.py", "try:\n    pass\nexcept BaseException:\n    log()"),
    (cancellation_passes_through, "x.py", "try:\n    pass\nexcept:\n    return"),
    (cancellation_passes_through, "x.py", "try:\n    pass\nexcept asyncio.CancelledError:\n    pass"),
    (
        cancellation_passes_through,
        "x.py",
        "try:\n    pass\nexcept (ValueError, asyncio.CancelledError):\n    pass",
    ),
    (
        cancellation_passes_through,
        "x.py",
        "try:\n    pass\nexcept BaseException as e:\n    raise Other() from e",
    ),
    (
        cancellation_passes_through,
        "x.py",
        "try:\n    pass\nexcept BaseException:\n    if a:\n        return\n    raise",
    ),
    (cancellation_passes_through, "x.py", "try:\n    pass\nexcept BaseException:\n    if a:\n        raise"),
    (
        cancellation_passes_through,
        "x.py",
        "with contextlib.suppress(asyncio.CancelledError):\n    await task",
    ),
    (public_names_are_exact, "a/__init__.py", '#\nfrom holdfast.a.b import C, D\n__all__ = ["C"]'),
    (public_names_are_exact, "a/__init__.py", '#\nfrom holdfast.a.b import C\n__all__ = ["C", "E"]'),
    (public_names_are_exact, "a/__init__.py", '#\nclass C: ...\n__all__ = ["C", "C"]'),
    (modules_are_short, "x.py", "#\n" * (MODULE_LINES_MAX + 1)),
    (functions_are_short, "x.py", "#\ndef f():\n" + "    a = 1\n" * FUNCTION_LINES_MAX),
    (arguments_are_named, "x.py", "#\ndef f(a, **kwargs):\n    return g(a, **kwargs)"),
    (
        arguments_are_named,
        "x.py",
        "#\nclass C:\n    def __init__(self, **options):\n        super().__init__(**options)",
    ),
]
GOOD = [
    (waits_have_limits, "x.py", "async with asyncio.timeout(2):\n    await queue.get()"),
    (waits_have_limits, "x.py", "await event.wait()  # bounded: close() sets it"),
    (waits_have_limits, "x.py", "# bounded: close() sets it\nawait event.wait()"),
    (waits_have_limits, "x.py", "await wait_event(event, 2)"),
    (waits_have_limits, "x.py", "await bounded(queue.get(), 2)"),
    (waits_have_limits, "x.py", "await asyncio.wait([event.wait()], timeout=2)"),
    (waits_have_limits, "x.py", "await wake.wait(timeout_s)"),
    (waits_have_limits, "x.py", "await client.get(url)"),
    (waits_have_limits, "x.py", "await client.put(url, json=body)"),
    (waits_have_limits, "x.py", 'thread.join(2)\n", ".join(names)\ncurrent.get()\nevent.wait(timeout=1)'),
    (queues_have_sizes, "x.py", "asyncio.Queue(maxsize=64)\nQueue(settings.inbox_max)"),
    (queues_have_sizes, "x.py", "Queue()  # bounded: one item for each worker"),
    (engine_never_uses_wait_for, "gateway/x.py", "await asyncio.wait_for(work, 2)"),
    (engine_never_uses_wait_for, "engine/x.py", "await condition.wait_for(ready)"),
    (tasks_have_owners, "aio/tasks.py", "asyncio.create_task(work())"),
    (tasks_have_owners, "engine/x.py", 'owner.spawn(work(), "tail")'),
    (threads_have_pools, "x.py", "await loop.run_in_executor(self._pool, work)"),
    (cancellation_passes_through, "engine/executor.py", "try:\n    pass\nexcept BaseException:\n    log()"),
    (cancellation_passes_through, "x.py", "try:\n    pass\nexcept Exception:\n    log()"),
    (
        cancellation_passes_through,
        "x.py",
        "try:\n    pass\nexcept BaseException as e:\n    log()\n    raise e",
    ),
    (
        cancellation_passes_through,
        "x.py",
        "try:\n    pass\nexcept BaseException:\n    for a in b:\n        continue\n    raise",
    ),
    (cancellation_passes_through, "x.py", "with contextlib.suppress(ValueError):\n    work()"),
    (
        public_names_are_exact,
        "a/__init__.py",
        '#\nimport os\nfrom holdfast.a.b import C\n__all__ = ["C"]\n_d = 1',
    ),
    (public_names_are_exact, "a/b.py", "#\n__all__ = []\nC = 1"),
    (modules_are_short, "x.py", "#\n" * MODULE_LINES_MAX),
    (
        functions_are_short,
        "x.py",
        '#\ndef f():\n    """' + "\n" * 30 + '"""\n' + "    a = 1\n" * (FUNCTION_LINES_MAX - 1),
    ),
    (arguments_are_named, "x.py", "#\ndef f(**fields):\n    return dict(fields)"),
    (arguments_are_named, "x.py", "#\ndef _f(**kwargs):\n    g(**kwargs)"),
    (arguments_are_named, "x.py", "#\ndef f():\n    def wrapper(**kwargs):\n        g(**kwargs)"),
]
BAD_TEXT = [
    (no_package_index, "https://" + PACKAGE_INDEXES[0] + "/packages/x.whl"),
    (no_package_index, "--index-url=https:" + "//mirror.example/simple"),
    (no_machine_path, "see " + "/".join(["", "work", "main", "x.py"])),
    (no_machine_path, "/".join(["", "farm", "x"])),
    (nothing_unfinished, "# " + "TO" + "DO: later"),
    (nothing_unfinished, "FIX" + "ME"),
]
GOOD_TEXT = [
    (no_package_index, "https:" + "//pypi.org/project/holdfast"),
    (no_machine_path, "tests/work/x and ./work/x and framework/y"),
    (nothing_unfinished, "METHODOLOGY"),
]


def findings(rule: Callable[[Source], Iterator[Finding]], path: str, text: str) -> list[Finding]:
    if not text.startswith("#\n"):
        text = "async def f():\n" + "\n".join("    " + line for line in text.splitlines())
    return list(rule(Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_rule_refuses(rule: Callable[[Source], Iterator[Finding]], path: str, text: str) -> None:
    """A rule that cannot fail guards nothing."""
    assert findings(rule, path, text)


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_rule_lets_pass(rule: Callable[[Source], Iterator[Finding]], path: str, text: str) -> None:
    """A rule that fires on good code is soon switched off."""
    assert not findings(rule, path, text)


@pytest.mark.parametrize(("rule", "text"), BAD_TEXT)
def test_text_rule_refuses(rule: Callable[[str], Iterator[Finding]], text: str) -> None:
    """A rule that cannot fail guards nothing."""
    assert list(rule(text))


@pytest.mark.parametrize(("rule", "text"), GOOD_TEXT)
def test_text_rule_lets_pass(rule: Callable[[str], Iterator[Finding]], text: str) -> None:
    """A rule that fires on good text is soon switched off."""
    assert not list(rule(text))


def test_every_rule_is_proved_both_ways() -> None:
    """A new rule comes with a text that it refuses and one that it lets pass."""
    assert {rule for rule, _, _ in BAD} == {rule for rule, _, _ in GOOD} == set(RULES)
    assert {rule for rule, _ in BAD_TEXT} == {rule for rule, _ in GOOD_TEXT} == set(TEXT_RULES)
