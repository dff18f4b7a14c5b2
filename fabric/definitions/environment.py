"""Computes the environment of a build, which is the same at each build of a chunk."""

from __future__ import annotations

from fabric.definitions.graph import Step

#: The time that builds use, in seconds since 1970.
EPOCH = 683074800

_CPU = {
    "x86_32": "i686",
    "armv8l64": "aarch64",
    "armv8b64": "aarch64_be",
    "mips64b": "mips64",
    "mips64l": "mips64el",
    "mips32b": "mips",
    "mips32l": "mipsel",
}
#: The end of every PATH.  Outside a staging area, the host's PATH replaces it.
SYSTEM_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"

#: Variables that `hardening` of DEFAULTS may set.  In a build, `$PWD` in them is the source tree.
FLAGS = frozenset(
    {
        "CFLAGS",
        "CGO_CFLAGS",
        "CGO_CXXFLAGS",
        "CGO_LDFLAGS",
        "CPPFLAGS",
        "CXXFLAGS",
        "FCFLAGS",
        "FFLAGS",
        "GOFLAGS",
        "LDFLAGS",
        "OBJCFLAGS",
        "RUSTFLAGS",
    }
)

#: What makes programs that honor it give the same result each time.
_REPRODUCIBLE = {
    "SOURCE_DATE_EPOCH": str(EPOCH),
    # Otherwise, compiled Python and generated Perl differ from run to run.
    "PYTHONHASHSEED": "0",
    "PERL_HASH_SEED": "0",
}

INTEGRATION_PATH = "/bin:/usr/bin:/sbin:/usr/sbin"
#: All variables of a system's integration scripts.
INTEGRATION = {"PATH": INTEGRATION_PATH, **_REPRODUCIBLE}

_FIXED = {
    "TERM": "dumb",
    "SHELL": "/bin/sh",
    "USER": "tomjon",  # part of the format: results may contain it
    "USERNAME": "tomjon",
    "LOGNAME": "tomjon",
    "LC_ALL": "C",
    "HOME": "/tmp",
    "TZ": "UTC",
    **_REPRODUCIBLE,
}


def target(arch: str, vendor: str) -> str:
    """The GNU triplet of an architecture: ``x86_64-baserock-linux-gnu``."""
    abi = "eabi" if arch.startswith(("armv5", "armv7")) else ""
    if arch.startswith("mips64"):
        abi = "abi64"
    return f"{_CPU.get(arch, arch)}-{vendor}-linux-gnu{abi}"


def environment(step: Step, arch: str) -> dict[str, str]:
    """All variables of a chunk's build but MAKEFLAGS, which differs between commands.

    PATH has the ``bin`` of each prefix of the chunk's dependencies, sorted, and then `SYSTEM_PATH`.
    In bootstrap and test mode, the builder puts the path of the staging area before each of the
    former, and replaces the latter by the host's PATH.  DESTDIR is a path in the sandbox, where the
    chunk is built at ``/NAME.build``.
    """
    path = [f"{prefix.rstrip('/')}/bin" for prefix in step.path_prefixes]
    return {
        **_FIXED,
        **(step.recipe.flags if step.recipe else {}),
        "MORPH_ARCH": arch,
        "TARGET": target(arch, "baserock"),
        "TARGET_STAGE1": target(arch, "bootstrap"),
        "PREFIX": step.prefix,
        "DESTDIR": f"/{step.source_name}.inst",
        "PATH": ":".join([*path, SYSTEM_PATH]),
    }
