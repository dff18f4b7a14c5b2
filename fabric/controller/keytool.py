"""Makes keys, and authorizes and revokes them: of connections, and of signatures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fabric.config import KEYS
from fabric.errors import FabricError
from fabric.host.command_line import Parser
from fabric.host.terminal import one_line, printable
from fabric.trust.signing import TrustedKeys
from fabric.wire import keys

#: The keys of signatures on a farm.
TRUSTED = "/etc/distbuild/trusted"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(prog="fabric-keys", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a pair of keys; prints where the public one is")
    make.add_argument("role", choices=keys.ROLES, help="what the key allows")
    make.add_argument(
        "name", nargs="?", help="the machine or person; of the controller it is broker"
    )
    make.add_argument("--to", type=Path, default=Path(KEYS), metavar="DIR", help=f"default {KEYS}")
    admit = commands.add_parser("admit", help="admit the owner of a key, from now on")
    admit.add_argument("file", type=Path, help="NAME.key, the public key")
    listed = commands.add_parser("list", help="list the admitted keys: name, role, public key")
    revoke = commands.add_parser("revoke", help="stop admitting a key, at once")
    revoke.add_argument("name", help="as `list` shows it")
    for command in (admit, listed, revoke):
        command.add_argument(
            "--keys", type=Path, default=Path(KEYS), metavar="DIR",
            help=f"the controller's keys (default {KEYS})",
        )  # fmt: skip
    trust = commands.add_parser("trust", help="let the signatures of a key count, from now on")
    trust.add_argument("file", type=Path, help="the public key, in PEM")
    trust.add_argument("--name", default="", help="its name here (default: that of the file)")
    trusted = commands.add_parser(
        "trusted", help="list the keys whose signatures count or are refused: name, id"
    )
    distrust = commands.add_parser("distrust", help="refuse what a key signed, from now on")
    distrust.add_argument("name", help="as `trusted` shows it")
    renew = commands.add_parser(
        "renew", help="sign with a new key; what the former one signed still counts"
    )
    for command in (trust, trusted, distrust, renew):
        command.add_argument(
            "--trusted", type=Path, default=Path(TRUSTED), metavar="DIR",
            help=f"the setting `trusted-keys` (default {TRUSTED})",
        )  # fmt: skip
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run fabric-keys; returns its exit code."""
    options = parser().parse_args(argv)
    try:
        _run(options)
    except FabricError as error:
        print(f"fabric-keys: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "make":
            name = options.name or (keys.BROKER if options.role == keys.BROKER else "")
            if (name == keys.BROKER) != (options.role == keys.BROKER):
                raise keys.KeyProblem(
                    "the name broker is for the broker's key, and for no other key"
                )
            print(keys.make(options.role, name, options.to))
        case "admit":
            peer = keys.AuthorizedKeys(options.keys).admit(options.file)
            print(f"{peer.role} {peer.name} is admitted")
        case "list":
            admitted = keys.AuthorizedKeys(options.keys)
            for peer in admitted.all():
                print(f"{peer.name:20} {peer.role:10} {peer.public}")
            for problem in admitted.problems:
                print(f"fabric-keys: {printable(problem)}", file=sys.stderr)
        case "revoke":
            keys.AuthorizedKeys(options.keys).revoke(options.name)
            print(f"{options.name} is not admitted any more")
        case "trust":
            key = _trusted(options).trust(options.file, options.name)
            print(f"{key.name} is trusted: {key.id}")
        case "trusted":
            for key in _trusted(options).all():
                print(
                    f"{one_line(key.name):20} {'revoked' if key.revoked else 'trusted':8} {key.id}"
                )
        case "distrust":
            _trusted(options).revoke(options.name)
            print(f"{options.name} is trusted no more")
        case "renew":
            print(f"{_trusted(options).renew().id} signs from now on")


def _trusted(options: argparse.Namespace) -> TrustedKeys:
    return TrustedKeys(options.trusted, _warn)


def _warn(text: str) -> None:
    print(f"fabric-keys: warning: {printable(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
