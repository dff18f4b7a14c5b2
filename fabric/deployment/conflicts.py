"""Finds conflicts between the guests of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from fabric.definitions.fields import Findings
from fabric.deployment.guest import WEB_PAGE, Guest
from fabric.deployment.settings import Location
from fabric.errors import suggest

#: Names with another meaning in Ansible, or in a cluster's folder of keys.
RESERVED = (
    *("all", "ungrouped", "localhost", "127.0.0.1", "admin", "broker", "own", WEB_PAGE),
    *("vm_hosts", "guests", "controllers", "workers", "troves"),
)

Key = Callable[[Guest], tuple[str, ...]]


class Conflicts:
    """Reports mistakes that involve several guests."""

    def __init__(self, file: str, guests: list[Guest], findings: Findings) -> None:
        self.file = file
        self.guests = guests
        self.findings = findings

    def check(self, *, whole: bool) -> None:
        """Report all conflicts.  ``whole``: every guest of the cluster could be read."""
        self._once("location", "{1} is already the guest of {0} on this host: rename one", _domain)
        self._once("location", "the image {1} is already that of {0}: give it another", _image)
        self._once("HOSTNAME", "{1} is already the HOSTNAME of {0}: give it another", _address)
        for guest in self.guests:
            for other in self.guests:
                self._disks(guest, other)
        self._names()
        self._cards()
        self._one_way_to_each_host()
        self._signatures()
        if whole:
            self._workers()

    def _report(self, guest: Guest, field: str, message: str) -> None:
        line = guest.line_of(field)
        self.findings.error(self.file, line, f"deployment {guest.name}: {message}")

    def _once(self, field: str, message: str, key: Key) -> None:
        first: dict[tuple[str, ...], Guest] = {}
        for guest in self.guests:
            value = key(guest)
            other = first.setdefault(value, guest)
            if other is not guest:
                self._report(guest, field, message.format(other.name, value[-1]))

    def _names(self) -> None:
        others = {guest.location.host for guest in self.guests}
        others |= {group for guest in self.guests if guest.roles for group in guest.groups}
        for guest in self.guests:
            if not guest.roles and guest.system_name in RESERVED:
                message = f"its system has the name {guest.system_name!r}, which is a group of"
                self._report(guest, "", f"{message} machines: rename the file {guest.system}")
            if guest.name in others:
                line, message = guest.line, "a VM host has the same name: rename it"
                self.findings.error(self.file, line, f"deployment {guest.name}: {message}")

    def _cards(self) -> None:
        first: dict[str, Guest] = {}
        for guest in self.guests:
            for mac in (nic.mac for nic in guest.nics if nic.mac):
                other = first.setdefault(mac, guest)
                if other is not guest:
                    self._report(guest, "NIC_CONFIG", f"{mac} is already a card of {other.name}")

    def _disks(self, guest: Guest, other: Guest) -> None:
        """Report files with two uses.  An image has a log, and files of upgrades, beside it."""
        if guest.location.host != other.location.host:
            return
        image = other.location.image
        beside = [image + suffix for suffix in (".console", ".new", ".old")]
        if guest.location.image in beside:
            message = f"{guest.location.image} is a file beside the image of {other.name}"
            self._report(guest, "location", message)
        for disk in guest.disks:
            if disk in (image, *beside):
                self._report(guest, "ATTACH_DISKS", f"{disk} is the image of {other.name}")
            elif disk in other.disks and self.guests.index(other) < self.guests.index(guest):
                self._report(guest, "ATTACH_DISKS", f"{disk} is attached to {other.name} already")

    def _one_way_to_each_host(self) -> None:
        ways: dict[str, Location] = {}
        for guest in self.guests:
            here = guest.location
            first = ways.setdefault(here.host, here)
            if (first.user, first.port) != (here.user, here.port):
                self._report(
                    guest,
                    "location",
                    f"another deployment reaches {here.host} as another user"
                    " or by another port: use one way to each host",
                )

    def _signatures(self) -> None:
        farm = [guest for guest in self.guests if guest.roles]
        for guest in farm:
            if guest.signatures != farm[0].signatures:
                one = "yes" if farm[0].signatures else "no"
                message = f"{farm[0].name} has {one}: give all controllers and workers the same"
                self._report(guest, "SIGNATURES", message)

    def _workers(self) -> None:
        workers = {guest.address: guest for guest in self.guests if "worker" in guest.roles}
        controllers = [guest for guest in self.guests if "controller" in guest.roles]
        for another in controllers[1:]:
            message = f"{controllers[0].name} is the controller: a cluster has one"
            self._report(another, "DISTBUILD_CONTROLLER", message)
        for controller in controllers[:1]:
            for host in controller.workers:
                if host not in workers:
                    hint = suggest(host, workers)
                    self._report(
                        controller, "WORKERS", f"{host} is not the HOSTNAME of a worker{hint}"
                    )
                elif controller.workers.count(host) > 1:
                    self._report(controller, "WORKERS", f"{host} is there twice")
            for host, worker in workers.items():
                if worker.controller != controller.address:
                    message = f"{worker.controller} is not the HOSTNAME of {controller.name}"
                    self._report(worker, "CONTROLLERHOST", message)
                elif host not in controller.workers:
                    self._report(
                        worker,
                        "HOSTNAME",
                        f"{host} is missing from the WORKERS of {controller.name}: add it there",
                    )


def _domain(guest: Guest) -> tuple[str, str]:
    return guest.location.host, guest.location.guest


def _image(guest: Guest) -> tuple[str, str]:
    return guest.location.host, guest.location.image


def _address(guest: Guest) -> tuple[str]:
    return (guest.address,)
