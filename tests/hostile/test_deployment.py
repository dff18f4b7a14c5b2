"""Hostile cluster morphs and INSTALL_FILES.

They decide about the machines that are made, but nothing of them runs on the deploying machine, is
taken for an option, or makes it wait or fill up. A case is a line in one of the tables.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.bounds import VARIABLES
from fabric.building.image import ImageError
from fabric.building.image_manifest import read_manifest
from fabric.client.project import Project
from fabric.commands.image import read_variables
from fabric.config import Settings
from fabric.deployment.cluster import load_cluster
from fabric.deployment.guests import deployed
from fabric.errors import DefinitionsError, FabricError

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CLUSTER = "clusters/c.morph"
SYSTEM = "systems/build-system-debian-x86_64.morph"


# -- templates ---------------------------------------------------------------------------------

#: name -> template, error
TEMPLATES = {
    "a class by its ancestors": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        r"access to attribute '__class__' of 'str' object is unsafe",
    ),
    "globals of a function": (
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        r"access to attribute '__init__' of 'type' object is unsafe",
    ),
    "an attribute by a filter": (
        "{{ (''|attr('__class__'))|attr('__mro__') }}",
        r"StrictUndefined object' has no attribute '__mro__'",
    ),
    "an attribute by a format": ("{{ '{0.__class__}'.format(HOSTNAME) }}", r"is unsafe"),
    "variables changed": ("{{ self._TemplateReference__context.vars.clear() }}", r"is unsafe"),
    "a file of this machine": ("{% include '/etc/passwd' %}", r"no loader for this environment"),
    "a long range": ("{% for i in range(10 ** 9) %}x{% endfor %}", r"Range too big"),
    "a large text": ("{{ 'x' * 10 ** 9 }}", r"templates may use 512 MiB of memory, and this one"),
    "no end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        r"templates may take 5 s together, and these take longer",
    ),
    "much text": (
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        r"templates may make 16 MiB of text, and this one makes more",
    ),
    "deep": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", r"RecursionError|MemoryError|512 MiB|ended"),
    "a division": ("{{ 1 / 0 }}", r"ZeroDivisionError: division by zero"),
}


@pytest.mark.bound("TEMPLATE_CPU")
@pytest.mark.bound("TEMPLATE_MEMORY")
@pytest.mark.bound("TEMPLATE_OUTPUT")
@pytest.mark.parametrize(("text", "said"), TEMPLATES.values(), ids=TEMPLATES)
def test_template_runs_nothing_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/x").write_text(text)
    (tmp_path / "manifest").write_text("template 0100644 0 0 /etc/x\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ImageError, match=rf"{tmp_path}/manifest.*: .*(?:{said})"):
        read_manifest(tmp_path / "manifest", {"HOSTNAME": "h"})
    assert sorted(tmp_path.rglob("*")) == before


def test_template_imports_no_modules_of_the_definitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("jinja2", "fabric", "json", "resource"):
        (tmp_path / f"{name}.py").write_text("open('CANARY', 'w')")
    (tmp_path / "x").write_text("{{ HOSTNAME }}")
    (tmp_path / "manifest").write_text("template 0100644 0 0 /x\n")
    assert read_manifest(tmp_path / "manifest", {"HOSTNAME": "h"})["/x"].data == b"h"
    assert not (tmp_path / "CANARY").exists()


# -- manifests ---------------------------------------------------------------------------------

#: name -> command that makes the file, manifest, error
MANIFESTS = {
    "a link to a file of the user": (
        "ln -s /etc/hostname x",
        "0100644 0 0 /x",
        r"x leads out of the manifest's folder",
    ),
    "a link to a folder of the user": (
        "ln -s /etc d",
        "0100644 0 0 /d/hostname",
        r"d/hostname is outside of the manifest's folder",
    ),
    "a link to itself": (
        "ln -s x x",
        "0100644 0 0 /x",
        r"x: Too many levels of symbolic links",
    ),
    "a folder that is a link to itself": (
        "ln -s d d",
        "0100644 0 0 /d/x",
        r"x: Too many levels of symbolic links",
    ),
    "a pipe": ("mkfifo x", "0100644 0 0 /x", r"x: it is not an ordinary file"),
    "a device": (
        "mknod x c 1 5 || ln -s /dev/zero x",
        "0100644 0 0 /x",
        r"x.*(ordinary|leads out)",
    ),
    "a folder": ("mkdir x", "0100644 0 0 /x", r"x: it is not an ordinary file"),
    "a large file": ("truncate -s 2G x", "0100644 0 0 /x", r"x: it has more than 1,073,741,824"),
    "large numbers": ("touch x", f"0100644 {'9' * 5000} 0 /x", r"are not the numbers of a user"),
    "a large manifest": ("truncate -s 5M manifest", "", r"manifest: .* more than 4,194,304 bytes"),
    "a manifest that never ends": ("mkfifo manifest", "", r"manifest: .* is not an ordinary file"),
}


@pytest.mark.bound("INSTALL_MANIFEST")
@pytest.mark.bound("INSTALLED_FILES")
@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "manifest", "said"), MANIFESTS.values(), ids=MANIFESTS)
def test_manifest_takes_only_regular_files_of_its_folder(
    tmp_path: Path, make: str, manifest: str, said: str
) -> None:
    subprocess.run(["sh", "-euc", make], cwd=tmp_path, check=True)
    if manifest:
        (tmp_path / "manifest").write_text(manifest)
    with pytest.raises(ImageError, match=said):
        read_manifest(tmp_path / "manifest", {})


# -- morphs that are refused -------------------------------------------------------------------

_MORPH = """\
name: {name}
kind: cluster
systems:
- morph: {system}
  deploy:
    worker0:
      type: extensions/kvm
      location: {location}
      DISK_SIZE: 1G
      {setting}
"""
PLACE = "kvm+ssh://user@vmhost/worker0/images/worker0.img"

#: name -> content of the morph, error
MORPHS = {
    "a cluster whose name ends a quote": (
        {"name": "x'-oProxyCommand=touch${IFS}CANARY'"},
        f"{CLUSTER}:1: \"x'-oProxyCommand=touch${{IFS}}CANARY'\" is not a name of a cluster:"
        " use letters and digits, and _ . + - after the first character",
    ),
    "a user that is a query": (
        {"location": "kvm+ssh://x?command=%2Ftmp%2Fevil&y=@vmhost/worker0/i.img"},
        f"{CLUSTER}:8: 'x?command=%2Ftmp%2Fevil&y=' is not the name of a user: write it like"
        " kvm+ssh://user@vmhost/GUEST/path/to/image",
    ),
    "a user that is an option": (
        {"location": "kvm+ssh://-oProxyCommand=touch@vmhost/worker0/i.img"},
        f"{CLUSTER}:8: '-oProxyCommand=touch' is not the name of a user: write it like"
        " kvm+ssh://user@vmhost/GUEST/path/to/image",
    ),
    "a host that is an option": (
        {"location": "kvm+ssh://-oProxyCommand=touch/worker0/i.img"},
        f"{CLUSTER}:8: 'kvm+ssh://-oProxyCommand=touch/worker0/i.img' is not a location:"
        " write it like kvm+ssh://user@vmhost/GUEST/path/to/image",
    ),
    "a port that is none": (
        {"location": "kvm+ssh://vmhost:99999/worker0/i.img"},
        f"{CLUSTER}:8: 99999 is not a port: it must be 1 to 65535",
    ),
    "a system called like a group of machines": (
        {"system": "systems/controllers.morph"},
        f"{CLUSTER}:6: deployment worker0: its system has the name 'controllers', which"
        " is a group of machines: rename the file systems/controllers.morph",
    ),
    "a trove that is a command": (
        {"setting": "TROVE: ext::sh -c touch% CANARY"},
        f"{CLUSTER}:10: TROVE is 'ext::sh -c touch% CANARY', which is not a git repository: write"
        " it like ssh://git@host/path.git",
    ),
    "a trove that is an option": (
        {"setting": "TROVE: --upload-pack=touch"},
        f"{CLUSTER}:10: TROVE is '--upload-pack=touch', which is not a git repository: write it"
        " like ssh://git@host/path.git",
    ),
    "a trove's host that is an option": (
        {"setting": "TROVE: ssh://-oProxyCommand=touch/x"},
        f"{CLUSTER}:10: TROVE is 'ssh://-oProxyCommand=touch/x', which is not a git repository:"
        " write it like ssh://git@host/path.git",
    ),
    "artifacts that are a file": (
        {"setting": "ARTIFACTS: file:///etc"},
        f"{CLUSTER}:10: ARTIFACTS is 'file:///etc', which is not a store: write it like"
        " https://host/path/ or s3://bucket/path",
    ),
    "a network with what XML cannot have": (
        {"setting": 'NIC_CONFIG: "network=\\x01"'},
        f"{CLUSTER}:10: NIC_CONFIG: '\\x01' is not the name of a network or bridge",
    ),
    "kernel arguments of two lines": (
        {"setting": 'KERNEL_ARGS: "quiet\\nAPPEND x"'},
        f"{CLUSTER}:10: KERNEL_ARGS is 'quiet\\nAPPEND x', which is not one line of text",
    ),
    "a host entry of two lines": (
        {"setting": 'HOSTS_X: "10.0.0.1 x\\n10.0.0.2 y"'},
        f"{CLUSTER}:10: HOSTS_X is '10.0.0.1 x\\n10.0.0.2 y', which is not one line of text",
    ),
    "a mount of two lines": (
        {"setting": 'FSTAB_X: "LABEL=x /x\\n/dev/vda /y"'},
        f"{CLUSTER}:10: FSTAB_X is 'LABEL=x /x\\n/dev/vda /y', which is not a line of /etc/fstab",
    ),
}


def definitions(root: Path, **given: str) -> Path:
    """Definitions with one cluster, of one machine; its morph."""
    filled = {"name": "c", "system": SYSTEM, "location": PLACE, "setting": "VCPUS: 1", **given}
    for folder in ("clusters", "systems", "strata"):
        (root / folder).mkdir(parents=True)
    (root / "VERSION").write_text("version: 8\n")
    (root / "DEFAULTS").write_text("{}\n")
    system = root / filled["system"]
    name = system.name.removesuffix(".morph").lstrip("-")
    system.write_text(f"name: {name}\nkind: system\narch: x86_64\nstrata: []\n")
    (root / CLUSTER).write_text(_MORPH.format(**filled))
    return root / CLUSTER


@pytest.mark.parametrize(("given", "said"), MORPHS.values(), ids=MORPHS)
def test_cluster_morph_is_rejected(tmp_path: Path, given: dict[str, str], said: str) -> None:
    definitions(tmp_path, **given)
    project = Project.find(tmp_path, Settings(), print)
    with pytest.raises(DefinitionsError) as caught:
        deployed(load_cluster(project.read, CLUSTER), {}, {})
    assert str(caught.value) == said


# -- text in morphs ----------------------------------------------------------------------------

#: Each would make a file if any program interpreted it.
CANARIES = (
    "{{ lookup('ansible.builtin.pipe', 'touch CANARY') }}",
    "$$(touch CANARY)",
    "`touch CANARY`",
    "'; touch CANARY; '",
    '"; touch CANARY; "',
    "\\' || touch CANARY",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
)
PROGRAMS = {
    "LD_PRELOAD": "EVIL/evil.so",
    "LD_LIBRARY_PATH": "EVIL",
    "PATH": "EVIL",
    "PYTHONPATH": "EVIL",
    "PYTHONSTARTUP": "EVIL/sitecustomize.py",
    "BASH_ENV": "EVIL/bash",
    "ENV": "EVIL/bash",
    "GIT_SSH_COMMAND": "touch CANARY",
    "FABRIC_CACHE": "EVIL/cache",
    "ANSIBLE_PIPELINING": "no",
}


def test_cluster_morph_text_is_never_run(tmp_path: Path) -> None:
    """Covers all that runs here before the first guest: its tree, settings and image."""
    evil, state, canary = tmp_path / "evil", tmp_path / "state", tmp_path / "CANARY"
    evil.mkdir()
    for name in ("sitecustomize.py", "usercustomize.py", "json.py"):
        (evil / name).write_text(f"open({str(canary)!r}, 'w')\n")
    (evil / "bash").write_text(f"touch {canary}\n")
    for name in ("ssh-keygen", "sh", "python3", "git"):
        (evil / name).write_text(f"#!/bin/sh\n/usr/bin/touch {canary}\n")
        (evil / name).chmod(0o755)
    image = tmp_path / "fabric-initiator"
    image.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(tmp_path / 'ran')!r}, 'w'))\n"
    )
    image.chmod(0o755)
    texts = [text.replace("CANARY", str(canary)) for text in CANARIES]
    settings = {"DISTBUILD_WORKER": "yes", "HOSTNAME": "w0", "CONTROLLERHOST": "c"}
    settings |= {"TROVE_HOST": "w0", "WORKER_SSH_KEY": "worker.key", "TROVE_ID": texts[0]}
    settings |= {"KERNEL_ARGS": " ".join(texts).replace("\n", " ")}
    settings |= {f"HOSTS_{number}": text for number, text in enumerate(texts)}
    settings |= {f"FREE_{number}": text for number, text in enumerate(texts)}
    settings |= {key: text.replace("EVIL", str(evil)) for key, text in PROGRAMS.items()}
    settings |= {"FSTAB_X": f"/dev/vdb /x auto {texts[2].replace(' ', '')}"}
    settings |= {"ARTIFACTS": f"https://h/{texts[0]}".replace(" ", "")}
    lines = "\n      ".join(f"{key}: {json.dumps(text)}" for key, text in settings.items())
    morph = definitions(tmp_path / "definitions", name="c+d", setting=lines)
    shutil.copy(ROOT / "LICENSE", morph.parent.parent / "worker.key")
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "ANSIBLE_NOCOLOR": "1"}
    play: list[str | Path] = [
        BIN / "ansible-playbook",
        "tests/hostile/playbooks/prepare.yml",
        "-i",
        morph,
    ]
    play += ["-e", f"fabric_initiator={image}", "-e", "access_known_hosts=none", "-vvv"]
    done = subprocess.run(
        play,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert not canary.exists()
    argv, ran_in = json.loads((tmp_path / "ran").read_text())
    assert argv[:2] == ["image", "--force"]
    assert argv[-2:] == ["--", SYSTEM]
    kernel = settings["KERNEL_ARGS"].replace("$$", "$")
    assert f"--kernel-args={kernel}" in argv
    assert not [key for key in PROGRAMS if str(evil) in ran_in.get(key, "")]
    tree = state / "distbuild/clusters/c+d/trees/worker0"
    hosts = (tree / "etc/hosts").read_text()
    assert all(text.replace("$$", "$") in hosts for text in texts), hosts
    assert settings["ARTIFACTS"] in (tree / "etc/distbuild/worker.toml").read_text()
    told = json.loads((state / "distbuild/clusters/c+d/images/worker0.json").read_text())
    assert told == {key: text.replace("$$", "$") for key, text in settings.items()} | {
        "DISK_SIZE": "1G"
    }


def test_deployment_errors_hold_no_terminal_escapes(tmp_path: Path) -> None:
    """Neither in errors of morphs nor in those of keys."""
    escape = "\\e]52;c;ZXZpbA==\\a"
    morph = definitions(
        tmp_path / "morphs", setting=f'NIC_CONFIG: "{escape}x"\n      "V{escape}CPUS": 2'
    )
    show: list[str | Path] = [BIN / "ansible-inventory", "-i", morph, "--list"]
    keys = tmp_path / "admitted"
    keys.mkdir()
    (keys / "\x1b]52;c;ZXZpbA==\a.key").touch()
    listed: list[str | Path] = [BIN / "fabric-keys", "list", "--keys", tmp_path]
    for command in (show, listed):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert len(done.stderr) > 50
        assert not {"\x1b", "\a"} & set(done.stdout + done.stderr)


@pytest.mark.bound("VARIABLES")
def test_variables_must_be_a_small_json_file(tmp_path: Path) -> None:
    def said(text: str) -> str:
        (tmp_path / "given").write_text(text)
        with pytest.raises(FabricError) as caught:
            read_variables(str(tmp_path / "given"))
        return str(caught.value).removeprefix(f"--variables {tmp_path}/given: ")

    assert said(" " * (VARIABLES + 1)) == "it has more than 4,194,304 bytes"
    assert said("[]").startswith('not a JSON object of the form {"NAME": "text"}: ')
    assert said('{"A": 1}').startswith('not a JSON object of the form {"NAME": "text"}: ')
    (tmp_path / "given").write_text('{"A": "1"}')
    assert read_variables(str(tmp_path / "given")) == {"A": "1"}
    assert read_variables(None) == {}
