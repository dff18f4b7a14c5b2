"""Stock scanners find the planted vulnerabilities in the SBOM of the example system, and no others.

sbom-cve-check matches CPE names in SPDX 3 documents with records of the National Vulnerability
Database.  vdb, the engine of OWASP dep-scan, matches package URLs in CycloneDX documents with
records of OSV.  Neither has a network here, so each has the planted records only.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fabric.definitions.load import load

ROOT = Path(__file__).parents[2]
SYSTEM = "systems/minimal-system-x86_64.morph"
BIN = Path(sys.executable).parent


class Place(NamedTuple):
    """How vulnerability databases name a component."""

    purl: str
    cpe: str  # part, vendor and product
    since: str  # a version long before


#: Component -> its names: ten components with versions of several forms.
PLACES = {
    "zlib": Place("pkg:generic/zlib", "a:zlib:zlib", "1.2.0"),
    "xz": Place("pkg:generic/xz", "a:tukaani:xz", "5.0.0"),
    "ncurses": Place("pkg:generic/ncurses", "a:gnu:ncurses", "5.9"),
    "pcre2": Place("pkg:generic/pcre2", "a:pcre:pcre2", "10.0"),
    "ca-certificates": Place("pkg:pypi/certifi", "a:certifi:certifi", "2015.4.28"),
    "mbedtls": Place("pkg:generic/mbedtls", "a:arm:mbed_tls", "2.0.0"),
    "dropbear": Place("pkg:generic/dropbear", "a:dropbear_ssh_project:dropbear_ssh", "2011.54"),
    "libarchive": Place("pkg:generic/libarchive", "a:libarchive:libarchive", "3.0.0"),
    "less": Place("pkg:generic/less", "a:gnu:less", "358"),
    "linux": Place("pkg:generic/linux", "o:linux:linux_kernel", "2.6.0"),
}
VEX = """\
  vex:
  - vulnerability: {name}
    status: not_affected
    justification: vulnerable_code_not_present
    statement: minizip is not built
"""


class Record(NamedTuple):
    """A vulnerability of all versions from ``since`` to before ``fixed``."""

    name: str
    purl: str
    cpe: str
    since: str
    fixed: str

    def of_osv(self) -> dict[str, Any]:
        name = self.purl.rpartition("/")[2]
        ecosystem = "PyPI" if self.purl.startswith("pkg:pypi/") else "generic"
        events = [{"introduced": self.since}, {"fixed": self.fixed}]
        affected = {
            "package": {"ecosystem": ecosystem, "name": name, "purl": self.purl},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
        }
        return {"id": self.name, "summary": "planted", "affected": [affected]}

    def of_the_nvd(self) -> dict[str, Any]:
        match = {
            "vulnerable": True,
            "criteria": f"cpe:2.3:{self.cpe}:*:*:*:*:*:*:*:*",
            "versionStartIncluding": self.since,
            "versionEndExcluding": self.fixed,
        }
        return {
            "id": self.name,
            "vulnStatus": "Analyzed",
            "descriptions": [{"lang": "en", "value": "planted"}],
            "configurations": [{"nodes": [{"operator": "OR", "cpeMatch": [match]}]}],
        }


#: What a scanner reports: vulnerability, component, version.
Report = set[tuple[str, str, str]]


def versions() -> dict[str, str]:
    """The versions of the ten, as the strata name them."""
    graph = load(lambda path: (ROOT / path).read_bytes(), SYSTEM)
    found = {step.name: step.ref for step in graph.steps if step.kind == "chunk"}
    return {name: found[name] for name in PLACES}


def planted() -> dict[str, Record]:
    """A vulnerability of each of the ten, by component."""
    return {
        name: Record(f"CVE-2099-{number}", *PLACES[name], f"{version}.1")
        for number, (name, version) in enumerate(versions().items(), 1000)
    }


def decoys() -> Iterator[Record]:
    """Vulnerabilities of earlier and later versions of the ten, and of others with such names."""
    for number, (name, version) in enumerate(versions().items()):
        purl, cpe, since = PLACES[name]
        part, vendor, product = cpe.split(":")
        kind, _, last = purl.rpartition("/")
        for place, (other_purl, other_cpe, begin, end) in enumerate(
            (
                (purl, cpe, since, version),
                (purl, cpe, f"{version}.1", f"{version}.2"),
                (f"pkg:npm/{last}", f"{part}:{vendor}_others:{product}", since, f"{version}.1"),
                (f"{kind}/{last}-tools", f"{part}:{vendor}:{product}-tools", since, f"{version}.1"),
            )
        ):
            yield Record(
                f"CVE-2099-{2000 + 10 * number + place}", other_purl, other_cpe, begin, end
            )


def expected(records: dict[str, Record]) -> Report:
    return {(record.name, name, versions()[name]) for name, record in records.items()}


class Documents:
    """Definitions with the example system, and its SBOMs."""

    def __init__(self, root: Path, more: str = "") -> None:
        self.root = root
        for name in ("VERSION", "DEFAULTS"):
            shutil.copy(ROOT / name, root)
        for name in ("systems", "strata", "sources"):
            shutil.copytree(ROOT / name, root / name, symlinks=True)
        lorry = root / "sources/core-libs.lorry"
        lorry.write_text(lorry.read_text().replace("zlib:\n", f"zlib:\n{more}", 1))
        self.spdx, self.cyclonedx = root / "s.spdx.json", root / "s.cdx.json"
        for file, form in ((self.spdx, "spdx-json"), (self.cyclonedx, "cyclonedx-json")):
            self.run("sbom", SYSTEM, "--planned", "--format", form, "--to", str(file))

    def components(self) -> list[dict[str, Any]]:
        """The components in the CycloneDX document."""
        found: list[dict[str, Any]] = json.loads(self.cyclonedx.read_bytes())["components"]
        return found

    def run(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fabric.initiator", *args],
            cwd=self.root,
            env={**os.environ, "FABRIC_CACHE": f"{self.root}/cache", "FABRIC_CONFIG": "/dev/null"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return Documents(tmp_path_factory.mktemp("documents"))


def without_network(words: Sequence[str | Path], scratch: Path, **environ: str) -> str:
    """The standard output of a program that sees no network, and writes below ``scratch`` only."""
    sandbox = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    sandbox += ["--dev", "/dev", "--proc", "/proc", "--bind", str(scratch), str(scratch)]
    done = subprocess.run(
        [*sandbox, *words],
        cwd=scratch,
        env={**os.environ, "HOME": str(scratch), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_cpe(documents: Documents, records: Sequence[Record], scratch: Path) -> dict[str, Report]:
    """What sbom-cve-check reports, by the status of the vulnerability."""
    for record in records:
        folder = scratch / "nvd/CVE-2099" / f"{record.name[:-2]}xx"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{record.name}.json").write_text(json.dumps(record.of_the_nvd()))
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        author = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *author, *words], cwd=scratch / "nvd", check=True)
    command: list[str | Path] = [BIN / "sbom-cve-check", "--sbom", documents.spdx]
    command += ["--export-type", "csv", "--export-path", "found.csv"]
    command += ["--ignore-default-config", "--offline-mode", "--disable-auto-updates"]
    # its table of aliases takes the linux_kernel of any vendor for Linux
    command += ["--no-builtin-products-db", "--add-db", "cve-db-nvd-fkie", "nvd"]
    without_network(command, scratch)
    refs = {one["name"]: one["bom-ref"] for one in documents.components() if "cpe" in one}
    found: dict[str, Report] = {}
    with (scratch / "found.csv").open() as file:
        for row in csv.DictReader(file):
            one = (row["vuln-id"], refs[row["package names"]], row["version"])
            found.setdefault(row["status"], set()).add(one)
    return found


#: Stores the records of the file in the database.
_STORE = """
import json, sys
from vdb.lib import db
from vdb.lib.osv import OSVSource
source = OSVSource()
for record in json.load(open(sys.argv[1])):
    source.store(source.convert(record))
db.optimize_and_close_all()
"""


def by_purl(documents: Documents, records: Sequence[Record], scratch: Path) -> Report:
    """What vdb reports."""
    feed(records, scratch)
    (scratch / "database").mkdir()
    environ = {"VDB_HOME": str(scratch / "database"), "COLUMNS": "1000"}
    environ["VDB_IGNORE_LINUX_KERNEL"] = "false"  # a database has no records of it by default
    without_network([sys.executable, "-c", _STORE, "feed.json"], scratch, **environ)
    table = without_network([BIN / "vdb", "--bom", documents.cyclonedx], scratch, **environ)
    names = {
        one["purl"]: (one["bom-ref"], one["version"])
        for one in documents.components()
        if "purl" in one
    }
    rows = re.findall(r"^│ *(CVE-\S+) *│ *(\S+) *│", table, re.MULTILINE)
    return {(name, *names[purl]) for name, purl in rows}


def feed(records: Sequence[Record], scratch: Path) -> Path:
    file = scratch / "feed.json"
    file.write_text(json.dumps([record.of_osv() for record in records]))
    return file


def affected(documents: Documents, records: Sequence[Record], scratch: Path) -> Report:
    """What ``fabric-initiator affected`` reports of the same system."""
    data = json.loads(documents.run("affected", "--feed", str(feed(records, scratch)), "--json"))
    return {
        (name, one["component"], one["version"])
        for one in data["affected"]
        if one["system"] == SYSTEM
        for name in one["vulnerabilities"]
    }


Scan = Callable[[Documents, Sequence[Record], Path], Report]
SCANS: dict[str, Scan] = {
    "sbom-cve-check": lambda *given: by_cpe(*given).get("affected", set()),
    "vdb": by_purl,
    "affected": affected,
}
EACH = pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)


@EACH
def test_all_that_is_planted_is_found_and_no_more(
    documents: Documents, tmp_path: Path, scan: Scan
) -> None:
    ten = planted()
    assert len(ten) == 10
    assert scan(documents, [*ten.values(), *decoys()], tmp_path) == expected(ten)


@EACH
def test_an_eleventh_is_found(documents: Documents, tmp_path: Path, scan: Scan) -> None:
    ten = planted()
    more = ten["xz"]._replace(name="CVE-2099-3000")
    found = scan(documents, [*ten.values(), more], tmp_path)
    assert found == expected(ten) | expected({"xz": more})


def test_a_statement_in_an_spdx_document_counts(tmp_path: Path) -> None:
    ten = planted()
    (tmp_path / "definitions").mkdir()
    documents = Documents(tmp_path / "definitions", VEX.format(name=ten["zlib"].name))
    found = by_cpe(documents, list(ten.values()), tmp_path)
    cleared = expected({"zlib": ten.pop("zlib")})
    assert found == {"affected": expected(ten), "not_affected": cleared}
