"""An external trove, and artifacts in an external S3 store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deploy_kit import Cluster, changed, tiny_definitions
from node_kit import Node
from systems_kit import ROOT, Built
from vmhost_kit import DOMAIN, GATEWAY, VmHost
from world_kit import World, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

TROVE = f"outer.{DOMAIN}"
#: A git repository over SSH, as its owner would have set it up.
_TROVE = f"""
useradd --create-home --home-dir /srv/outer --shell /usr/bin/git-shell outer
usermod --password '*' outer
ssh-keygen -q -t ed25519 -N '' -C outer -f /etc/ssh/outer
echo "{TROVE} $(cut -d' ' -f1,2 /etc/ssh/outer.pub)" >> /root/.ssh/known_hosts
mkdir -p /srv/outer/.ssh
cat "$1" /root/.ssh/id_ed25519.pub > /srv/outer/.ssh/authorized_keys
git init -q --bare -b main /srv/outer/trove.git
chown -R outer: /srv/outer
cat > /etc/ssh/outer_config <<END
ListenAddress {GATEWAY}
HostKey /etc/ssh/outer
PidFile none
UsePAM no
UseDNS no
END
"""
_SUMS = "cd /srv/outer && find . -type f | sort | xargs sha256sum; cat /etc/ssh/outer*"
S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT": f"http://{GATEWAY}:8333",
    "AWS_ALLOW_HTTP": "true",
}


def start_s3(world: World, folder: Path) -> None:
    """SeaweedFS with a bucket ``artifacts``, at the gateway's address."""
    folder.mkdir()
    credentials = {"accessKey": "test", "secretKey": "secret"}
    identity = {"name": "test", "credentials": [credentials], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = ["weed", "server", f"-dir={folder}", f"-ip={GATEWAY}", f"-ip.bind={GATEWAY}"]
    command += ["-master.telemetry=false", "-volume.max=8", "-master.volumeSizeLimitMB=64"]
    command += ["-filer", f"-filer.localSocket={folder}/filer"]
    command += ["-s3", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "log").open("w") as log:
        world.daemon(*command, log=log)
    until(
        lambda: world.attempt(*s3_request("PUT", "artifacts")).returncode == 0,
        60,
        (folder / "log").read_text,
        step=1,
    )


def s3_request(method: str, path: str) -> list[str]:
    login = ["--user", "test:secret", "--aws-sigv4", "aws:amz:us-east-1:s3"]
    return ["curl", "-sfX", method, *login, f"{S3['AWS_ENDPOINT']}/{path}"]


def test_external_trove_and_store_are_used_and_not_changed(
    vmhost: VmHost, built: Built, tree: Path, scratch: Path
) -> None:
    world = vmhost.world
    cluster = Cluster(vmhost, built, scratch / "outer", "outer-")
    cluster.environment |= {"trove_url": TROVE, **S3}
    credentials = scratch / "s3.env"
    credentials.write_text("".join(f"{key}={text}\n" for key, text in S3.items()))
    vmhost.name(GATEWAY, TROVE)
    world.run("bash", "-euc", _TROVE, "trove", ROOT / "worker.key.pub")
    world.daemon("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/outer_config")
    start_s3(world, scratch / "s3")
    before = world.run("sh", "-c", _SUMS)

    settings = {
        "TROVE": f"ssh://outer@{TROVE}/srv/outer/trove.git",
        "ARTIFACTS": "s3://artifacts/farm",
        "ARTIFACTS_ENVIRONMENT": str(credentials),
    }
    options = [word for key, text in settings.items() for word in ("-e", f"{key}={text}")]
    names = ("controller", "worker0")
    render, running = (f"tests/deploy/playbooks/{name}.yml" for name in ("render", "running"))
    cluster.play(render, *options)
    for number, name in enumerate(names, 20):
        files, key = cluster.state / "trees" / name, cluster.state / "ssh/admin"
        node = Node(vmhost, cluster.host(name), tree, number, files, scratch, key)
        program = {"controller": "broker"}.get(name, "worker")
        understood = node.run(
            f"fabric-{program} --config /etc/distbuild/{program}.toml --check-config"
        )
        assert 'artifacts = "s3://artifacts/farm"' in understood
        assert f'trove = "{settings["TROVE"]}"' in understood
    said, counts = cluster.play(running, *options, "--limit", ",".join(names))
    assert changed(counts) <= {"controller"}, said  # the initiator's settings
    assert world.run("sh", "-c", _SUMS) == before

    definitions = tiny_definitions(scratch / "outer-tiny", 2, "true")
    here = scratch / "outer-here"
    here.mkdir()
    said = cluster.initiator("build", str(definitions / "systems/tiny.morph"), cwd=here)
    assert "tiny is built" in said
    assert "<Key>farm/" in world.run(*s3_request("GET", "artifacts?list-type=2"))

    # with the cluster's own trove, the password of its store is not written for an S3 store
    cluster.play(render, *options, "-e", f"trove_url={cluster.host('controller')}")
    own = (cluster.state / "trees/controller/etc/distbuild/broker.toml").read_text()
    assert 'artifacts = "s3://artifacts/farm"' in own
    assert "artifacts-" not in own
