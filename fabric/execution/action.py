"""Makes of a step what an engine is sent: a Command in an input root, and the Action of both.

The step's script prints to standard output, and reports to standard error.  Afterwards DESTDIR
becomes a tar file: the directories of the API keep no owner, mode, hard link or FIFO.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fabric.building.engine import Step, Unsuitable
from fabric.execution.merkle import Tree, Trees, add, tree_of
from fabric.reapi.blobs import Digest
from fabric.reapi.protocol import remote_execution_pb2 as pb

#: Reports of `_WRAPPER`, beside those of the script.  No list of commands has such a name.
ENDED, PACKED, WEAK = ".ended", ".packed", ".weak"

#: Runs as `sh -c ... sh NAME`.  All paths are absolute: without a root of its own, an engine has
#: none of them.
_WRAPPER = f"""\
cd "/$1.build" || exit
sh "/$1.steps" --report 0>&2 2>&1
status=$?
echo "@ {ENDED} $status" >&2
if [ $status != 0 ]; then
    (umask 0277; : > "/$1.weak")  # root on a worker may write to it
    (: >> "/$1.weak") 2>/dev/null || echo "@ {WEAK} 0" >&2
    exit $status
fi
cd "/$1.inst" && tar -cf "/$1.tar" . && echo "@ {PACKED} 0" >&2
"""

#: Symlinks that lead to a program.
_HOPS = 40
#: Directories on which an engine mounts the kernel's file systems, and /tmp, with their modes.
_MOUNTED = {"dev": 0o755, "proc": 0o755, "tmp": 0o1777}


class Sent(NamedTuple):
    """An action, and all that it consists of."""

    action: Digest
    trees: tuple[Tree, ...]
    blobs: Mapping[Digest, bytes]
    output: str  # the path of the tar file


def action_of(
    step: Step,
    trees: Trees,
    properties: Mapping[str, str],
    seconds: float | None,
    check: Callable[[], None],
) -> Sent:
    """The action of a step, which may run for ``seconds``.  Unsuitable if there can be none."""
    if "/" in step.name or not step.name.isprintable():
        raise Unsuitable(f"{step.name!r} is no name of a directory")
    layers = [trees.of_layer(path, check) for path in step.layers] or [_empty()]
    root = trees.laid(layers)
    directories = ChainMap(*(dict(tree.directories) for tree in (root, *layers)))
    path = step.environment.get("PATH", "").split(":")
    for name in ("sh", "tar"):
        if not any(_is_program(f"{folder}/{name}", root.root, directories) for folder in path):
            raise Unsuitable(f"no chunk that it is built with brings `{name}`")
    source = tree_of(step.source, check) if step.source is not None else _empty()
    blobs: dict[Digest, bytes] = {
        Digest(sha256, len(data)): data for sha256, data in root.directories.items()
    }

    def blob(data: bytes) -> pb.Digest:
        digest = Digest.of(data)
        blobs[digest] = data
        return digest.message()

    top = pb.Directory.FromString(root.directories[root.root.sha256])
    script = step.script.encode("utf-8", "surrogateescape")
    folders = {node.name for node in top.directories}
    for name, mode in _MOUNTED.items():
        if name not in folders:
            folder = pb.Directory()
            folder.node_properties.unix_mode.value = mode
            _put(top, pb.DirectoryNode(name=name, digest=blob(_encoded(folder))))
    _put(top, pb.FileNode(name=f"{step.name}.steps", digest=blob(script)))
    _put(top, pb.DirectoryNode(name=f"{step.name}.build", digest=source.root.message()))
    _put(top, pb.DirectoryNode(name=f"{step.name}.inst", digest=blob(b"")))
    platform = pb.Platform(
        properties=[pb.Platform.Property(name=k, value=v) for k, v in sorted(properties.items())]
    )
    output = f"{step.name}.tar"
    command = pb.Command(
        arguments=["sh", "-c", _WRAPPER, "sh", step.name],
        environment_variables=[
            pb.Command.EnvironmentVariable(name=name, value=_utf8(value))
            for name, value in sorted(step.environment.items())
        ],
        output_paths=[output],
        platform=platform,
    )
    action = pb.Action(
        command_digest=blob(_encoded(command)),
        input_root_digest=blob(_encoded(top)),
        do_not_cache=True,
        platform=platform,
    )
    if seconds is not None:
        action.timeout.FromNanoseconds(int(seconds * 1e9))
    sent = blob(_encoded(action))
    return Sent(Digest.taken(sent), (*layers, source), blobs, output)


def _encoded(message: pb.Command | pb.Directory | pb.Action) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unsuitable(f"a variable is not UTF-8: {value!r}") from None
    return value


def _empty() -> Tree:
    made: dict[str, bytes] = {}
    return Tree(add(pb.Directory(), made), made)


def _put(directory: pb.Directory, node: pb.FileNode | pb.DirectoryNode) -> None:
    """Put a node into a directory, in place of another of its name."""
    for nodes in (directory.files, directory.directories, directory.symlinks):
        kept = [each for each in nodes if each.name != node.name]
        del nodes[:]
        nodes.extend(kept)
    nodes = directory.files if isinstance(node, pb.FileNode) else directory.directories
    nodes.append(node)
    nodes.sort(key=lambda each: each.name)


def _is_program(path: str, root: Digest, directories: Mapping[str, bytes]) -> bool:
    """Whether a path leads to a program, in the tree of ``root``."""
    hops = 0
    here = [root]
    pending = path.split("/")[::-1]
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = here[:-1] or [root]
            continue
        directory = pb.Directory.FromString(directories[here[-1].sha256])
        below = {each.name: each.digest for each in directory.directories}
        links = {each.name: each.target for each in directory.symlinks}
        if part in below:
            here.append(Digest.taken(below[part]))
        elif part in links and hops < _HOPS:
            hops += 1
            if links[part].startswith("/"):
                here = [root]
            pending += links[part].split("/")[::-1]
        else:
            files = {each.name for each in directory.files if each.is_executable}
            return part in files and not pending
    return False
