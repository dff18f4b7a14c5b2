"""The environment of builds: complete, and independent of this machine."""

from __future__ import annotations

import msgspec
import pytest
from definitions_kit import loaded, named, small, spec, stratum

from fabric.definitions.environment import SYSTEM_PATH, environment, target
from fabric.definitions.graph import Step


def step() -> Step:
    tools = "build-system: autotools\nbuild-mode: bootstrap\nprefix: /tools"
    after = "build-system: autotools\nbuild-depends: [a]\nprefix: /opt/"
    graph = loaded(small(x=stratum("x", spec("a", tools), spec("b", after))))
    return named(graph, "b")


def test_environment_is_complete() -> None:
    assert environment(step(), "x86_64") == {
        "TERM": "dumb",
        "SHELL": "/bin/sh",
        "USER": "tomjon",
        "USERNAME": "tomjon",
        "LOGNAME": "tomjon",
        "LC_ALL": "C",
        "HOME": "/tmp",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": "683074800",
        "PYTHONHASHSEED": "0",
        "PERL_HASH_SEED": "0",
        "MORPH_ARCH": "x86_64",
        "TARGET": "x86_64-baserock-linux-gnu",
        "TARGET_STAGE1": "x86_64-bootstrap-linux-gnu",
        "PREFIX": "/opt/",
        "DESTDIR": "/b.inst",
        "PATH": "/tools/bin:/sbin:/usr/sbin:/bin:/usr/bin",
    }


def test_environment_path_is_in_the_order_of_prefixes() -> None:
    several = msgspec.structs.replace(step(), path_prefixes=("/", "/opt/", "/usr"))
    assert environment(several, "x86_64")["PATH"] == f"/bin:/opt/bin:/usr/bin:{SYSTEM_PATH}"


@pytest.mark.parametrize(
    ("arch", "triplet"),
    [
        ("x86_32", "i686-v-linux-gnu"),
        ("x86_64", "x86_64-v-linux-gnu"),
        ("ppc64", "ppc64-v-linux-gnu"),
        ("armv5l", "armv5l-v-linux-gnueabi"),
        ("armv7lhf", "armv7lhf-v-linux-gnueabi"),
        ("armv7b", "armv7b-v-linux-gnueabi"),
        ("armv8l64", "aarch64-v-linux-gnu"),
        ("armv8b64", "aarch64_be-v-linux-gnu"),
        ("mips64b", "mips64-v-linux-gnuabi64"),
        ("mips64l", "mips64el-v-linux-gnuabi64"),
        ("mips32b", "mips-v-linux-gnu"),
        ("mips32l", "mipsel-v-linux-gnu"),
    ],
)
def test_environment_target(arch: str, triplet: str) -> None:
    assert target(arch, "v") == triplet
