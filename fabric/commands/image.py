"""``image``: makes a bootable disk image, or an archive, of a built system."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import zstandard

from fabric.bounds import VARIABLES
from fabric.building.image import MACHINES, File, Machine, files_below, make_archive, make_image
from fabric.building.image_manifest import read_manifest
from fabric.client.project import Project
from fabric.client.render import size
from fabric.commands.shared.arguments import add_json, add_locked
from fabric.commands.shared.bills import add_author, built_bill, written
from fabric.commands.shared.output import print_json, save
from fabric.commands.shared.plans import healing, open_built
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.deployment.settings import size as parse_size
from fabric.errors import FabricError, command
from fabric.host.files import read_regular
from fabric.host.terminal import progress
from fabric.plan import Plan

_FORMATS = ("raw", "qcow2", "tar")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_locked(parser)
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="system morph")
    add("--to", required=True, metavar="FILE", help="the image: *.qcow2, *.tar, else raw")
    add("--format", choices=_FORMATS, help="format of FILE (default: by its name)")
    add("--size", metavar="SIZE", default="2G", help="size of the disk (default 2G; sparse)")
    add("--label", default="system", help="label of the root file system (default: system)")
    add("--hostname", help="content of /etc/hostname")
    add("--files", metavar="DIR", help="add this tree of files below /")
    add(
        "--manifest",
        action="append",
        default=[],
        metavar="FILE",
        help="add the files that this INSTALL_FILES manifest lists",
    )
    add("--variables", metavar="FILE", help="JSON object of NAME: TEXT for templates of manifests")
    add(
        "--subsystem",
        nargs=2,
        action="append",
        default=[],
        metavar=("SYSTEM", "PATH"),
        help="add another built system as an archive at PATH: *.tar.zst, else tar",
    )
    add("--kernel-args", default="", metavar="ARGS", help="append these to the kernel command line")
    add("--force", action="store_true", help="replace an existing FILE")
    add(
        "--sbom",
        metavar="FILE",
        type=Path,
        help="write the system's SBOM beside: *.cdx.json is CycloneDX, else SPDX 3; files that"
        " other options add are not in it",
    )
    add_author(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    disk = parse_size(options.size)
    if disk is None:
        raise FabricError(f"{options.size!r} is not a size; write it like 5G or 800M")
    project, plan = open_built(settings, options.system, [], locked=options.locked)
    rootfs = _rootfs(project, plan, options.system)
    machine = MACHINES.get(plan.graph.arch, Machine())
    files = files_of(options.manifest, options.files, read_variables(options.variables))
    for system, path in options.subsystem:
        inner = _rootfs(*open_built(settings, system, [], locked=options.locked), system)
        files[f"/{path.strip('/')}"] = _inner(inner, path)
    to, sbom = Path(options.to), options.sbom
    for file in (to, sbom):
        if file is not None and not file.parent.is_dir():
            raise FabricError(f"{file.parent}: no such directory")
    document = _sbom(options, settings) if sbom is not None else b""
    form = options.format or to.suffix.removeprefix(".")
    if form == "tar":
        taken = make_archive(
            rootfs,
            to,
            hostname=options.hostname,
            files=files,
            force=options.force,
            progress=progress,
        )
        facts = {"to": str(to), "size": taken, "system": rootfs.name} | _saved(document, sbom)
        if options.json:
            print_json(facts)
        else:
            print(f"{to}: an archive of {size(taken)}")
            print(f"  system  {options.system}, sha256 {rootfs.name}")
            _print_sbom(sbom)
        return 0
    kind: Literal["raw", "qcow2"] = "qcow2" if form == "qcow2" else "raw"
    image = make_image(
        rootfs,
        to,
        size=disk,
        label=options.label,
        hostname=options.hostname,
        files=files,
        kernel_args=f"{machine.arguments} {options.kernel_args}".strip(),
        loader=machine.loader,
        format=kind,
        force=options.force,
        progress=progress,
    )
    facts = {"to": str(to), "size": image.size, "used": image.used, "uuid": image.uuid}
    facts |= {"system": rootfs.name} | _saved(document, sbom)
    if options.json:
        print_json({**facts, "kernel": image.kernel, "arguments": image.arguments})
    else:
        print(f"{to}: a disk of {size(image.size)} that takes {size(image.used)}")
        print(f"  system  {options.system}, sha256 {rootfs.name}")
        print(f"  uuid    {image.uuid}")
        _print_sbom(sbom)
        file = str(to).replace(",", ",,")  # QEMU's escape
        drive = shlex.quote(f"file={file},format={kind},if=virtio")
        start = machine.qemu
        if not machine.loader:
            print(f"  kernel  {image.kernel}, started with: {image.arguments}")
            start += f" -kernel vmlinuz -append {shlex.quote(image.arguments)}"
            if kind == "raw":
                start = f"mcopy -i {shlex.quote(f'{to}@@1M')} ::vmlinuz vmlinuz && {start}"
        if machine.qemu:
            print(
                f"  try it  {start} -m 512 -nographic -nic user,model=virtio-net-pci -drive {drive}"
            )
    return 0


def _sbom(options: argparse.Namespace, settings: Settings) -> bytes:
    """The SBOM of the system, in the format that its file's name tells."""
    bill = built_bill(settings, options.system, options.author, locked=options.locked)
    cyclonedx = options.sbom.name.endswith(".cdx.json")
    return written(bill, "cyclonedx-json" if cyclonedx else "spdx-json")


def _saved(document: bytes, to: Path | None) -> dict[str, str]:
    """Write the SBOM, if one is wanted; the facts about it."""
    if to is None:
        return {}
    save(document, to, "the SBOM")
    return {"sbom": str(to)}


def _print_sbom(to: Path | None) -> None:
    if to is not None:
        print(f"  sbom    {to}")


def _rootfs(project: Project, plan: Plan, system: str) -> Path:
    """A built system's tar.zst."""
    with healing(project, plan):
        manifest = project.store.manifest(plan.keys[plan.graph.root.id])
        if manifest is None:
            built = command("build", system)
            raise FabricError(f"{plan.graph.system}: not built yet with these inputs; run: {built}")
        project.store.use([manifest.key])
        blob = manifest.artifacts[0].blob
        if blob is None:
            raise FabricError(f"{plan.graph.system}: this system has no files")
        return project.store.path(blob)


def _inner(archive: Path, path: str) -> File:
    """A system as a file of another one, in memory."""
    if path.endswith(".zst"):
        return File(archive.read_bytes())
    with zstandard.open(archive) as content:
        return File(content.read())


def read_variables(file: str | None) -> dict[str, str]:
    """Variables for templates.  They do not see the environment, which may hold secrets."""
    if file is None:
        return {}
    try:
        return msgspec.json.decode(read_regular(Path(file), VARIABLES), type=dict[str, str])
    except OSError as error:
        raise FabricError(f"--variables {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FabricError(
            f'--variables {file}: not a JSON object of the form {{"NAME": "text"}}: {error}'
        ) from None


def files_of(
    manifests: list[str], folder: str | None, variables: Mapping[str, str]
) -> dict[str, File]:
    """Files that are added to the image.  A file of the folder replaces one of a manifest."""
    files: dict[str, File] = {}
    for manifest in manifests:
        more = read_manifest(Path(manifest), variables)
        if twice := sorted(files.keys() & more.keys()):
            raise FabricError(f"{manifest}: {twice[0]} is in another manifest too")
        files |= more
    return files | (files_below(Path(folder)) if folder else {})
