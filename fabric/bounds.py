"""Defines every bound of the project: its name, what it limits, and what happens past it.

No other module contains such a number.  ``python -m fabric.bounds`` prints the table of
docs/reference/bounds.md.  Each bound has a test marked ``@pytest.mark.bound("NAME")``.
"""

from __future__ import annotations

from typing import NamedTuple

DAY = 86400
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Bound(NamedTuple):
    """One row of the table; ``unit`` is "bytes", "seconds", or the plural of what is counted."""

    name: str
    limit: int
    unit: str
    what: str
    past: str


TABLE: list[Bound] = []


def _bound(name: str, limit: int, unit: str, what: str, past: str) -> int:
    TABLE.append(Bound(name, limit, unit, what, past))
    return limit


# -- messages ------------------------------------------------------------------------------

FRAME = _bound(
    "FRAME", 64 * MIB, "bytes", "a message between two machines", "the receiver drops it"
)
REMOTE_FRAME = _bound(
    "REMOTE_FRAME",
    4 * MIB,
    "bytes",
    "a message that reaches the broker over a network",
    "the sender's connection is cut",
)
BUILD_ORDER = _bound("BUILD_ORDER", 64 * KIB, "bytes", "a build order", "it is rejected")
INITIATOR_MESSAGE = _bound(
    "INITIATOR_MESSAGE",
    32 * KIB,
    "bytes",
    "any other message of an initiator to a broker over a network",
    "it is rejected",
)
COMPONENTS = _bound(
    "COMPONENTS", 1000, "names", "the components in a build order", "it is rejected"
)
SLOTS = _bound("SLOTS", 1024, "slots", "builds of a worker at a time", "its report is rejected")
WORKERS = _bound(
    "WORKERS",
    256,
    "workers",
    "workers of one machine without a controller",
    "the setting is refused",
)
REPORTED = _bound(
    "REPORTED",
    2 * SLOTS,
    "attempts",
    "running attempts in one report",
    "the worker takes no more; the broker rejects a report with more",
)
ATTEMPTS_A_SLOT = _bound(
    "ATTEMPTS_A_SLOT",
    32,
    "attempts",
    "attempts in one report, running or ended, for each slot of the worker",
    "the report is rejected",
)
UNACKNOWLEDGED = _bound(
    "UNACKNOWLEDGED",
    16,
    "outcomes",
    "outcomes that a worker repeats because a log is not whole, for each slot",
    "the worker gets no new attempts until some are acknowledged",
)
LOST_WORKERS = _bound(
    "LOST_WORKERS",
    1000,
    "workers",
    "lost workers whose attempts count if they return",
    "the attempts of the one lost first count as ended",
)
OUTCOMES = _bound(
    "OUTCOMES",
    128,
    "outcomes",
    "outcomes in one report",
    "the worker reports more later; the broker rejects a report with more",
)
OUTCOME_TEXT = _bound(
    "OUTCOME_TEXT",
    2000,
    "characters",
    "the message and the command of a failure",
    "the worker cuts and marks it; the log has all of it",
)
DAMAGED = _bound(
    "DAMAGED",
    64,
    "artifacts",
    "damaged artifacts that one attempt reports",
    "the worker reports the first of them",
)
FEATURES = _bound("FEATURES", 64, "features", "features of a worker", "its report is rejected")
TEXT = _bound("TEXT", 4096, "characters", "any other text of a peer", "its message is rejected")
BROKER_TEXT = _bound(
    "BROKER_TEXT",
    64 * KIB,
    "characters",
    "a text from the broker to an initiator",
    "the initiator drops the message",
)

# -- connections ---------------------------------------------------------------------------

DESCRIPTORS = _bound(
    "DESCRIPTORS",
    64 * KIB,
    "descriptors",
    "descriptors of a broker or an initiator, if the system grants them",
    "connections without a key are cut; passing failures are tried again",
)
DESCRIPTORS_KEPT = _bound(
    "DESCRIPTORS_KEPT",
    128,
    "descriptors",
    "descriptors that connections leave to the broker itself, or half of all",
    "the broker cuts connections that have not authenticated",
)
TOPIC = _bound("TOPIC", 64, "bytes", "the name of a log in a subscription", "the connection is cut")
TOPICS = _bound(
    "TOPICS",
    20_000,
    "subscriptions",
    "logs to which one name subscribes at a time",
    "the connection is cut",
)

CONNECTIONS = _bound(
    "CONNECTIONS",
    128,
    "connections",
    "connections of one initiator's name to a socket of the broker",
    "the one that was silent longest is cut; it may reconnect",
)
WORKER_CONNECTIONS = _bound(
    "WORKER_CONNECTIONS",
    8,
    "connections",
    "connections of one worker's name to a socket of the broker",
    "the one that was silent longest is cut; it may reconnect",
)
UNREAD = _bound(
    "UNREAD",
    64 * MIB,
    "bytes",
    "large messages in transit to one name, on all its connections",
    "no more are sent until some are read; lost ones are requested again",
)
TURN = _bound(
    "TURN",
    20,
    "milliseconds",
    "time for the messages of one name in one turn of the broker's loop",
    "the others of this turn are dropped; their sender repeats them",
)
VIEWING = _bound(
    "VIEWING",
    40,
    "milliseconds",
    "time of the broker for the messages of one viewer, in a second",
    "its messages are dropped until time has passed; it repeats them",
)
VIEWING_SAVED = _bound(
    "VIEWING_SAVED",
    250,
    "milliseconds",
    "such time that a viewer saves up while it is silent",
    "no more is saved",
)
STEPS_A_TURN = _bound(
    "STEPS_A_TURN",
    20_000,
    "steps",
    "news for one name in one turn of the broker's loop",
    "the rest of its requests get their news in a later turn",
)

CHANGES = _bound(
    "CHANGES",
    2 * TOPICS,
    "subscriptions",
    "changes of one name's subscriptions before all are received",
    "its connections for logs are cut, and refused for ten seconds",
)

METRICS_READERS = _bound(
    "METRICS_READERS",
    16,
    "connections",
    "connections for a broker's metrics",
    "the oldest is cut",
)
METRICS_SILENCE = _bound(
    "METRICS_SILENCE",
    10,
    "seconds",
    "a silent connection for metrics",
    "it is cut",
)

# -- builds --------------------------------------------------------------------------------

OPEN_REQUESTS = _bound(
    "OPEN_REQUESTS", 500, "builds", "a user's builds that have not ended", "a new build waits"
)
ALL_REQUESTS = _bound(
    "ALL_REQUESTS", 5000, "builds", "all builds that have not ended", "a new build waits"
)

OPEN_STEPS = _bound(
    "OPEN_STEPS",
    200_000,
    "steps",
    "steps of a user's builds that have not ended, if there are several",
    "the new build fails, and may be submitted again",
)

PENDING_ENTRIES = _bound(
    "PENDING_ENTRIES",
    1000,
    "entries",
    "requests, their ends, and commands that are not durable yet",
    "a request or command is dropped; its sender repeats it",
)
HELD_REPLIES = _bound(
    "HELD_REPLIES",
    2000,
    "replies",
    "replies that wait for records that are not durable yet",
    "a query is dropped; its sender repeats it",
)

FOLLOWED = _bound(
    "FOLLOWED",
    1000,
    "builds",
    "builds that one name follows at a time, on each connection",
    "the one polled longest ago is not followed until the next poll",
)

# -- viewing -------------------------------------------------------------------------------

PHASES = _bound(
    "PHASES", 32, "phases", "phases of an attempt with their times", "later ones are not listed"
)
ATTEMPTS_KEPT = _bound(
    "ATTEMPTS_KEPT",
    20_000,
    "attempts",
    "ended attempts that a broker, and its journal, remember",
    "the oldest is forgotten",
)
ATTEMPTS_SHOWN = _bound(
    "ATTEMPTS_SHOWN",
    1000,
    "attempts",
    "ended attempts in one answer",
    "the next answer has the others",
)
ATTEMPTS_RUNNING = _bound(
    "ATTEMPTS_RUNNING",
    10_000,
    "attempts",
    "attempts that run, in one answer",
    "the others are not shown",
)
ATTEMPT_TEXT = _bound(
    "ATTEMPT_TEXT",
    500,
    "characters",
    "the message of an ended attempt that a broker remembers",
    "it is cut and marked; the log has all of it",
)
GRAPHS_KEPT = _bound(
    "GRAPHS_KEPT",
    100_000,
    "steps",
    "steps of builds that are over, with what they need",
    "the oldest of several builds is shown without what its steps need",
)

# -- logs ----------------------------------------------------------------------------------

STEP_LOG = _bound(
    "STEP_LOG",
    8 * GIB,
    "bytes",
    "the log of one attempt at the broker",
    "the broker keeps nothing of it, and forwards no more",
)
LOGS_DISK = _bound(
    "LOGS_DISK",
    16 * GIB,
    "bytes",
    "files of logs at the broker",
    "ended logs are removed, the oldest first; then the longest",
)
LOGS_SPARE = _bound(
    "LOGS_SPARE",
    GIB,
    "bytes",
    "room that logs leave on the broker's disk, or a tenth of it",
    "ended logs are removed, the oldest first; then the longest",
)
LOGS_OPEN = _bound(
    "LOGS_OPEN",
    512,
    "files",
    "logs that an initiator has open, or half of its descriptors",
    "the others are written when some are whole",
)
LOG_READS = _bound(
    "LOG_READS",
    256,
    "queries",
    "pending queries of one name for logs in the store",
    "the broker drops the query; the initiator repeats it",
)
LOGS_READ = _bound(
    "LOGS_READ",
    16,
    "logs",
    "logs that an initiator requests from its broker at a time",
    "the others wait",
)

LOG_PIECE = _bound(
    "LOG_PIECE",
    256 * KIB,
    "bytes",
    "a published piece of a log, beside a head of 4 KiB",
    "its sender's connection is cut",
)
LOG_RANGE = _bound(
    "LOG_RANGE",
    MIB,
    "bytes",
    "a range of a log in one read",
    "a reader gets no more, and reads again; a worker's is rejected",
)

# -- the web page --------------------------------------------------------------------------

WEB_CONNECTIONS = _bound(
    "WEB_CONNECTIONS",
    4000,
    "connections",
    "connections to the web page",
    "a further one is cut",
)
WEB_QUESTIONS = _bound(
    "WEB_QUESTIONS",
    256,
    "questions",
    "different questions of the web page that wait for the broker",
    "a page says so; the browser asks again",
)
WEB_PIECES = _bound(
    "WEB_PIECES",
    32,
    "pieces",
    "published pieces of a log that wait in the web page",
    "the oldest is dropped, and read as a range",
)
WEB_LOGS = _bound(
    "WEB_LOGS",
    64,
    "logs",
    "logs that the web page copies at a time",
    "the one looked at longest ago is removed; if all are looked at, no more is shown",
)
WEB_LOGS_DISK = _bound(
    "WEB_LOGS_DISK",
    16 * GIB,
    "bytes",
    "copies of logs of the web page",
    "the one looked at longest ago is removed; if all are looked at, none grows",
)
WEB_FREE_DISK = _bound(
    "WEB_FREE_DISK",
    GIB,
    "bytes",
    "free disk that the web page's copies of logs leave to others, as the broker's journal",
    "the one looked at longest ago is removed; if all are looked at, none grows",
)
WEB_SEARCHES = _bound(
    "WEB_SEARCHES",
    16,
    "searches",
    "searches in logs that wait for their turn",
    "a further one is refused; the browser may ask again",
)
WEB_PATTERN = _bound(
    "WEB_PATTERN", 256, "bytes", "a text that is searched for in a log", "the search is refused"
)
WEB_PATTERN_MEMORY = _bound(
    "WEB_PATTERN_MEMORY",
    8 * MIB,
    "bytes",
    "a regular expression that is searched for in a log, compiled",
    "the search is refused",
)

# -- git repositories ----------------------------------------------------------------------

TREE_ENTRIES = _bound(
    "TREE_ENTRIES",
    1_000_000,
    "files and folders",
    "the tree of a commit, or a source archive",
    "the source is refused",
)
TREE_DEPTH = _bound(
    "TREE_DEPTH",
    200,
    "folders",
    "how deep a commit's tree, or an archive, nests",
    "the source is refused",
)
SOURCE_SIZE = _bound(
    "SOURCE_SIZE", 64 * GIB, "bytes", "the files of a commit or archive", "the source is refused"
)
LINK_TARGET = _bound(
    "LINK_TARGET",
    4096,
    "bytes",
    "a symbolic link in a commit or archive",
    "the source is refused",
)
LORRY_FILES = _bound(
    "LORRY_FILES",
    10_000,
    "files",
    "the folder `sources` of a commit",
    "the build order is rejected",
)
LORRIES_SIZE = _bound(
    "LORRIES_SIZE", 64 * MIB, "bytes", "all files in that folder", "the build order is rejected"
)
SNAPSHOT_FILE = _bound(
    "SNAPSHOT_FILE",
    64 * MIB,
    "bytes",
    "a new or changed file in a submitted work tree",
    "the build is not submitted",
)
GIT_OUTPUT = _bound(
    "GIT_OUTPUT",
    64 * MIB,
    "bytes",
    "output of git about a commit, or about its `.gitmodules`",
    "git is ended, and the source is refused",
)

# -- sources -------------------------------------------------------------------------------

REPOSITORY_NAME = _bound(
    "REPOSITORY_NAME", 200, "characters", "a repository's name in the trove", "it is refused"
)
REPOSITORY_URL = _bound("REPOSITORY_URL", 2000, "characters", "a git URL", "it is refused")
DOWNLOAD = _bound("DOWNLOAD", 32 * GIB, "bytes", "one downloaded file", "it is refused, or aborted")
DOWNLOAD_SILENCE = _bound(
    "DOWNLOAD_SILENCE",
    60,
    "seconds",
    "the time for `DOWNLOAD_PACE` bytes",
    "the connection is closed; the download resumes, three times at most",
)
DOWNLOAD_PACE = _bound(
    "DOWNLOAD_PACE",
    4 * KIB,
    "bytes",
    "bytes that must arrive in `DOWNLOAD_SILENCE` seconds",
    "see there",
)
INDEX_PAGE = _bound(
    "INDEX_PAGE", 64 * MIB, "bytes", "a page of a package index", "the index counts as broken"
)
PACKAGES_OUTPUT = _bound(
    "PACKAGES_OUTPUT", 256 * MIB, "bytes", "output of apt or pip", "it is ended; an error"
)
ARCHIVE_HEADER = _bound(
    "ARCHIVE_HEADER", MIB, "bytes", "an extended header in a tar archive", "the source is refused"
)
ARCHIVE_MEMORY = _bound(
    "ARCHIVE_MEMORY",
    GIB,
    "bytes",
    "memory to unpack an xz archive",
    "the source is refused",
)
SOURCE_PATH = _bound(
    "SOURCE_PATH", 3500, "bytes", "the path of a file in an archive", "the source is refused"
)
SOURCE_NAME = _bound(
    "SOURCE_NAME",
    255,
    "bytes",
    "each part of such a path, as on every disk",
    "the source is refused",
)

PATCH = _bound("PATCH", 8 * MIB, "bytes", "one patch of a source", "the source is refused")
PATCHES = _bound(
    "PATCHES",
    1000,
    "patches",
    "the `patches` of a lorry, or the series of a Debian source package",
    "the lorry, or the source, is refused",
)
PATCH_MEMORY = _bound(
    "PATCH_MEMORY", 2 * GIB, "bytes", "memory to apply one patch", "the source is refused"
)
PATCH_TIME = _bound(
    "PATCH_TIME",
    120,
    "seconds",
    "processor time to apply one patch",
    "the source is refused",
)
SOURCE_PARTS = _bound(
    "SOURCE_PARTS",
    100,
    "archives",
    "those that a lorry and its components put into one tree",
    "the lorry is refused",
)

# -- orders --------------------------------------------------------------------------------

RESOLVERS = _bound(
    "RESOLVERS",
    2,
    "build orders",
    "those that a controller resolves at once; one requester has one place fewer",
    "the others wait, and requesters take turns",
)
RESOLVE_TIME = _bound(
    "RESOLVE_TIME", 900, "seconds", "resolving a build order", "the request fails"
)
RESOLVE_MEMORY = _bound(
    "RESOLVE_MEMORY",
    4 * GIB,
    "bytes",
    "each process that resolves a build order",
    "the request fails",
)
RESOLVE_MESSAGE = _bound(
    "RESOLVE_MESSAGE", 4000, "characters", "the reason why a build order fails", "its end is shown"
)

# -- deploying -----------------------------------------------------------------------------

IMAGE_ENTRIES = _bound(
    "IMAGE_ENTRIES",
    10_000_000,
    "files and folders",
    "the root file system of an image that `verify --image` reads",
    "it is not compared",
)
INSTALL_MANIFEST = _bound(
    "INSTALL_MANIFEST", 4 * MIB, "bytes", "a manifest of `INSTALL_FILES`", "no image is made"
)
MEMORY = _bound(
    "MEMORY", 256 * MIB, "bytes", "a file of remembered facts on one machine", "it is written anew"
)
VARIABLES = _bound(
    "VARIABLES", 4 * MIB, "bytes", "the file of `image --variables`", "no image is made"
)
INSTALLED_FILES = _bound(
    "INSTALLED_FILES", GIB, "bytes", "all files that a manifest installs", "no image is made"
)
TEMPLATE_OUTPUT = _bound(
    "TEMPLATE_OUTPUT", 16 * MIB, "bytes", "the text of a manifest's templates", "no image is made"
)
TEMPLATE_MEMORY = _bound(
    "TEMPLATE_MEMORY", 512 * MIB, "bytes", "the memory to fill templates", "no image is made"
)
TEMPLATE_CPU = _bound(
    "TEMPLATE_CPU", 5, "seconds", "the time to fill a manifest's templates", "no image is made"
)
KEY_FILE = _bound("KEY_FILE", 4 * KIB, "bytes", "a file with a CURVE key", "the file is not a key")
SSH_KEY_FILE = _bound(
    "SSH_KEY_FILE", 16 * KIB, "bytes", "`NAME.pub` in `USERS`", "the cluster is refused"
)
PEOPLE = _bound("PEOPLE", 1000, "people", "people in the folder `USERS`", "the cluster is refused")
ADMITTED_KEYS = _bound(
    "ADMITTED_KEYS",
    10_000,
    "keys",
    "keys that a broker admits",
    "the rest, in the order of their names, are not admitted",
)

# -- builds --------------------------------------------------------------------------------

ARTIFACT_BYTES = _bound(
    "ARTIFACT_BYTES",
    64 * GIB,
    "bytes",
    "the files that a chunk installs, or of a system, holes included",
    "the step fails; a larger archive counts as damaged",
)
ARTIFACT_FILES = _bound(
    "ARTIFACT_FILES",
    1_000_000,
    "files",
    "files and directories that a chunk installs, or of a system",
    "the step fails; an archive with more counts as damaged",
)
ARTIFACT_PATH = _bound(
    "ARTIFACT_PATH",
    2 * KIB,
    "bytes",
    "a path in an artifact, and so the depth of its tree",
    "the step fails; an archive with a longer one counts as damaged",
)
PACKAGES_TABLE = _bound(
    "PACKAGES_TABLE",
    8 * MIB,
    "bytes",
    "`packages.tsv` in the source of an import chunk",
    "the step fails",
)
DEB_MEMBERS = _bound(
    "DEB_MEMBERS", 16, "members", "members of a .deb before that with its files", "the step fails"
)
SANDBOX_SHM = _bound(
    "SANDBOX_SHM", 1 * GIB, "bytes", "/dev/shm of a sandbox", "the build finds it full"
)
LOG_AT_ONCE = _bound(
    "LOG_AT_ONCE",
    8 * MIB,
    "bytes",
    "output of a build that is read before its limits are checked",
    "`log-limit`, `build-timeout` and cancelling are checked first",
)

# -- the initiator -------------------------------------------------------------------------

LOG_LIST = _bound(
    "LOG_LIST",
    16 * MIB,
    "bytes",
    "a file `.build-step-logs-*.part`, which names logs that are not whole",
    "the file and its logs are left alone",
)
ERROR_LINES = _bound(
    "ERROR_LINES",
    40,
    "lines",
    "an error on standard error",
    "similar lines are counted; `--debug` shows each",
)
FAILURES = _bound("FAILURES", 1000, "steps", "failures that `show` knows", "the oldest is removed")

# -- artifact store ------------------------------------------------------------------------

MANIFEST = _bound(
    "MANIFEST", 64 * MIB, "bytes", "a manifest that is read from a store", "it counts as damaged"
)
SIGNATURES = _bound(
    "SIGNATURES", 16, "signatures", "the signatures of a manifest", "it counts as damaged"
)
NAMELESS_SIGNATURES = _bound(
    "NAMELESS_SIGNATURES",
    4,
    "signatures",
    "the signatures of a manifest without the id of a key: each is tried with all trusted keys",
    "it counts as damaged",
)
SIGNATURE = _bound(
    "SIGNATURE",
    4 * KIB,
    "characters",
    "a signature of a manifest, or the id of its key",
    "it counts as damaged",
)
SIGNING_KEY_FILE = _bound(
    "SIGNING_KEY_FILE", 4 * KIB, "bytes", "a file with a key of signatures", "it is not a key"
)
TRUSTED_KEYS = _bound(
    "TRUSTED_KEYS", 1000, "keys", "the keys of signatures in `trusted-keys`", "none counts"
)
HINT = _bound("HINT", KIB, "bytes", "a hint in a store", "it does not count")
SHARED_STEPS = _bound(
    "SHARED_STEPS",
    200_000,
    "steps",
    "steps that one `artifact push` or `pull` copies",
    "nothing is copied",
)
SUBSTITUTERS = _bound(
    "SUBSTITUTERS", 16, "stores", "the setting `substituters`", "the setting is refused"
)
SUBSTITUTE_ANSWER = _bound(
    "SUBSTITUTE_ANSWER",
    5,
    "seconds",
    "the time in which a substituter answers whether it has a step",
    "it is not asked for `SUBSTITUTER_REST`",
)
SUBSTITUTE_TIME = _bound(
    "SUBSTITUTE_TIME",
    3600,
    "seconds",
    "the time for the artifacts of a step from substituters, which is also at most the time that"
    " the step took to build there, or `SUBSTITUTE_ANSWER`",
    "the step is built, and the substituter is not asked for `SUBSTITUTER_REST`",
)
SUBSTITUTER_REST = _bound(
    "SUBSTITUTER_REST",
    300,
    "seconds",
    "the time in which no program of a machine asks a substituter that did not answer",
    "it is asked again",
)
OUTPUTS_KNOWN = _bound(
    "OUTPUTS_KNOWN", 20_000, "steps", "outputs that a broker remembers", "they are read again"
)
UPLOAD = _bound(
    "UPLOAD",
    DAY,
    "seconds",
    "the time between the upload of a blob to a remote store and that of its manifest",
    "`gc` may remove the blob",
)
DAV_LISTING = _bound(
    "DAV_LISTING",
    64 * MIB,
    "bytes",
    "a WebDAV server's list of a folder, where obstore is not installed",
    "an error; the store is used, but not cleaned",
)
USE_LIST = _bound(
    "USE_LIST",
    64 * MIB,
    "bytes",
    "one machine's notes of use of a remote store for one day",
    "`gc` ignores them",
)
USES_KEPT = _bound(
    "USES_KEPT",
    90 * DAY,
    "seconds",
    "the age of notes of use in a remote store",
    "`gc` removes them",
)
RESERVED = _bound(
    "RESERVED",
    2 * DAY,
    "seconds",
    "the time for which a build on one machine reserves keys in a remote store",
    "`gc` may remove their artifacts",
)


# -- definitions ---------------------------------------------------------------------------

NAME = _bound(
    "NAME",
    128,
    "bytes",
    "a name in the definitions: of a chunk, stratum, system, artifact",
    "the definitions are refused",
)
DEFINITIONS_FILE = _bound(
    "DEFINITIONS_FILE", 8 * MIB, "bytes", "a file of definitions", "the definitions are refused"
)
STRATA = _bound(
    "STRATA", 2000, "strata", "a system and everything that it needs", "the system is refused"
)
CHUNKS = _bound(
    "CHUNKS", 5000, "chunks", "a system and everything that it needs", "the system is refused"
)
YAML_NODES = _bound(
    "YAML_NODES",
    250_000,
    "nodes",
    "a file of YAML with its aliases expanded; 64 characters of text are a node",
    "the file is refused",
)
YAML_DEPTH = _bound("YAML_DEPTH", 60, "levels", "nesting in a file of YAML", "the file is refused")
YAML_NUMBER = _bound(
    "YAML_NUMBER", 64, "characters", "a number in a file of YAML", "the file is refused"
)
FLAGS = _bound(
    "FLAGS",
    4 * KIB,
    "bytes",
    "the flags of one variable in `hardening` of DEFAULTS",
    "the definitions are refused",
)
PATTERNS = _bound(
    "PATTERNS",
    500,
    "patterns",
    "the split rules of a morph, or the default ones",
    "the definitions are refused",
)
PATTERN_MEMORY = _bound(
    "PATTERN_MEMORY",
    512 * KIB,
    "bytes",
    "a pattern of a split rule, compiled",
    "the definitions are refused",
)

WEB_VIEWERS = _bound(
    "WEB_VIEWERS",
    1000,
    "viewers",
    "open pages that are kept up to date",
    "a further page stays as it is, says so, and tries again",
)
WEB_LIVE_PAGES = _bound(
    "WEB_LIVE_PAGES",
    100,
    "pages",
    "different pages that are kept up to date",
    "a further page stays as it is, says so, and tries again",
)
WEB_ROWS = _bound(
    "WEB_ROWS", 100, "rows", "rows of a list on one page", "the others are on further pages"
)
WEB_STEPS = _bound(
    "WEB_STEPS",
    500_000,
    "steps",
    "steps of builds that the web page keeps, unless they are of one build",
    "it forgets the build that was looked at longest ago, and asks for all of it again",
)
WEB_ATTEMPTS = _bound(
    "WEB_ATTEMPTS",
    40_000,
    "attempts",
    "attempts that the web page keeps of the builds looked at",
    "it forgets the build that was looked at longest ago, and of one build the oldest attempts",
)
WEB_LANES = _bound(
    "WEB_LANES",
    256,
    "slots",
    "lanes of a timeline",
    "the slots that were used least are not drawn; the page says how many",
)
WEB_BARS = _bound(
    "WEB_BARS",
    2000,
    "bars",
    "bars of a timeline, about",
    "short attempts that follow each other are drawn as one; the page says so",
)
WEB_MANIFESTS = _bound(
    "WEB_MANIFESTS",
    50_000,
    "steps",
    "built steps of the store that the web page knows by name",
    "it does not list those that were used longest ago",
)

# -- bills of materials ----------------------------------------------------------------------

SBOM_COMPONENTS = _bound(
    "SBOM_COMPONENTS",
    20_000,
    "components",
    "chunks and packages in the SBOM of a system",
    "no SBOM is made",
)
SBOM_LICENSE = _bound(
    "SBOM_LICENSE",
    4 * KIB,
    "bytes",
    "a license expression that is found in a source",
    "the SBOM has no license for it, and names the files that speak of licenses",
)
SBOM_TEXT = _bound(
    "SBOM_TEXT",
    1 * MIB,
    "bytes",
    "a file that is read to find a license",
    "it is named, and not read",
)
SBOM_TEXTS = _bound(
    "SBOM_TEXTS",
    64,
    "files",
    "files of a source that are read to find its license",
    "the SBOM has no license for it, and names these files",
)
SBOM_FILES = _bound(
    "SBOM_FILES",
    200_000,
    "files",
    "files of a system that an SBOM lists",
    "no SBOM with files is made",
)
VEX_STATEMENTS = _bound(
    "VEX_STATEMENTS",
    1000,
    "statements",
    "statements of a lorry about vulnerabilities",
    "the definitions have a mistake",
)
VEX_TEXT = _bound(
    "VEX_TEXT", 4 * KIB, "bytes", "the text of such a statement", "the definitions have a mistake"
)
SEARCHED_STEPS = _bound(
    "SEARCHED_STEPS",
    200_000,
    "steps",
    "built steps of the store that are searched for a component",
    "those that were used longest ago are not, and a line says so",
)
FEED = _bound("FEED", 512 * MIB, "bytes", "a feed of vulnerabilities that is read", "it is refused")
FEED_RECORDS = _bound(
    "FEED_RECORDS",
    500_000,
    "records",
    "vulnerabilities in a feed",
    "it is refused",
)


# -- comparing two builds ------------------------------------------------------------------

COMPARED = _bound(
    "COMPARED",
    GIB,
    "bytes",
    "files of a step, of both builds, whose difference `certify` shows",
    "those past it are only named",
)
DIFFOSCOPE = _bound(
    "DIFFOSCOPE",
    300,
    "seconds",
    "a run of diffoscope",
    "the first differing bytes are shown instead",
)
DIFFOSCOPE_TEXT = _bound(
    "DIFFOSCOPE_TEXT",
    64 * KIB,
    "bytes",
    "the text of diffoscope about a step",
    "diffoscope cuts it; if it does not, the first differing bytes are shown instead",
)
DIFFOSCOPE_FILES = _bound(
    "DIFFOSCOPE_FILES",
    2 * GIB,
    "bytes",
    "what diffoscope unpacks",
    "it reports the bytes of what it cannot unpack",
)
DIFFOSCOPE_MEMORY = _bound(
    "DIFFOSCOPE_MEMORY",
    4 * GIB,
    "bytes",
    "address space of a process of diffoscope",
    "that process fails, and the first differing bytes are shown instead",
)

# -- engines of remote execution -----------------------------------------------------------

ENGINE_MESSAGE = _bound(
    "ENGINE_MESSAGE", 16 * MIB, "bytes", "a message of an engine", "the attempt ends as a fault"
)
ENGINE_BATCH = _bound(
    "ENGINE_BATCH",
    3 * MIB,
    "bytes",
    "small files sent to an engine in one message, if it takes that many",
    "the rest goes in the next message",
)
ENGINE_DIGESTS = _bound(
    "ENGINE_DIGESTS",
    20_000,
    "digests",
    "files about which an engine is asked in one message",
    "the rest goes in the next message",
)
ENGINE_DEPTH = _bound(
    "ENGINE_DEPTH",
    256,
    "directories",
    "the depth of a staging area that is sent to an engine",
    "the step runs on the worker",
)
ENGINE_TREES = _bound(
    "ENGINE_TREES",
    256 * MIB,
    "bytes",
    "digests of layers that a worker with an engine has in memory, and of their combinations",
    "those used longest ago are read again from the disk, or made again",
)
ENGINE_NODES = _bound(
    "ENGINE_NODES",
    32 * MIB,
    "bytes",
    "directories that several layers have, which a worker with an engine has taken apart in memory;"
    " they take five times as much",
    "those used longest ago are taken apart again",
)
ENGINE_KNOWN = _bound(
    "ENGINE_KNOWN",
    1_000_000,
    "digests",
    "blobs and trees that a worker knows its engine to have",
    "it forgets them, and asks again",
)
ENGINE_FILE = _bound(
    "ENGINE_FILE",
    64 * KIB,
    "bytes",
    "a file of `execute-ca`, `execute-certificate`, `execute-certificate-key` or `execute-token`",
    "the attempt ends as a fault",
)
ENGINE_REPORTS = _bound(
    "ENGINE_REPORTS",
    MIB,
    "bytes",
    "the reports that a step on an engine prints to standard error",
    "the attempt ends as a fault",
)
ENGINE_RESULT = _bound(
    "ENGINE_RESULT",
    72 * GIB,
    "bytes",
    "the tar file with the result of a step on an engine",
    "the step fails",
)
ENGINE_PATIENCE = _bound(
    "ENGINE_PATIENCE",
    30,
    "seconds",
    "an engine that does not answer, or has lost an action",
    "the attempt ends as a fault, and the worker refuses steps until the engine answers",
)
ENGINE_QUEUE = _bound(
    "ENGINE_QUEUE",
    DAY,
    "seconds",
    "the time that a step waits at an engine before it runs",
    "it is cancelled there, and the attempt ends as a fault",
)


def _in_words(bound: Bound) -> str:
    if bound.unit == "bytes":
        for size, word in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if bound.limit % size == 0:
                return f"{bound.limit // size:,} {word}"
    return f"{bound.limit:,} {bound.unit}"


def table() -> str:
    """The bounds as a Markdown table, in the order of this file."""
    rows = ["| name | bound | what it limits | what happens past it |", "|---|---|---|---|"]
    rows += [f"| `{b.name}` | {_in_words(b)} | {b.what} | {b.past} |" for b in TABLE]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
