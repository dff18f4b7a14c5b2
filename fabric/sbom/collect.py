"""Makes the bill of materials of a system from its graph, its lorries, and facts about its build.

Components of the image are those of which an artifact is in it.  What only built them is there,
too, and marked: neither is a tool a part of the product, nor is it forgotten.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from fabric import bounds
from fabric.definitions.graph import Graph, Step
from fabric.errors import FabricError, suggest
from fabric.sbom import identifiers, licenses
from fabric.sbom.bill import (
    DEBIAN,
    UBUNTU,
    Archive,
    Bill,
    Component,
    Download,
    ImageFile,
    Party,
    Patch,
)
from fabric.trove.sources.git import SHA
from fabric.trove.sources.lock_files import Locked
from fabric.trove.sources.lorries import Lorries, Lorry
from fabric.trove.sources.lorry_fields import last_part
from fabric.trove.sources.lorry_parts import Component as LorryPart


class PackageFact(msgspec.Struct, frozen=True):
    """What a package file says of itself."""

    inside: bool = True  # whether a file of it is in the image
    sha512: str = ""
    license: str = ""
    license_files: tuple[str, ...] = ()
    source: tuple[str, str] = ("", "")  # name and version of the Debian source package
    locked: tuple[str, str, str] = ("", "", "")  # name, version and architecture, as in the lock


class ChunkFact(msgspec.Struct, frozen=True):
    """The facts about a built chunk."""

    archives: tuple[Archive, ...] = ()  # those of its artifacts in the image
    license: str = ""
    license_files: tuple[str, ...] = ()
    packages: Mapping[str, PackageFact] = {}  # SHA-256 of a package file -> facts


class Built(msgspec.Struct, frozen=True):
    """The facts about a built system."""

    key: str
    archive: Archive | None
    commits: Mapping[str, tuple[str, str]]  # id of a chunk -> commit and tree of its source
    edited: frozenset[str]  # ids of chunks that are built from a user's work tree
    chunks: Mapping[str, ChunkFact]  # by id
    in_image: frozenset[str]  # ids of chunks of which a file is in the image
    files: tuple[ImageFile, ...] = ()  # with the ids of their chunks


def collect(
    graph: Graph,
    lorries: Lorries,
    *,
    tool: str,
    created: int = 0,
    author: Party | None = None,
    built: Built | None = None,
) -> Bill:
    """The bill of a system.  Without ``built``: what its definitions say.

    FabricError past a bound, or if a package URL of a lorry is none.
    """
    chunks = [step for step in graph.steps if step.kind == "chunk"]
    refs = _refs(chunks)
    needs = _needs(chunks)
    found: list[Component] = []
    for step in chunks:
        lorry = _lorry(lorries, step)
        fact = built.chunks.get(step.id, ChunkFact()) if built else ChunkFact()
        in_image = step.id in built.in_image if built else step.in_system
        chunk = _chunk(step, refs[step.id], lorry, fact, built, author, in_image=in_image)
        chunk = msgspec.structs.replace(
            chunk, needs=tuple(sorted(refs[one] for one in needs[step.id]))
        )
        inside = list(inside_of(chunk, lorry, fact)) if lorry is not None else []
        if lorry is not None and lorry.is_set and not chunk.remarks:
            taken = (one.concluded_license for one in inside if one.in_image == chunk.in_image)
            chunk = msgspec.structs.replace(chunk, found_license=licenses.together(taken))
        found += [chunk, *inside]
        if len(found) > bounds.SBOM_COMPONENTS:
            raise FabricError(
                f"{graph.path}: its SBOM would have more than {bounds.SBOM_COMPONENTS:,}"
                " components, the limit: lock files are too long"
            )
    bill = Bill(
        system=graph.system,
        arch=graph.arch,
        description=graph.root.description.strip(),
        version=built.key[:12] if built else "",
        key=built.key if built else "",
        created=created,
        tool=tool,
        author=author,
        archive=built.archive if built else None,
        license=licenses.together(one.concluded_license for one in found if one.in_image),
        components=tuple(sorted(found, key=lambda one: one.ref)),
        complete=built is not None,
        files=tuple(
            msgspec.structs.replace(one, chunk=refs[one.chunk]) if one.chunk else one
            for one in (built.files if built else ())
        ),
    )
    return bill if built else msgspec.structs.replace(bill, version=f"planned-{bill.digest[:12]}")


def _refs(chunks: Iterable[Step]) -> dict[str, str]:
    """A short name for each chunk by id; two chunks of one name get different ones."""
    chunks = list(chunks)
    count = Counter(step.name for step in chunks)
    return {
        step.id: step.name
        if count[step.name] == 1
        else f"{step.name}+{hashlib.sha256(step.id.encode()).hexdigest()[:8]}"
        for step in chunks
    }


def _needs(chunks: Iterable[Step]) -> dict[str, set[str]]:
    """The chunks that each chunk is built with, without those that these were built with."""
    staged = {step.id: frozenset(step.staged) for step in chunks}
    return {id: set(mine).difference(*(staged[one] for one in mine)) for id, mine in staged.items()}


def _lorry(lorries: Lorries, step: Step) -> Lorry | None:
    """The lorry that brings the source of a chunk, at the ref that the chunk names."""
    lorry = lorries.get(step.repo)
    if lorry is None or lorry.type == "git" or lorry.brings(step.ref):
        return lorry
    return None


def _chunk(
    step: Step,
    ref: str,
    lorry: Lorry | None,
    fact: ChunkFact,
    built: Built | None,
    author: Party | None,
    *,
    in_image: bool,
) -> Component:
    commit, tree = built.commits.get(step.id, ("", "")) if built else ("", "")
    made = Component(
        ref=ref,
        kind="chunk",
        name=step.name,
        version=step.unpetrify_ref or step.ref,
        in_image=in_image,
        archives=fact.archives,
        found_license=fact.license,
        license_files=fact.license_files,
    )
    replace = msgspec.structs.replace
    if built and step.id in built.edited:
        remark = "It is built from a work tree that differs from the source of the definitions."
        return replace(made, supplier=author, remarks=(remark,))
    if lorry is None or lorry.type == "git":
        url = lorry.url if lorry else step.repo
        return of_repository(made, step.ref, url, commit, lorry, author)
    remarks: tuple[str, ...] = ()
    if tree and lorry.recorded_tree and tree != lorry.recorded_tree:
        remarks = (f"Its source is not that of {lorry.where}, but the git tree {tree}.",)
        return replace(made, remarks=remarks)
    return of_lorry(made, lorry)


def of_repository(
    made: Component,
    ref: str,
    url: str,
    commit: str,
    lorry: Lorry | None,
    author: Party | None,
) -> Component:
    """A chunk from the ``ref`` of a git repository; ``commit`` may be ""."""
    commit = commit or (ref if SHA.fullmatch(ref) else "")
    shown = identifiers.public_url(url)
    own = lorry is not None and lorry.is_own
    return msgspec.structs.replace(
        made,
        version=(commit[:12] if ref == "HEAD" else "") or made.version,
        purl=_purl(lorry, made.version)
        or identifiers.repository(made.name, made.version, shown, commit),
        cpe=identifiers.cpe(lorry.cpe, made.version) if lorry and lorry.cpe else "",
        supplier=(Party.parse(lorry.supplier) if lorry else None) or (author if own else None),
        license=lorry.license if lorry else "",
        repository=shown,
        commit=commit,
        vex=lorry.vex if lorry else (),
    )


def of_lorry(made: Component, lorry: Lorry) -> Component:
    """A component whose source a lorry pins."""
    name = made.name if lorry.is_set else last_part(lorry.name)
    version, sha256 = lorry.version, lorry.sha256 or ""
    url = identifiers.public_url(lorry.url) if lorry.type == "tarball" else ""
    default, supplier = "", None
    match lorry.type:
        case "tarball":
            default = identifiers.generic(name, version, url, sha256)
        case "debian-source":
            version = identifiers.upstream_version(version, revised=bool(lorry.debian_patches))
            if "ref" in lorry.lines:
                version = identifiers.as_spelled(version, lorry.ref)
            default = identifiers.generic(name, version, "", sha256)
            supplier = DEBIAN
        case "pypi":
            default = identifiers.pypi(lorry.package, version)
        case "debian-packages":
            supplier = DEBIAN  # a set of packages is none itself
    return msgspec.structs.replace(
        made,
        name=name,
        version=version,
        purl=_purl(lorry, version) or default,
        cpe=identifiers.cpe(lorry.cpe, version) if lorry.cpe else "",
        supplier=Party.parse(lorry.supplier) or supplier,
        license=lorry.license,
        downloads=tuple(_downloads(lorry, url, sha256)),
        patches=_patches(lorry),
        vex=lorry.vex,
    )


def _purl(lorry: Lorry | LorryPart | None, version: str) -> str:
    """The package URL that the definitions give; "" if they give none."""
    if lorry is None or not lorry.purl:
        return ""
    try:
        return identifiers.with_version(lorry.purl, version)
    except ValueError as error:
        raise FabricError(f"{lorry.where}: {lorry.purl!r} is no package URL: {error}") from None


def _downloads(lorry: Lorry, url: str, sha256: str) -> Iterator[Download]:
    if lorry.is_set or not sha256:
        return
    match lorry.type:
        case "debian-source":
            revised = lorry.debian_patches and "-" in lorry.version
            version = lorry.version.rpartition("-")[0] if revised else lorry.version
            yield Download(f"{lorry.package}_{version}.orig.tar", "", sha256)
            for part, digest in sorted(lorry.components.items()):
                yield Download(f"{lorry.package}_{version}.orig-{part}.tar", "", digest)
            if lorry.debian_sha256:
                name = f"{lorry.package}_{lorry.version}.debian.tar"
                yield Download(name, "", lorry.debian_sha256)
        case "pypi":
            yield Download(f"{lorry.package}-{lorry.version}.tar.gz", "", sha256)
        case _:
            yield Download(_file_name(lorry.url), url, sha256)


def _file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name or "download"


def _patches(lorry: Lorry) -> tuple[Patch, ...]:
    """Its patches; SourceError if one cannot be read."""
    folder = lorry.file.parent.name
    return tuple(
        Patch(f"{folder}/{patch.path}", hashlib.sha256(content).hexdigest())
        for patch, content in lorry.series
    )


# -- what is inside a chunk ------------------------------------------------------------------


def inside_of(chunk: Component, lorry: Lorry, fact: ChunkFact) -> Iterator[Component]:
    """The packages and parts of a chunk."""
    if chunk.remarks:  # it has another source
        return
    packages = tuple(dict.fromkeys(lorry.locked()))
    count = Counter(one.name for one in packages)
    for name in lorry.licenses:
        if name not in count:
            hint = suggest(name, count)
            raise FabricError(
                f"{lorry.where}: 'licenses': {lorry.lock_file.name} has no package {name}{hint}"
            )
    for package in packages:
        made = _package(chunk, lorry, package, fact.packages.get(package.sha256, PackageFact()))
        if count[package.name] > 1:  # of several architectures
            ref = f"{made.ref}:{hashlib.sha256(str(package).encode()).hexdigest()[:8]}"
            made = msgspec.structs.replace(made, ref=ref)
        yield made
    yield from _parts(chunk, lorry, "")


def _package(chunk: Component, lorry: Lorry, package: Locked, fact: PackageFact) -> Component:
    deb = lorry.type == "debian-packages"
    file = package.file_name if deb else f"{package.name}-{package.version}-{package.architecture}"
    source, version = fact.source
    vendor = UBUNTU if identifiers.is_ubuntus(package.version) else DEBIAN
    return Component(
        ref=f"{chunk.ref}/{package.name}",
        kind="package",
        name=package.name,
        version=package.version,
        in_image=chunk.in_image and fact.inside,
        within=chunk.ref,
        purl=identifiers.debian(package) if deb else identifiers.wheel(package),
        supplier=vendor if deb else Party.parse(lorry.supplier),
        license=lorry.licenses.get(package.name, ""),
        found_license=fact.license,
        license_files=fact.license_files,
        downloads=(Download(file if deb else f"{file}.whl", "", package.sha256, fact.sha512),),
        origin=identifiers.debian_source(source, version) if source else "",
    )


def _parts(chunk: Component, lorry: Lorry, prefix: str) -> Iterator[Component]:
    """The components that a lorry puts into folders of its tree, and what these contain."""
    for path, part in sorted(lorry.parts.items()):
        folder = f"{prefix}{path}"
        made = Component(
            ref=f"{chunk.ref}/{folder}",
            kind="part",
            name=PurePosixPath(path).name,
            version="",
            in_image=chunk.in_image,
            within=chunk.ref,
        )
        if part.lorry:
            other = lorry.brought(part)
            yield of_lorry(made, other)
            yield from _parts(chunk, other, f"{folder}/")
        else:
            yield _of_archive(made, part)


def _of_archive(made: Component, part: LorryPart) -> Component:
    sha256 = part.sha256 or ""
    url = identifiers.public_url(part.url)
    return msgspec.structs.replace(
        made,
        version=part.version,
        purl=_purl(part, part.version) or identifiers.generic(made.name, part.version, url, sha256),
        cpe=identifiers.cpe(part.cpe, part.version) if part.cpe else "",
        supplier=Party.parse(part.supplier),
        license=part.license,
        downloads=(Download(_file_name(part.url), url, sha256),) if sha256 else (),
        vex=part.vex,
    )
