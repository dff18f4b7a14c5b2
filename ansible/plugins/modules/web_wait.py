"""Ansible module: wait until the web page of a farm answers."""

from __future__ import annotations

DOCUMENTATION = """
module: web_wait
short_description: Wait until the web page of a farm answers
author: The authors of Distbuild (!UNKNOWN)
description:
  - Checks that the server has the certificate, that it rejects a request without the password, that
    it serves the page with it, and that the page reaches the controller.
  - Sends the password only to a server with the certificate.
extends_documentation_fragment: [action_common_attributes]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  address:
    description: The address to connect to.
    type: str
    required: true
  port:
    description: The port of the page.
    type: int
    required: true
  name:
    description: The name that the certificate must hold.
    type: str
    required: true
  certificate:
    description: A PEM file whose first certificate is that of the page.
    type: path
    required: true
  password:
    description: A file that holds USER:PASSWORD.
    type: path
    required: true
  timeout:
    description: The seconds after which the module fails.
    type: int
    default: 120
"""

EXAMPLES = """
- name: Wait until the page answers
  distbuild.fabric.web_wait:
    address: controller.example
    port: 8443
    name: controller.example
    certificate: page.pem
    password: password
  delegate_to: localhost
"""

RETURN = """
url:
  description: The address of the page for browsers.
  returned: success
  type: str
fingerprint:
  description: The SHA-256 of the certificate, as browsers show it.
  returned: success
  type: str
"""

import base64
import hashlib
import http.client
import json
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
#: A page is smaller.
_LONGEST = 4 << 20


class Wrong(Exception):
    """The page does not answer as it must."""


class Server:
    """A server that must have a certificate."""

    def __init__(self, address: str, port: int, name: str, certificate: str) -> None:
        """``certificate`` is PEM.  Raises ssl.SSLError if it is none."""
        self.address = address
        self.port = port
        self.name = name
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        # the only certificate that is trusted, whether it has signed itself or not
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._context.load_verify_locations(cadata=certificate)

    def get(self, path: str, login: str = "") -> tuple[int, bytes]:
        """Return status and content of a path.  ``login`` is USER:PASSWORD.

        Raises OSError or http.client.HTTPException if there is no answer.
        """
        connection = http.client.HTTPSConnection(self.name, self.port, context=self._context)
        plain = socket.create_connection((self.address, self.port), timeout=15)
        try:
            # made here, because the name of the server may have another address
            connection.sock = self._context.wrap_socket(plain, server_hostname=self.name)
            headers = {}
            if login:
                headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_LONGEST)
        finally:
            connection.close()
            plain.close()


def check(server: Server, login: str) -> None:
    """Raise Wrong, OSError or HTTPException unless the page is as it must be."""
    status = server.get("/health")[0]
    if status != 401:
        raise Wrong(f"a request without the password gets status {status}, and not 401")
    status, content = server.get("/health", login)
    if status == 401:
        raise Wrong("the password is rejected")
    if status != 200:
        raise Wrong(f"/health has status {status}: {content[:300].decode('utf-8', 'replace')}")
    silent = json.loads(content)["broker"]
    if silent:
        raise Wrong(f"it does not reach the controller: {silent}")
    status = server.get("/", login)[0]
    if status != 200:
        raise Wrong(f"/ has status {status}")


def main() -> None:
    module = AnsibleModule(
        {
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "name": {"type": "str", "required": True},
            "certificate": {"type": "path", "required": True},
            # the name of a file
            "password": {"type": "path", "required": True, "no_log": False},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    host = f"[{given['name']}]" if ":" in given["name"] else given["name"]
    url = f"https://{host}:{given['port']}/"

    def fail(why: object) -> NoReturn:
        module.fail_json(msg=f"{url} is not served as it must be: {why}")
        raise SystemExit(1)

    try:
        found = _CERTIFICATE.search(Path(given["certificate"]).read_text())
        login = Path(given["password"]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(error)
    if found is None:
        fail(f"{given['certificate']} holds no certificate as PEM")
    try:
        server = Server(given["address"], given["port"], given["name"], found[0])
    except ssl.SSLError as error:
        fail(f"{given['certificate']} holds no certificate: {error}")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).hexdigest().upper()
    fingerprint = ":".join(re.findall("..", digest))
    deadline = time.monotonic() + given["timeout"]
    while True:
        try:
            check(server, login)
        except (Wrong, OSError, http.client.HTTPException, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                fail(error)
            time.sleep(1)
        else:
            module.exit_json(changed=False, url=url, fingerprint=fingerprint)


if __name__ == "__main__":
    main()
