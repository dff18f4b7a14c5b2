"""Explains a backend's exceptions to users."""

from __future__ import annotations

import contextlib
import errno
import os
import re

from fabric.errors import NO_ROOM, command

_PASSWORD = re.compile(r"`artifacts-password`( \(or FABRIC_ARTIFACTS_PASSWORD\))?")
#: Pattern of a store's URL and obstore's message -> advice.
_MEANINGS = (
    (
        r"InvalidCertificate\(\s*(Expired|NotValidYet)",
        "its certificate is not valid at the time that this machine's clock shows: set the clock if"
        " that is wrong, or renew the certificate",
    ),
    (
        "InvalidCertificate",
        "its certificate is not trusted: have `artifacts-ca` name the file with the certificate of"
        " the authority that vouches for it",
    ),
    (
        "^(?!http)(?s:.*)status code: 40[13]",
        "check the credentials in the environment (those of s3: AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY)",
    ),
    (
        "(PUT|MKCOL|DELETE) .*status code: 403",
        "the store refuses to store and to delete with this password: `artifacts-password` (or"
        " FABRIC_ARTIFACTS_PASSWORD) must name a file with the password of one who may",
    ),
    ("status code: 40[13]", "check `artifacts-password`"),
    (
        "(UNAUTHENTICATED|PERMISSION_DENIED): ",
        "check `artifacts-password`, and that the server takes entries of its action cache from"
        " clients",
    ),
    ("UNIMPLEMENTED: ", "it has no action cache of the Remote Execution API, version 2"),
    ("INVALID_ARGUMENT: ", "check the instance, which is the path of the URL"),
    (
        "status code: 413",
        "the server takes no files of that size: nginx has client_max_body_size for that",
    ),
    ("status code: 507", "the server's disk is full: free some room there"),
    (
        "PUT .*status code: 500",
        "the server failed, and its own log tells why; often its disk is full",
    ),
    ("PROPFIND", "only a WebDAV server that answers PROPFIND can be listed and cleaned from here"),
)

#: The text of obstore around the cause: the operation, which its caller names better, and the
#: page that a server sends with its refusal.
_AROUND = re.compile(
    r"^.*Error performing \S+ \S+ - (HTTP error: )?(Server returned non-2xx status code: )?|<.*"
)


#: Characters of a message that are shown.
SHOWN = 400


def brief(error: Exception) -> str:
    """An exception's message, without obstore's debug output and HTML pages.

    A server may have sent any of it, so it is short, and does nothing to a terminal.
    """
    text = "".join(each if each.isprintable() else "?" for each in _message(error))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    first, _, details = str(error).partition("\n")
    first = re.sub(r" in [\d.]+[mµn]?s\b|, after \d+ retries.*retry_timeout: \S+", "", first)
    cause = re.search(r'message: "([^"]+)"|(InvalidCertificate)', details)
    first = _AROUND.sub("", " ".join(first.split())).rstrip(": ")
    return (f"{first}: {cause[1] or cause[2]}" if cause else first) or type(error).__name__


def name_of(named: str) -> str:
    """The setting or option that names a store, in a sentence."""
    return f"`{named}`" if named.startswith("-") else f"the setting `{named}`"


def password_of(named: str) -> str:
    """The setting or option that names the file with the password of such a store."""
    return "--password" if named.startswith("-") else "artifacts-password"


def advice(error: Exception, url: str, named: str = "artifacts") -> str:
    """Advice about an error of the store at ``url``, as the end of a sentence, or "".

    ``named`` is the setting or option that names the store; "": nobody can act on it now.
    """
    if not named:
        return ""
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        return f"; the disk is full: free some room ({command('gc')}), then try again"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return f"; the store must be writable for {_user()}"
    if isinstance(error, OSError):
        return ""
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, f"{url} {error}"):
            if named.startswith("-"):
                meaning = re.sub(_PASSWORD, f"`{password_of(named)}`", meaning)
            return f"; {meaning}"
    return f"; check that the server is up and {name_of(named)} right, then try again"


def _user() -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    return f"user id {os.geteuid()}"
