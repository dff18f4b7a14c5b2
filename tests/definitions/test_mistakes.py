"""Mistakes in definitions are reported once, with their lines, and all in one run."""

from __future__ import annotations

import pytest
from definitions_kit import DEFAULTS, loaded, mistakes, named, small, spec, stratum, system

CHUNK = "build-system: autotools"


def in_stratum(*specs: str, more: str = "") -> list[str]:
    return mistakes(small(x=stratum("x", *specs, more=more)))


def in_chunk(text: str) -> list[str]:
    """Mistakes of a chunk file, numbered from the line after its name and kind."""
    files = small(x=stratum("x", spec("a", "morph: strata/a.morph")))
    files["strata/a.morph"] = f"name: a\nkind: chunk\n{text}\n"
    return mistakes(files)


def in_system(text: str) -> list[str]:
    files = small(x=stratum("x", spec("a")))
    return mistakes({**files, "systems/s.morph": text})


def test_mistakes_are_reported_all_at_once() -> None:
    """Mistakes in several files are sorted by file and line."""
    files = small(
        x=stratum("x", spec("a", "morph: strata/a.morph"), spec("b", "build-sytem: autotools")),
        y=stratum("y", spec("c", "build-system: cmakee\nbuild-mode: tset")),
    )
    files["strata/a.morph"] = "name: a\nkind: chunk\nbuild-commands: make\nmax-jobs: 0\n"
    files["DEFAULTS"] = DEFAULTS.replace("[make]", "make")
    files["systems/s.morph"] = files["systems/s.morph"].replace("x86_64", "x68_64")
    assert mistakes(files) == [
        "DEFAULTS:5: build system autotools: 'build-commands' must be a list of commands: put '- '"
        " before it",
        "strata/a.morph:3: chunk a: 'build-commands' must be a list of commands: put '- ' before"
        " it",
        "strata/a.morph:4: chunk a: 'max-jobs' must be a number from 1 up, not the number 0",
        "strata/x.morph:9: chunk b does not say how it is built: name a 'build-system', or its file"
        " as 'morph'",
        "strata/x.morph:12: chunk b: unknown field 'build-sytem'; did you mean 'build-system'?",
        "strata/y.morph:9: chunk c: unknown build-mode 'tset'; did you mean 'test'?",
        "systems/s.morph:3: system s: unknown architecture 'x68_64'; did you mean 'x86_64'?",
    ]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("version: 7", ""),
        ("version: 8", ""),
        ("version: 9", "VERSION:1: version 9 of the definitions format is unknown, only 7"),
        ("version: -1", "VERSION:1: version -1 of the definitions format is unknown, only 7"),
        (
            "version: true",
            "VERSION:1: 'version' must be a number, like 8, not the truth value true",
        ),
        ("", "VERSION:1: must hold a mapping with the format's number, like 'version: 8'"),
        ("8", "VERSION:1: must hold a mapping with the format's number"),
        ("\nversion: 8\nverbose: 1", "VERSION:3: VERSION: unknown field 'verbose'"),
        ("version: [", "VERSION:1: not YAML"),
    ],
)
def test_version_mistakes(version: str, message: str) -> None:
    files = {**small(x=stratum("x", spec("a"))), "VERSION": version}
    if message:
        assert mistakes(files)[0].startswith(message)
    else:
        loaded(files)


@pytest.mark.parametrize("number", range(7))
def test_errors_of_old_versions_name_the_command_that_helps(number: int) -> None:
    files = {**small(x=stratum("x", spec("a"))), "VERSION": f"# ours\nversion: {number}"}
    assert mistakes(files) == [
        f"VERSION:2: version {number} of the definitions format is not supported:"
        " `fabric-initiator migrate` brings them to version 8"
    ]


def test_submodules_need_version_8() -> None:
    files = small(x=stratum("x", spec("a", f"{CHUNK}\nsubmodules: {{lib: {{url: u}}}}")))
    (found,) = (step.recipe for step in loaded(files).steps if step.kind == "chunk")
    assert found is not None
    assert found.submodules[0].url == "u"
    (message,) = mistakes({**files, "VERSION": "version: 7"})
    assert message.startswith("strata/x.morph:9: chunk a: 'submodules' came with version 8")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ref: 1234", "6: chunk a: 'ref' is the number 1234, not text: put it in quotes"),
        ("ref: 2015-01-02", "6: chunk a: 'ref' is the date 2015-01-02, not text: put it in quotes"),
        ("ref: ''", "6: chunk a: 'ref' is empty: give it a value"),
        ("ref: [a]", "6: chunk a: 'ref' must be text, not a list"),
        ("ref: r\nrepo: yes", "7: chunk a: 'repo' is the truth value true, not text"),
        ("ref: r\nrepo:", "7: chunk a: 'repo' is empty: give it a value, or remove the field"),
        ("repo: r", "5: chunk a: the field 'ref' is missing"),
        (
            "ref: --upload-pack=x",
            "6: chunk a: 'ref' is '--upload-pack=x': it may not have spaces, nor",
        ),
        ("ref: r\nrepo: 'a b'", "7: chunk a: 'repo' is 'a b': it may not have spaces, nor"),
        ("ref: r\nrepo: ''", "7: chunk a: 'repo' is empty: give it a value, or remove the field"),
        ("ref: r\nprefix: usr", "7: chunk a: the prefix 'usr' must be an absolute path"),
        ("ref: r\nprefix: /a:b", "7: chunk a: the prefix '/a:b' must be an absolute path"),
        ("ref: r\nbuild-mode: Test", "7: chunk a: unknown build-mode 'Test'; did you mean 'test'?"),
        (
            "ref: r\nbuild-depends: [1]",
            "7: chunk a: an item of 'build-depends' is the number 1: put",
        ),
        ("ref: r\nbuild-depends:", "7: chunk a: 'build-depends' must be a list, not nothing"),
        ("ref: r\nbuild-depends: [a]", "7: stratum x: chunks need each other in a cycle: a -> a"),
        ("ref: r\nartifacts: [a]", "7: chunk a: 'artifacts' must be a mapping, not a list"),
        (
            "ref: r\nartifacts: {a-bin: x-y}",
            "7: chunk a: 'a-bin' is not an artifact of it; did you mean",
        ),
        ("ref: r\nartifacts: {a-bins: x/y}", "7: chunk a: artifacts: 'x/y' is no name: no spaces"),
        (
            "ref: r\nsubmodules: {p: u}",
            "7: chunk a: submodule p must be a mapping, not the text 'u'",
        ),
        ("ref: r\nsubmodules: {../p: {url: u}}", "7: chunk a: submodule ../p: not a path inside"),
        ("ref: r\nsubmodules: {p: {}}", "7: chunk a: submodule p: the field 'url' is missing"),
        ("ref: r\nsubmodules: {p: {url: u, x: y}}", "7: chunk a: submodule p: unknown field 'x'"),
        (
            "ref: r\nbuild-deps: []",
            "7: chunk a: unknown field 'build-deps'; did you mean 'build-depe",
        ),
        ("ref: r\nref: q", "7: 'ref' is given twice, first in line 6: remove one of them"),
    ],
)
def test_spec_mistakes(lines: str, message: str) -> None:
    text = "\n  ".join(["- name: a", *lines.splitlines(), CHUNK])
    (found,) = mistakes(small(x=f"name: x\nkind: stratum\nbuild-depends: []\nchunks: \n{text}\n"))
    assert found.startswith(f"strata/x.morph:{message}")  # the spec starts in line 5


@pytest.mark.parametrize(
    ("name", "fits"),
    [("libstdc++", True), ("u-boot@aspeed", True), ("a b", False), ("a/b", False), (".a", False)],
)
def test_names_are_valid_in_files(name: str, fits: bool) -> None:
    files = small(x=stratum("x", spec(f"'{name}'")))
    if fits:
        assert named(loaded(files), name)
    else:
        assert mistakes(files)[0].startswith(f"strata/x.morph:5: chunk: '{name}' is no name")


def test_build_system_may_be_empty() -> None:
    (message,) = in_stratum(spec("a", "build-system: ''"))
    assert message == "strata/x.morph:8: chunk a: 'build-system' is empty: give it a value"


def test_stratum_pattern_that_is_invalid() -> None:
    more = "products: [{artifact: x-it, include: ['(']}]\n"
    assert in_stratum(spec("a"), more=more) == [
        "strata/x.morph:4: stratum x: product x-it: '(' is not a regular expression of RE2:"
        " missing ): ("
    ]


def test_description_may_be_empty() -> None:
    assert loaded(small(x=stratum("x", spec("a"), more="description:\n")))


def test_spec_must_be_a_mapping() -> None:
    (message,) = mistakes(small(x="name: x\nkind: stratum\nbuild-depends: []\nchunks: [zlib]\n"))
    assert message == (
        "strata/x.morph:4: stratum x: an entry of 'chunks' must be a mapping, not the text 'zlib'"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "build-commands: [1]",
            "3: chunk a: an item of 'build-commands' is the number 1: put it in",
        ),
        ("build-commands: [[x]]", "3: chunk a: an item of 'build-commands' is a list, not text"),
        ("build-commands: ['']", "3: chunk a: an item of 'build-commands' is empty"),
        ("build-commands:", "3: chunk a: 'build-commands' must be a list, not nothing"),
        (
            "build-system: autotool",
            "3: chunk a: unknown build system 'autotool'; did you mean 'auto",
        ),
        ("products: {}", "3: chunk a: 'products' must be a list, not a mapping"),
        (
            "products: [{artifact: a-x, include: x, exclude: []}]",
            "3: chunk a: product a-x: 'include' must be a list, not the text 'x'",
        ),
        (
            "products:\n- artifact: a-x\n  include:\n  - '.*'\n  - '['",
            "7: chunk a: product a-x: '[' is not a regular expression of RE2: missing ]: [",
        ),
        ("products: [{artifact: a b, include: []}]", "3: chunk a: product: 'a b' is no name"),
        ("devices: [{}]", "3: chunk a: device: 'gid' must be a whole number, not nothing"),
        ("system-integration: [x]", "3: chunk a: system-integration must be a mapping, not a list"),
        (
            "system-integration: {a-misc: [x]}",
            "3: chunk a: system-integration of a-misc must be a mapping, not a list",
        ),
        (
            "system-integration:\n  a-misc: {a/b: [x]}",
            "4: chunk a: system-integration of a-misc: 'a/b' is no name",
        ),
        (
            "system-integration:\n  a-misc: {00: [x]}",
            "4: a key must be text, and '00' is not: put it in quotes",
        ),
    ],
)
def test_chunk_morph_mistakes(text: str, message: str) -> None:
    assert in_chunk(text)[0].startswith(f"strata/a.morph:{message}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("type", "p", "'type' is c or b, not 'p'"),
        ("permissions", "0644", "'permissions' is the number 420, not text: put it in quotes"),
        ("permissions", "'0888'", "'0888' is not an octal number like '0644'"),
        ("major", "'1'", "'major' must be a whole number, not the text '1'"),
        ("gid", "4294967296", "'gid' must be a whole number, not the number 4294967296"),
        ("uid", "-1", "'uid' must be a whole number, not the number -1"),
        ("filename", "/../etc", "leave '..' out of its path"),
        ("filename", "/", "'filename' must be a path like /dev/null"),
        ("filename", "/dev/./null", "'filename' must be a path like /dev/null"),
        ("filename", "/dev//null", "'filename' must be a path like /dev/null"),
        ("colour", "red", "unknown field 'colour'"),
    ],
)
def test_device_mistakes(field: str, value: str, message: str) -> None:
    fields = {"filename": "/dev/x", "type": "c", "permissions": "'0600'"}
    fields |= dict.fromkeys(("major", "minor", "uid", "gid"), "0") | {field: value}
    text = ", ".join(f"{key}: {one}" for key, one in fields.items())
    (found,) = in_chunk(f"devices:\n- {{{text}}}")
    assert found == f"strata/a.morph:4: chunk a: device {fields['filename']}: {message}" or (
        found.startswith(f"strata/a.morph:4: chunk a: device {fields['filename']}: {message};")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\nkind: sistem", "2: unknown kind 'sistem'; did you mean 'system'?"),
        ("name: s", "1: morph: the field 'kind' is missing"),
        ("- name: s", "1: a morph is a mapping with 'name' and 'kind', not a list"),
        ("", "1: a morph is a mapping with 'name' and 'kind', not nothing"),
        ("kind: system\nname: s\narch: x86_64", "1: system s has no strata: list at least one"),
        ("kind: system\nname: s\narch: x86_64\nstrata: []", "4: system s has no strata"),
        ("kind: system\nname: s\narch: x86_64\nstrata: x", "4: system s: 'strata' must be a list"),
        ("kind: system\nname: s\nstrata: [x]", "1: system s: the field 'arch' is missing"),
        (
            "kind: chunk\nname: s",
            "1: this is a chunk, not a system: name a system that contains it",
        ),
        ("a: \x00", "1: not readable as text: control characters are not allowed"),
        ("a: 1\nb: \ud7ff\x07", "2: not readable as text: control characters are not allowed"),
        ("name: !!python/name:os.system x", "1: cannot read 'x': the tag"),
        ("name: !!seq x", "1: cannot read 'x': the tag"),
        ("name: !!int ''", "1: cannot read '': it is not a valid int"),
        ("name: !!bool x", "1: cannot read 'x': it is not a valid bool"),
        ("name: !!timestamp x", "1: cannot read 'x': it is not a valid timestamp"),
        (
            "name: s\ndescription: !thing {}\nkind: chunk",
            "2: the tag '!thing' means nothing here: leave it out",
        ),
        ("name: &n [*n]", "1: an alias here contains itself"),
        ("[" * 300 + "]" * 300, "1: nested more than 60 deep: no file needs that"),
        ("[" * 300_000 + "]" * 300_000, "1: nested more than 60 deep: no file needs that"),
        ("<<: 1", "1: '<<' takes a mapping"),
        ("? [a]\n: b", "1: a key must be text, and this one is a list or a mapping"),
    ],
)
def test_system_morph_mistakes(text: str, message: str) -> None:
    assert in_system(text)[0].startswith(f"systems/s.morph:{message}")


def test_morph_files_that_are_not_text() -> None:
    files: dict[str, str | bytes] = dict(small(x=stratum("x", spec("a"))))
    files["systems/s.morph"] = "name: s\n".encode("utf-16")
    assert mistakes(files) == [
        "systems/s.morph:1: not readable as text: it is UTF-16, save it as UTF-8"
    ]
    files["systems/s.morph"] = b"name: s\nkind: \xc3\x28\n"
    assert mistakes(files)[0].startswith("systems/s.morph:2: not readable as text: ")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("name: x", "5: system s: stratum x: the field 'morph' is missing"),
        (
            "name: x, morph: strata/x",
            "5: system s names the file strata/x, which does not exist; di",
        ),
        (
            "name: x, morph: ./strata/x.morph",
            "5: system s: stratum x: './strata/x.morph' is not a p",
        ),
        (
            "name: x, morph: strata/x.morph, artifact: []",
            "5: system s: stratum x: unknown field 'ar",
        ),
        (
            "name: x, morph: strata/x.morph, artifacts: []",
            "5: system s: stratum x: 'artifacts' is em",
        ),
        (
            "name: x, morph: strata/x.morph, alias: [a]",
            "5: system s: stratum x: 'alias' must be text",
        ),
        ("name: x, morph: DEFAULTS", "1: morph: the field 'kind' is missing"),
    ],
)
def test_strata_entry_mistakes(entry: str, message: str) -> None:
    file = "DEFAULTS.morph" if "DEFAULTS" in entry else "systems/s.morph"
    files = small(x=stratum("x", spec("a"))) | {"DEFAULTS.morph": DEFAULTS}
    found = mistakes({**files, "systems/s.morph": system(entry)})
    assert found[0].startswith(f"{file}:{message}")
    assert len(found) == 1


def test_morph_suffix_is_added_only_without_directory() -> None:
    files = small(x=stratum("x", spec("a")))
    files["top.morph"] = files.pop("systems/s.morph")
    assert loaded(files, "top").path == "top.morph"
    assert mistakes(files, "systems/top") == [
        "systems/top:1: there is no such file in the definitions"
    ]
