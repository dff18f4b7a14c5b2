"""``edit``: builds use the files of a work tree, and compile only what has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from initiator_kit import Project
from network_kit import free_ports
from small_definitions import git
from sources_kit import machine

pytestmark = pytest.mark.long

CONFIGURE = """\
#!/bin/sh
echo CONFIGURES
cat flags.in > config.mk
"""
MAKEFILE = """\
include config.mk
all: one.out two.out
%.out: %.txt
\t@echo MAKES $@ from $$(cat $<)
\t@cp $< $@
install: all
\tmkdir -p $(DESTDIR)/bin && cp one.out two.out $(DESTDIR)/bin
"""
MORPH = """\
name: tool
kind: chunk
configure-commands:
- sh configure
build-commands:
- make
install-commands:
- make install
"""


class Edited:
    """A chunk `tool` with a configure script and a makefile; its work tree is ``tool``."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.tree = project.logs / "tool"
        self.morph = project.root / "strata/tool.morph"
        source = project.source
        for name, text in {
            "configure": CONFIGURE,
            "Makefile": MAKEFILE,
            "flags.in": "FLAGS = 1\n",
            "one.txt": "one\n",
            "two.txt": "two\n",
            "sub/deep.txt": "deep\n",
            ".gitignore": "*.tmp\n",
        }.items():
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_text(text)
        git(source, "add", ".")
        git(source, "commit", "-qm", "a tool")
        project.write(tool="true", user=("tool", "mkdir -p $DESTDIR/bin; echo u >$DESTDIR/bin/u"))
        self.morph.write_text(MORPH)

    def edit(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.project.run("edit", *args)

    def begin(self) -> None:
        begun = self.edit("tool")
        assert begun.returncode == 0, begun.stderr

    def build(self, *args: str) -> list[str]:
        """Build the tool; returns the lines of its log that tell what it did."""
        log = self.project.logs / "build-step-tool-misc.log"
        log.unlink(missing_ok=True)
        done = self.project.build("tool", *args)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = log.read_text().splitlines() if log.exists() else []
        return sorted(line for line in lines if line.startswith(("MAKES", "CONFIGURES")))

    def installed(self, *names: str) -> str:
        to = self.project.root / "out"
        subprocess.run(["rm", "-rf", to], check=True)
        done = self.project.run("checkout", "../systems/small.morph", "tool", "--to", str(to))
        assert done.returncode == 0, done.stderr
        return "".join((to / "bin" / name).read_text() for name in names)


@pytest.fixture
def edited(project: Project) -> Edited:
    return Edited(project)


ALL = ["CONFIGURES", "MAKES one.out from one", "MAKES two.out from two"]


def test_edit_compiles_what_has_changed(edited: Edited) -> None:
    edited.begin()
    assert edited.build() == ALL
    assert edited.build() == [], "nothing has changed"
    (edited.tree / "one.txt").write_text("eins\n")
    assert edited.build() == ["MAKES one.out from eins"]
    assert edited.installed("one.out", "two.out") == "eins\ntwo\n"
    git(edited.tree, "commit", "-qam", "eins")
    assert edited.build() == [], "a commit of the same files is no change"


def test_edit_of_a_file_with_an_old_time(edited: Edited) -> None:
    """make compares times, and a copy may be older than what was made of the file before."""
    edited.begin()
    edited.build()
    (edited.tree / "two.txt").write_text("zwei\n")
    os.utime(edited.tree / "two.txt", (1_000, 1_000))
    assert edited.build() == ["MAKES two.out from zwei"]


def test_edit_configures_again_when_its_inputs_change(edited: Edited) -> None:
    edited.begin()
    edited.build()
    (edited.tree / "flags.in").write_text("FLAGS = 2\n")
    assert edited.build() == ["CONFIGURES"], "an input by its name"
    edited.morph.write_text(MORPH.replace("sh configure", "cat sub/deep.txt; sh configure"))
    assert edited.build() == ["CONFIGURES"], "other commands"
    (edited.tree / "sub/deep.txt").write_text("deeper\n")
    assert edited.build() == ["CONFIGURES"], "a file that the commands name"
    (edited.tree / "three.txt").write_text("three\n")
    assert edited.build() == ["CONFIGURES"], "a new file"
    (edited.tree / "three.txt").unlink()
    assert edited.build() == [], "the build before is known"
    (edited.tree / "one.txt").write_text("eins\n")
    assert edited.build() == ["CONFIGURES", "MAKES one.out from eins"], "and a file less"


def test_edit_begins_anew_where_configure_cannot_run_twice(edited: Edited) -> None:
    edited.morph.write_text(MORPH.replace("sh configure", "mkdir once; sh configure"))
    edited.begin()
    assert edited.build() == ALL
    (edited.tree / "flags.in").write_text("FLAGS = 2\n")
    assert edited.build() == ALL
    assert "once more in a clean tree" in edited.project.log("tool-misc")


def test_edit_begins_anew_where_a_build_changed_the_source(edited: Edited) -> None:
    edited.morph.write_text(MORPH.replace("- make\n", "- sed -i s/one/uno/ one.txt; make\n", 1))
    edited.begin()
    edited.build()
    (edited.tree / "two.txt").write_text("zwei\n")
    assert edited.build() == ["MAKES one.out from uno", "MAKES two.out from zwei"]
    (edited.tree / "one.txt").write_text("one more\n")
    assert edited.build()[:2] == ["CONFIGURES", "MAKES one.out from uno more"]
    assert "one.txt changed here and in a build" in edited.project.log("tool-misc")


def test_edit_begins_anew_with_another_dependency(edited: Edited) -> None:
    project = edited.project
    project.write(tool=("user", "true"), user="mkdir -p $DESTDIR/bin; echo 1 >$DESTDIR/bin/u")
    edited.morph.write_text(MORPH)
    edited.begin()
    assert edited.build() == ALL
    (project.root / "strata/user.morph").write_text(
        "name: user\nkind: chunk\ninstall-commands:\n"
        "- mkdir -p $DESTDIR/bin; echo 2 >$DESTDIR/bin/u\n"
    )
    assert edited.build() == ALL


def test_edit_goes_on_after_a_failure(edited: Edited) -> None:
    edited.begin()
    edited.build()
    (edited.tree / "one.txt").write_text("eins\n")
    makefile = (edited.tree / "Makefile").read_text()
    (edited.tree / "Makefile").write_text(
        makefile.replace("cp $< $@", "cp $< $@ && test $< != two.txt")
    )
    (edited.tree / "two.txt").write_text("zwei\n")
    failed = edited.project.build("tool")
    assert failed.returncode == 3
    (edited.tree / "Makefile").write_text(makefile)
    (edited.tree / "two.txt").write_text("due\n")
    assert edited.build() == ["MAKES two.out from due"]


def test_edit_is_never_shared(edited: Edited) -> None:
    """Neither its key nor that of anything made from it is one that others have."""

    def keys() -> dict[str, str]:
        shown = json.loads(edited.project.run("show", "../systems/small.morph", "--json").stdout)
        return {step["name"]: step["key"] for step in shown}

    before = keys()
    edited.begin()
    now = keys()
    assert {name for name in now if now[name] == before[name]} == set()
    assert edited.build("--clean") == ALL
    assert edited.build() == ALL, "the tree of an edit"
    edited.project.run("edit", "--close", "tool")
    assert keys() == before
    assert edited.build() == [], "--clean builds what everybody builds"


def test_edit_of_a_shared_store_is_clean(edited: Edited, tmp_path: Path) -> None:
    edited.begin()
    store = ("--artifacts", str(tmp_path / "shared"))
    assert edited.build(*store) == ALL
    (edited.tree / "one.txt").write_text("eins\n")
    assert edited.build(*store)[0] == "CONFIGURES"


def test_edit_lists_and_says_what_a_build_uses(edited: Edited) -> None:
    assert "no chunk is edited" in edited.edit().stdout
    edited.begin()
    assert edited.edit().stdout == "tool: tool\n"
    assert json.loads(edited.edit("--json").stdout) == {
        "edits": [{"chunk": "tool", "folder": str(edited.tree)}]
    }
    assert "edited: tool in tool\n" in edited.project.build("tool").stderr
    edited.project.write(tool="true", user="mkdir -p $DESTDIR/bin; echo u >$DESTDIR/bin/u")
    assert "edited" not in edited.project.build("user").stderr, "it does not need the tool"
    locked = edited.project.build("tool", "--locked")
    assert locked.returncode == 1
    assert "--locked: tool is edited" in locked.stderr
    again = edited.edit("tool")
    assert again.returncode == 1
    assert "is edited already, in tool" in again.stderr


def test_edit_close_loses_no_work(edited: Edited) -> None:
    edited.begin()
    (edited.tree / "one.txt").write_text("eins\n")
    refused = edited.edit("--close", "tool")
    assert refused.returncode == 1
    assert "changes that are not committed: one.txt" in refused.stderr
    git(edited.tree, "commit", "-qam", "eins for one")
    refused = edited.edit("--close", "tool")
    assert "commits that are nowhere else: " in refused.stderr
    assert "eins for one" in refused.stderr
    kept = edited.edit("--close", "--keep", "tool")
    assert kept.returncode == 0, kept.stderr
    assert (edited.tree / "one.txt").read_text() == "eins\n"
    again = edited.edit("tool")
    assert again.returncode == 0, again.stderr
    assert edited.build()[1] == "MAKES one.out from eins", "a work tree that is there is used"
    assert edited.edit("--close", "tool").returncode == 0
    assert edited.tree.exists(), "the edit did not make it"


def test_edit_close_removes_what_it_made(edited: Edited) -> None:
    edited.begin()
    edited.build()
    assert edited.edit("--close", "tool").returncode == 0
    assert not edited.tree.exists()
    assert not list((edited.project.cache / "work/edits").iterdir())
    assert not list((edited.project.cache / "trove/git/edits").glob("*.git"))
    closed = edited.edit("--close", "tool")
    assert closed.returncode == 1
    assert "tool is not edited; chunks that are: none" in closed.stderr


def test_edit_refuses_a_folder_in_use(edited: Edited) -> None:
    for folder, why in (("../strata", "is in use, and is no git work tree"), ("..", "definitions")):
        refused = edited.edit("tool", "--to", folder)
        assert refused.returncode == 1
        assert why in refused.stderr
    assert edited.edit("nothing").returncode == 1
    assert "only sources of chunks" in edited.edit("things").stderr


def test_edit_whose_folder_is_gone(edited: Edited) -> None:
    edited.begin()
    edited.tree.rename(edited.tree.with_name("elsewhere"))
    failed = edited.project.build("tool")
    assert failed.returncode == 1
    assert "move it back, or run:" in failed.stderr
    assert edited.edit("--close", "tool").returncode == 0


def test_edit_that_is_killed_leaves_no_half_made_tree(edited: Edited) -> None:
    edited.begin()
    edited.build()
    edited.morph.write_text(MORPH.replace("- make\n", "- make; sleep 60\n", 1))
    (edited.tree / "one.txt").write_text("eins\n")
    done = edited.project.build("tool", "--build-timeout", "1")
    assert done.returncode == 3
    edited.morph.write_text(MORPH)
    assert edited.build() == ["CONFIGURES", "MAKES one.out from eins", "MAKES two.out from two"]


def test_edit_deploy_builds_and_installs(edited: Edited, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/one.out").write_text("of the system\n")
    (tmp_path / "ssh").mkdir()
    edited.begin()
    (edited.tree / "one.txt").write_text("eins\n")
    with machine(tmp_path / "ssh", free_ports()) as (host, path):

        def deploy(*args: str) -> subprocess.CompletedProcess[str]:
            command = ("edit", "tool", "--deploy", f"{host}{root}", *args)
            return edited.project.run(*command, environ={"PATH": path})

        done = deploy()
        assert done.returncode == 0, done.stderr
        assert "tool is built: 1 built" in done.stdout
        assert "replaced /bin/one.out\nadded /bin/two.out\ntool: 2 files on ssh://" in done.stdout
        assert (root / "bin/one.out").read_text() == "eins\n"
        undone = deploy("--undo")
        assert undone.returncode == 0, undone.stderr
        assert undone.stdout.startswith("restored /bin/one.out\nremoved /bin/two.out\n")
    assert (root / "bin/one.out").read_text() == "of the system\n"
    assert not (root / "bin/two.out").exists()
    gone = edited.edit("tool", "--deploy", "nobody@127.0.0.1:/x", "--keep")
    assert "--keep belongs to --close" in gone.stderr
    assert "is no machine" in edited.edit("tool", "--deploy=-x").stderr


def test_edit_reads_the_work_tree_once(edited: Edited, tmp_path: Path) -> None:
    """A build, and a deployment, run few gits: each takes milliseconds, and finds the same."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "gits"
    (tools / "git").write_text(f'#!/bin/sh\necho x >> {log}\nexec {shutil.which("git")} "$@"\n')
    (tools / "git").chmod(0o755)
    (tmp_path / "ssh").mkdir()
    edited.begin()
    edited.build()
    with machine(tmp_path / "ssh", free_ports()) as (host, path):
        commands = (
            ("build", "../systems/small.morph", "tool"),
            ("edit", "tool", "--deploy", f"{host}{tmp_path}/root"),
        )
        (tmp_path / "root").mkdir()
        for number, command in enumerate(commands):
            (edited.tree / "one.txt").write_text(f"change {number}\n")
            log.write_text("")
            done = edited.project.run(*command, environ={"PATH": f"{tools}:{path}"})
            assert done.returncode == 0, done.stderr
            assert "tool is built: 1 built" in done.stdout
            snapshot, difference = 6, 2
            assert len(log.read_text().split()) == snapshot + difference
    assert (tmp_path / "root/bin/one.out").read_text() == "change 1\n"


def test_edit_opens_a_shell_in_its_tree(edited: Edited) -> None:
    edited.begin()
    edited.build()
    shell = edited.project.run("shell", "tool", "--", "cat", "one.out")
    assert shell.stdout == "one\n", shell.stderr
    (edited.tree / "one.txt").write_text("eins\n")
    assert edited.build() == ["MAKES one.out from eins"], "the shell left it there"


class Archived(Edited):
    """The same chunk, whose source is an archive that a lorry imports."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self.lorry = project.root / "sources/tool.lorry"
        archive = project.root / "tool-1.0.tar"
        self.lorry.parent.mkdir()
        git(project.source, "archive", "--prefix=tool-1.0/", f"--output={archive}", "HEAD")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        self.lorry.write_text(
            f"tool:\n  type: tarball\n  url: {archive.as_uri()}\n"
            f"  version: '1.0'\n  sha256: {digest}\n"
        )
        stratum = project.root / "strata/things.morph"
        text = stratum.read_text().replace(f"file://{project.source}", "upstream:tool", 1)
        stratum.write_text(text.replace("ref: main", "ref: '1.0'", 1))

    def saved(self) -> list[str]:
        done = self.edit("tool", "--save", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["patches"])


@pytest.fixture
def archived(project: Project) -> Archived:
    return Archived(project)


def test_edit_save_writes_patches_of_the_lorry(archived: Archived) -> None:
    archived.begin()
    assert archived.saved() == []
    (archived.tree / "one.txt").write_text("eins\n")
    git(archived.tree, "commit", "-qam", "German: one")
    (archived.tree / "new.bin").write_bytes(bytes(range(256)))
    (archived.tree / "two.txt").unlink()
    assert archived.saved() == [
        "sources/patches/tool/0001-German-one.patch",
        "sources/patches/tool/0002-changes.patch",
    ]
    assert archived.saved() == [], "all is saved"
    (archived.tree / "one.txt").write_text("uno\n")
    git(archived.tree, "commit", "-qam", "Italian: one")
    assert archived.saved() == ["sources/patches/tool/0003-changes.patch"]
    git(archived.tree, "add", "--all")
    git(archived.tree, "commit", "-qm", "what was saved")
    (archived.tree / "one.txt").write_text("un\n")
    git(archived.tree, "commit", "-qam", "French: one")
    assert archived.saved() == ["sources/patches/tool/0004-French-one.patch"]
    (archived.tree / "two.txt").write_text("two\n")
    assert archived.saved() == ["sources/patches/tool/0005-changes.patch"]
    assert archived.build("--clean") == ["CONFIGURES", "MAKES one.out from un", ALL[2]]
    closed = archived.edit("--close", "tool")
    assert closed.returncode == 0, closed.stderr
    assert archived.build() == [], "the definitions have the same files now"
    assert archived.installed("one.out") == "un\n"


def test_edit_save_changes_nothing_that_cannot_be_imported(archived: Archived) -> None:
    archived.begin()
    before = archived.lorry.read_bytes()
    (archived.tree / "one.txt").write_text("eins\n")
    taken = archived.lorry.parent / "patches/tool/0001-changes.patch"
    taken.parent.mkdir(parents=True)
    taken.write_text("somebody's\n")
    refused = archived.edit("tool", "--save")
    assert refused.returncode == 1
    assert "0001-changes.patch: exists already" in refused.stderr
    taken.unlink()
    module = archived.tree / "module"  # a submodule, which no patch can make
    module.mkdir()
    git(module, "init", "-q")
    git(module, "commit", "--allow-empty", "-qm", "empty")
    git(archived.tree, "add", "module")
    refused = archived.edit("tool", "--save")
    assert refused.returncode == 1, refused.stderr
    assert archived.lorry.read_bytes() == before
    assert not taken.exists()


def test_edit_save_of_a_git_source(edited: Edited) -> None:
    edited.begin()
    (edited.tree / "one.txt").write_text("eins\n")
    refused = edited.edit("tool", "--save")
    assert refused.returncode == 1
    assert "is no archive that a lorry imports" in refused.stderr
    assert "commit and push" in refused.stderr
