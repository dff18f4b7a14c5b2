"""The roles, on nodes of the same system and files as guests, at native speed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from secrets import token_hex
from subprocess import CompletedProcess
from typing import Any

import pytest
from deploy_kit import NAMES, Cluster, changed, tiny_definitions
from node_kit import Node
from secrets_kit import secrets_of
from signatures_kit import forge, signers
from systems_kit import ROOT, Built
from vmhost_kit import VmHost
from world_kit import Failed, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(vmhost: VmHost, built: Built, scratch: Path) -> Cluster:
    """The example cluster; its controller is the trove as well."""
    return Cluster(vmhost, built, scratch / "nodes", "node-")


@pytest.fixture(scope="module")
def nodes(cluster: Cluster, vmhost: VmHost, tree: Path, scratch: Path) -> dict[str, Node]:
    """The machines after their first boot."""
    cluster.play("tests/deploy/playbooks/render.yml")
    return {
        name: Node(
            *(vmhost, cluster.host(name), tree, number),
            *(cluster.state / "trees" / name, scratch, cluster.state / "ssh/admin"),
        )
        for number, name in enumerate(NAMES, 10)
    }


def test_roles_change_nothing_after_the_first_boot(
    cluster: Cluster, nodes: dict[str, Node]
) -> None:
    """The image contained all files, and every service runs."""
    said, counts = cluster.play("tests/deploy/playbooks/running.yml", "--diff")
    assert changed(counts) <= {"controller"}, said  # the initiator's settings
    said, counts = cluster.play("tests/deploy/playbooks/running.yml", "--diff")
    assert not changed(counts), said
    for node in nodes.values():
        assert node.run("systemctl is-system-running --wait") == "running\n"


def test_roles_check_mode_changes_nothing(cluster: Cluster, nodes: dict[str, Node]) -> None:
    worker = nodes["worker0"]
    worker.run("sed -i 's/^slots.*/slots = 7/' /etc/distbuild/worker.toml")
    playbook = "tests/deploy/playbooks/running.yml"
    said, counts = cluster.play(playbook, "--check", "--diff")
    assert changed(counts) == {"worker0"}
    assert "-slots = 7" in said
    assert "+slots = 1" in said
    assert "slots = 7" in worker.run("cat /etc/distbuild/worker.toml")
    started = "systemctl show -P ExecMainStartTimestampMonotonic fabric-worker"
    before = worker.run(started)
    said, counts = cluster.play(playbook)
    assert changed(counts) == {"worker0"}
    assert "slots = 1" in worker.run("cat /etc/distbuild/worker.toml")
    assert worker.run(started) != before


def test_roles_show_no_secret(cluster: Cluster, nodes: dict[str, Node]) -> None:
    """Not even if the key on the machine differs, with the most verbose output."""
    name = "/etc/distbuild/keys/worker0.key_secret"
    own = (cluster.state / "fabric/worker0.key_secret").read_text()
    [secret] = re.findall(r'secret-key = "(.*)"', own)
    other = token_hex()  # a word could be in the path of the project
    nodes["worker0"].run(f"echo {other} > {name}")
    said, counts = cluster.play("tests/deploy/playbooks/running.yml", "--diff", "-vvv")
    assert changed(counts) == {"worker0"}
    assert name in said
    assert secret not in said
    assert other not in said
    assert nodes["worker0"].run(f"cat {name}") == own
    worker_key = cluster.world.run("cat", ROOT / "worker.key")
    secrets = "".join(f"{text}\n" for text in secrets_of(cluster.state, worker_key))
    look = "grep -rsIlFf /dev/stdin /etc /root /home /srv /var/lib /var/tmp | xargs stat -c '%a %n'"
    for node in nodes.values():
        found = node.run(look, input=secrets).splitlines()
        for file in ("/etc/distbuild/access/worker.key", "/etc/ssh/ssh_host_ed25519_key"):
            assert f"600 {file}" in found
        assert not [line for line in found if not line.startswith("600 ")]
        node.run("journalctl --no-pager > /run/logged")
        logged = node.attempt("grep -cFf /dev/stdin /run/logged", input=secrets)
        assert logged.stdout == "0\n"


def test_trove_keys_have_no_other_rights(cluster: Cluster, nodes: dict[str, Node]) -> None:
    trove = f"ssh://git@{cluster.host('controller')}/srv/trove/trove.git"
    ssh = "GIT_SSH_COMMAND='ssh -i /etc/distbuild/access/worker.key"
    ssh += " -o UserKnownHostsFile=/etc/distbuild/access/known_hosts'"
    worker = nodes["worker0"]
    worker.run(f"{ssh} git ls-remote {trove}")
    pushed = worker.attempt(
        "cd $(mktemp -d) && git init -q && git -c user.name=t -c user.email=t commit -q"
        f" --allow-empty -m x && {ssh} git push {trove} HEAD:refs/heads/x"
    )
    assert pushed.returncode != 0
    assert "This key may only read the trove" in pushed.stderr
    shell = worker.attempt(
        f"ssh -i /etc/distbuild/access/worker.key -o "
        f"UserKnownHostsFile=/etc/distbuild/access/known_hosts git@{cluster.host('controller')} id"
    )
    assert "uid=" not in shell.stdout
    # readers of artifacts may not write
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    ca = ["--cacert", str(cluster.state / "tls/ca.pem")]
    url = f"https://{cluster.host('controller')}/artifacts/try"

    def code(user: str, *more: str) -> str:
        password = (cluster.state / "artifacts" / user).read_text().strip()
        return cluster.world.run(*curl, *ca, "--user", password, *more, url)

    assert code("builder", "-T", "/etc/hostname") == "201"
    assert code("reader") == "200"
    assert code("reader", "-T", "/etc/hostname") == "403"
    assert code("builder", "-X", "DELETE") == "204"
    assert cluster.world.run(*curl, *ca, url) == "401"


def test_web_page_is_served_and_its_end_is_no_other_program_s(
    cluster: Cluster, nodes: dict[str, Node]
) -> None:
    """The playbook has verified certificate and password; here it dies, and is seen from inside."""
    controller = nodes["controller"]
    listening = controller.run("ss -Hltn | awk '{print $4}'").split()
    outside = {word.rpartition(":")[2] for word in listening if not word.startswith("127.")}
    assert outside == {"22", "443", "7411", "7412", "7413", "8443"}
    assert "127.0.0.1:7420" in listening
    users = controller.run("systemctl show -P DynamicUser fabric-web fabric-web-proxy").split()
    assert users == ["yes", "yes"]
    for folder in ("keys", "access"):
        seen = controller.attempt(
            "pid=$(systemctl show -P MainPID fabric-web); uid=$(stat -c %u /proc/$pid);"
            f" nsenter --target $pid --mount --setuid $uid ls /etc/distbuild/{folder}"
        )
        assert "Permission denied" in seen.stderr
    started = "systemctl show -P ExecMainStartTimestampMonotonic fabric-broker nginx"
    before = controller.run(started)
    password = (cluster.state / "web/password").read_text().strip()
    name = cluster.host("controller")
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--user", password]
    curl += ["--cacert", str(cluster.state / f"web/certificate-{name}.pem")]
    curl += [f"https://{name}:8443/"]
    assert cluster.world.run(*curl) == "200"
    controller.run("systemctl kill --signal KILL fabric-web")
    until(lambda: cluster.world.run(*curl) == "200", 90, lambda: controller.run("journalctl -n 50"))
    assert controller.run("systemctl show -P NRestarts fabric-web") == "1\n"
    assert controller.run(started) == before
    assert cluster.initiator("workers", cwd=cluster.state).count(" idle ") == 2


def test_web_page_goes_and_comes_back(cluster: Cluster, nodes: dict[str, Node]) -> None:
    """Its key is not admitted meanwhile."""
    controller = nodes["controller"]
    files = "find /etc -path '*web*' | sort; ls /etc/distbuild/keys/admitted"
    before = controller.run(files)
    assert "web-page.key" in before
    cluster.play("tests/deploy/playbooks/render.yml", "-e", "WEB=no")
    tree = cluster.state / "trees/controller/etc"
    assert not any("web" in path.name for path in tree.rglob("*"))
    for there in (False, True):
        wanted = f"WEB={'yes' if there else 'no'}"
        said, counts = cluster.play("tests/deploy/playbooks/running.yml", "-e", wanted)
        assert changed(counts) == {"controller"}, said
        assert ("web" in controller.run(files)) == there
        active = controller.attempt("systemctl is-active fabric-web fabric-web-proxy").stdout
        assert set(active.split()) == {"active" if there else "inactive"}
    assert controller.run(files) == before


def test_nodes_build(cluster: Cluster, nodes: dict[str, Node], scratch: Path) -> None:
    """The first push also removes a stale lock in the trove."""
    cluster.play("tests/deploy/playbooks/running.yml")  # writes the initiator's settings
    lock = "/srv/trove/trove.git/packed-refs.lock"
    nodes["controller"].run(f"touch -d '3 minutes ago' {lock}")
    definitions = tiny_definitions(scratch / "few", 4, "true")
    here = scratch / "few-here"
    here.mkdir()
    said = cluster.initiator("build", str(definitions / "systems/tiny.morph"), cwd=here)
    assert "tiny is built" in said
    assert "built tiny-01" in (here / "build-step-tiny-01-misc.log").read_text()
    nodes["controller"].run(f"test ! -e {lock}")


def test_farm_uses_only_what_its_machines_signed(
    cluster: Cluster, nodes: dict[str, Node], scratch: Path
) -> None:
    controller, worker = nodes["controller"], nodes["worker0"]
    system = str(tiny_definitions(scratch / "signed", 2, "true") / "systems/tiny.morph")
    here = scratch / "signed-here"
    here.mkdir()
    cluster.initiator("build", system, cwd=here)
    trusted = cluster.state / "trusted"
    found = signers(controller.run, trusted)
    assert {by for _, by in found} <= {"worker0", "worker1"}
    assert all(by == manifest.builder for manifest, by in found)
    key = max(found, key=lambda one: one[0].built)[0].key
    forge(controller.run, key, scratch / "stranger")
    assert "1 built" in cluster.initiator("build", system, cwd=here)
    [by] = [by for one, by in signers(controller.run, trusted) if one.key == key]
    assert by in ("worker0", "worker1")
    told = controller.run("journalctl -o cat -u fabric-broker")
    assert f"manifest {key} counts as absent: it is signed with the unknown key" in told
    # the page reads the same store
    password = (cluster.state / "web/password").read_text().strip()
    name = cluster.host("controller")
    curl = ["curl", "-s", "--user", password]
    curl += ["--cacert", str(cluster.state / f"web/certificate-{name}.pem")]
    page = cluster.world.run(*curl, f"https://{name}:8443/steps/{key}?format=json")
    assert json.loads(page)["record"]["artifacts"], page
    # who may write to the folder can trust any key
    writable = "find /etc/distbuild/trusted -not -user root -o -perm /022"
    assert controller.run(writable) == "/etc/distbuild/trusted/own.key\n"

    # a further key reaches all machines, and restarts nothing
    started = "systemctl show -P ExecMainStartTimestampMonotonic fabric-broker fabric-worker"
    before = [node.run(started) for node in (controller, worker)]
    where = ["--trusted", str(trusted)]
    stranger = str(scratch / "stranger/own.pub")
    cluster.world.run("fabric-keys", "trust", stranger, "--name", "worker9", *where)
    with pytest.raises(
        Failed, match="does not sign artifacts, or does not use those of others: it"
    ):
        cluster.play("distbuild.fabric.verify")
    cluster.play("tests/deploy/playbooks/running.yml")
    cluster.play("distbuild.fabric.verify")
    assert "worker9 " in worker.run("fabric-keys trusted")
    assert [node.run(started) for node in (controller, worker)] == before
    cluster.world.run("fabric-keys", "distrust", "worker9", *where)
    cluster.play("tests/deploy/playbooks/running.yml")  # other tests expect no changes
    assert re.search(r"(?m)^worker9\S* +revoked", worker.run("fabric-keys trusted"))


def test_controller_state_is_saved_and_restored(
    cluster: Cluster, nodes: dict[str, Node], scratch: Path
) -> None:
    """Also if the upgrade was interrupted after the new machine had started without state."""
    controller, waits = nodes["controller"], "/etc/distbuild/broker-waits"
    kept = cluster.state / "kept/controller.tar"

    def step(name: str) -> None:
        cluster.play("tests/deploy/playbooks/controller_state.yml", "-e", f"step={name}")

    def broker() -> str:
        return str(controller.attempt("systemctl is-active fabric-broker").stdout).strip()

    def builds() -> list[dict[str, Any]]:
        listed = json.loads(cluster.initiator("list", "--json", cwd=scratch))
        return [{**build, "since": "some time ago"} for build in listed]

    controller.run("fabric-keys make initiator eve --to . && fabric-keys admit eve.key")
    before = builds()
    files = controller.run("cd /var/lib/distbuild && find . -printf '%p %u %m\\n' | sort")
    step("save")
    assert (broker(), kept.stat().st_mode & 0o777) == ("inactive", 0o600)
    # the state of the new machine after its first start
    remove = "rm -r /var/lib/distbuild /etc/distbuild/keys/admitted/eve.key"
    controller.run(f"{remove}; touch {waits}; systemctl start fabric-broker")
    assert broker() == "inactive"
    taken = kept.read_bytes()
    step("save")
    assert kept.read_bytes() == taken
    kept.rename(kept.with_suffix(".elsewhere"))
    with pytest.raises(Failed, match="controller waits for the state of its predecessor"):
        step("save")
    kept.with_suffix(".elsewhere").rename(kept)
    step("restore")
    assert broker() == "active"
    controller.run(f"test ! -e {waits}")
    assert builds() == before
    assert "eve" in controller.run("fabric-keys list")
    controller.run("fabric-keys revoke eve")
    now = controller.run("cd /var/lib/distbuild && find . -printf '%p %u %m\\n' | sort")
    assert set(files.splitlines()) <= set(now.splitlines())


def test_gc_of_artifacts_is_for_operators_only(
    cluster: Cluster,
    nodes: dict[str, Node],  # noqa: ARG001
    scratch: Path,
) -> None:
    gc = ["fabric-initiator", "gc", "--keep-days", "0"]
    environment = cluster.initiators_environment
    done = cluster.world.attempt(*gc, timeout=300, cwd=scratch, env=environment)
    assert done.returncode == 1
    assert re.search("(?m)^layers  ", done.stdout), "what is his own"
    environment["FABRIC_ARTIFACTS_PASSWORD"] = str(cluster.state / "artifacts/builder")
    said = cluster.world.run(*gc, timeout=300, cwd=scratch, env=environment)
    assert re.search("(?m)^[1-9][0-9]* steps and [0-9]+ blobs removed", said)


def test_users_come_and_leave(cluster: Cluster, nodes: dict[str, Node], scratch: Path) -> None:
    """Ann by the folder USERS, until her files are removed; Bob by hand, and he stays."""
    world, controller = cluster.world, nodes["controller"]
    home, users, bob = scratch / "ann", scratch / "people", scratch / "bob"
    settings = home / ".config/distbuild"
    for folder in (home / ".ssh", users):
        folder.mkdir(parents=True)
    world.run("fabric-keys", "make", "initiator", "ann", "--to", settings / "keys")
    world.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh/id_ed25519")
    shutil.copy(settings / "keys/ann.key", users)
    shutil.copy(home / ".ssh/id_ed25519.pub", users / "ann.pub")
    world.run("fabric-keys", "make", "initiator", "bob", "--to", bob)
    controller.run("cat > bob.key", input=(bob / "bob.key").read_text())
    controller.run("fabric-keys admit bob.key")

    def deploy() -> set[str]:
        """Deploy, and return the keys that the controller and its image admit."""
        for playbook, hosts in (("render", set()), ("running", {"controller"}), ("running", set())):
            path = f"tests/deploy/playbooks/{playbook}.yml"
            said, counts = cluster.play(path, "-e", f"USERS={users}")
            assert playbook == "render" or changed(counts) == hosts, said
        tree = cluster.state / "trees/controller/etc/distbuild"
        assert controller.run("cat /etc/distbuild/trove-keys") == (tree / "trove-keys").read_text()
        admitted = set(controller.run("ls /etc/distbuild/keys/admitted").split())
        assert admitted == {file.name for file in (tree / "keys/admitted").glob("*")} | {"bob.key"}
        return admitted

    def attempt(command: str) -> CompletedProcess[str]:
        """Run a command as Ann, with her SSH keys."""
        hers = 'mount --bind "$HOME"/.ssh /root/.ssh && cd "$HOME" && exec sh -euc "$1"'
        enter = ["unshare", "--mount", "sh", "-euc", hers, "ann", command]
        environment = {"HOME": str(home), "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
        return world.attempt(*enter, env=environment, timeout=300)

    trove = f"ssh://git@{cluster.host('controller')}/srv/trove/trove.git"
    push = (
        f"export GIT_SSH_COMMAND='ssh -o UserKnownHostsFile={settings}/known_hosts'"
        "; cd $(mktemp -d) && git init -q && git -c user.name=t -c user.email=t commit -q"
        f" --allow-empty -m x && git push {trove} HEAD:refs/heads/ann"
    )
    started = "systemctl show -P ExecMainStartTimestampMonotonic fabric-broker nginx ssh"
    before = controller.run(started)
    assert "ann.key" in deploy()
    assert controller.run(started) == before
    shutil.copytree(cluster.state / "users", settings, dirs_exist_ok=True)
    assert (settings / "artifacts-password").stat().st_mode & 0o777 == 0o600
    system = tiny_definitions(scratch / "hers", 1, "true") / "systems/tiny.morph"
    for command in ("fabric-initiator workers", f"fabric-initiator build {system}", push):
        done = attempt(command)
        assert done.returncode == 0, done.stderr

    # a departed worker of the same name is pruned in the run that admits her
    departed = ["-e", "departed_name=ann", "-e", f"USERS={users}"]
    cluster.play("tests/deploy/playbooks/prune.yml", *departed)
    assert "ann.key" in controller.run("ls /etc/distbuild/keys/admitted").split()
    for name in ("ann.key", "ann.pub"):
        (users / name).unlink()
    assert "ann.key" not in deploy()
    assert controller.run(started) == before
    for command, said in (("fabric-initiator workers", "admit"), (push, "Permission denied")):
        done = attempt(command)
        assert done.returncode != 0
        assert said in done.stderr
    cluster.initiator("workers", cwd=scratch)
    shutil.copy(settings / "keys/broker.key", bob)
    environment = {**cluster.initiators_environment, "FABRIC_KEYS": str(bob)}
    world.run("fabric-initiator", "workers", cwd=scratch, env=environment)


def test_leaked_keys_are_replaced_by_the_next_deployment(
    cluster: Cluster, nodes: dict[str, Node], scratch: Path
) -> None:
    """Until then, the key is revoked on the controller."""

    def on_controller(command: str) -> str:
        ansible = ["ansible", "controller", "-a", command]
        return cluster.world.run(*ansible, cwd=ROOT, env=cluster.environment)

    before = on_controller("fabric-keys list")
    on_controller("fabric-keys revoke worker0")
    for name in ("worker0.key", "worker0.key_secret"):
        (cluster.state / "fabric" / name).unlink()
    trusted = str(cluster.state / "trusted")
    cluster.world.run("fabric-keys", "distrust", "worker0", "--trusted", trusted)
    known = (cluster.state / "artifacts/reader").read_text()
    (cluster.state / "artifacts/htpasswd").unlink()
    make = "rm worker.key*; ssh-keygen -q -t ed25519 -N '' -f worker.key"
    cluster.world.run("sh", "-c", make, cwd=ROOT)
    for name in ("render", "running"):
        said, counts = cluster.play(f"tests/deploy/playbooks/{name}.yml")
    assert changed(counts) == set(NAMES), said
    after = on_controller("fabric-keys list")
    [old], [new] = (re.findall("(?m)^worker0 .*", text) for text in (before, after))
    assert old != new
    secret = (cluster.state / "fabric/worker0.key_secret").read_text()
    assert nodes["worker0"].run("cat /etc/distbuild/keys/worker0.key_secret") == secret
    for node in nodes.values():
        told = node.run("fabric-keys trusted")
        assert re.search("(?m)^worker0-[0-9a-f]{12} +revoked", told), told
        assert re.search("(?m)^(worker0|own) +trusted", told), told
    curl = ["curl", "-s", "-w", "%{http_code}", "--cacert", str(cluster.state / "tls/ca.pem")]
    url = f"https://{cluster.host('controller')}/artifacts/"
    assert cluster.world.run(*curl, "-o", "/dev/null", "--user", known, url) == "401"
    definitions = tiny_definitions(scratch / "other", 4, "sleep 1")
    here = scratch / "other-here"
    here.mkdir()
    said = cluster.initiator("build", str(definitions / "systems/tiny.morph"), cwd=here)
    assert {"building on worker0", "building on worker1"} <= set(re.findall("building on .*", said))
