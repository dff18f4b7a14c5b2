"""``build --web``: the page of a build on this machine."""

from __future__ import annotations

import http.cookiejar
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from initiator_kit import Project
from network_kit import Farm
from playwright.sync_api import expect
from terminals import Terminal
from waiting import until
from web_kit import Pages, Web

from fabric.client.render import PlainScreen
from fabric.commands.shared.web_page import _REDIRECT, WebPage

WAITS = "echo compiling; while [ ! -e /tmp/go ]; do sleep 0.05; done"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "project", tmp_path / "cache")
    yield project
    for child in project.children:
        child.kill()
        child.communicate()


def address(child: subprocess.Popen[str]) -> str:
    """The address of the page, from the output of a build."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("web page: "):
            return line.split()[2]
    raise AssertionError(child.communicate())


def ended(child: subprocess.Popen[str]) -> bool:
    """Whether the build has ended; lets its chunks go on that wait."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"sleep\x000.05" in (folder / "cmdline").read_bytes():
                (folder / "root/tmp/go").touch()
        except OSError:
            continue
    return child.poll() is not None


def test_build_is_shown_in_the_browser(project: Project, pages: Pages) -> None:
    pages.expected = ["net::ERR_", "error in its"]
    project.write(one=WAITS, two=("one", "true"))
    child = project.start("--web")
    page = pages.open(address(child))
    page.get_by_role("row", name="one running").wait_for()
    assert "token" not in page.url
    page.get_by_role("link", name="Farm").click()
    page.get_by_role("row", name="worker-1").wait_for()
    until(lambda: ended(child), 60, "for the build to end")
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert "small is built" in out


def test_file_leads_a_browser_to_the_address_with_a_token(pages: Pages, tmp_path: Path) -> None:
    """As `build --web` opens it; links in chats and mails lead there from elsewhere, too."""
    pages.expected = ["net::ERR_"]  # when it ends
    web = Web(tmp_path, {})
    try:
        file = tmp_path / "build.html"
        file.write_text(_REDIRECT.format(web.printed))
        page = pages.open(file.as_uri())
        expect(page.get_by_role("heading", name="This machine")).to_be_visible()
        assert page.url == f"{web.url}/"
    finally:
        web.kill()


def test_page_of_a_build_is_private_and_ends_with_it(project: Project) -> None:
    project.write(one=WAITS)
    child = project.start("--web")
    url = address(child)
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(url.partition("?")[0])
    refused.value.close()
    jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    with urllib.request.build_opener(jar).open(url) as answer:
        assert answer.status == 200
    until(lambda: ended(child), 60, "for the build to end")
    with pytest.raises(urllib.error.URLError, match="Connection refused"):
        urllib.request.urlopen(url)


def test_at_a_terminal_the_page_stays_until_enter(project: Project) -> None:
    project.write(one="exit 3")
    command = [sys.executable, "-m", "fabric.initiator", "build", "../systems/small.morph", "--web"]
    environ = {**project.environ, "TERM": "xterm", "CI": ""}
    terminal = Terminal(command, project.logs, environ, 200, 60)
    try:
        terminal.sees(lambda lines: any("quit" in line for line in lines), "the question")
        terminal.types("q\n")
        terminal.sees(lambda lines: any("stays until" in line for line in lines), "that it stays")
        [line] = [line for line in terminal.lines() if line.startswith("web page: ")]
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        opener = urllib.request.build_opener(jar)
        with opener.open(line.split()[2]) as answer:
            assert "failed" in answer.read().decode()
        terminal.types("\n")
        assert terminal.ends() == 3
    finally:
        terminal.close()


def test_page_that_starts_after_the_end_of_its_build_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    late = "import time; time.sleep(1); print('http://127.0.0.1:1/?token=x', flush=True); input()"
    terminal = io.StringIO("\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("fabric.commands.shared.web_page.is_terminal", lambda _: True)
    command = [sys.executable, "-c", late]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        page = WebPage(child, tmp_path)
        page.show("r1", PlainScreen())
        page.stay()
        child.terminate()
    assert capfd.readouterr().out.splitlines() == [
        "web page: http://127.0.0.1:1/builds/r1?token=x",
        "The web page stays until you press Enter.",
    ]


@pytest.mark.slow
def test_build_on_a_farm_shows_the_farm(tmp_path: Path) -> None:
    """By the key of the user, which may read as that of a page may."""
    farm = Farm(tmp_path / "farm")
    try:
        farm.broker()
        farm.worker("amber")
        alice = farm.workstation("alice")
        alice.definitions.write(one=farm.held("one"))
        build = alice.start_build("--web")
        build.says("web page: ", 60)
        [line] = [line for line in build.said().splitlines() if line.startswith("web page: ")]
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        opener = urllib.request.build_opener(jar)
        url = line.split()[2]
        opener.open(url).close()

        def running() -> bool:
            with opener.open(url.partition("?")[0] + "?format=json") as answer:
                steps = json.load(answer)["steps"]
            return any(step["state"] == "running" and step["worker"] == "amber" for step in steps)

        until(running, 60, "for the step to run")
        with opener.open(url.partition("/builds")[0]) as answer:
            assert farm.address in answer.read().decode()
        farm.release("one")
        code, said = build.ends()
        assert code == 0, said
    finally:
        farm.close()


def test_programs_get_the_address_as_an_event(project: Project) -> None:
    project.write(one="sleep 4")
    done = project.build("--web", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    [event] = [event for event in events if event["event"] == "web"]
    assert event["address"].startswith("http://127.0.0.1:")


def test_without_the_extra_it_names_the_command(project: Project) -> None:
    project.write(one="true")
    script = (
        "import sys, importlib.util as u; f = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n in ('starlette', 'jinja2') else f(n, *a);"
        "from fabric.initiator import main;"
        "sys.exit(main(['build', '../systems/small.morph', '--web']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project.logs, env=project.environ,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "fabric-initiator: --web needs starlette, jinja2: pip install 'distbuild[web]'\n"
    )


def test_detached_build_has_no_page(project: Project) -> None:
    done = project.build("--web", "--detach", "--controller", "farm")
    assert done.returncode == 1
    assert "--web shows the build while this command runs, but --detach ends it" in done.stderr


def test_a_build_without_it_loads_nothing_of_it(project: Project) -> None:
    project.write(one="true")
    script = """
import sys
from fabric.initiator import main
code = main(["build", "../systems/small.morph"])
names = {name.partition(".")[0] for name in sys.modules} | set(sys.modules)
print(*sorted(names & {"starlette", "uvicorn", "jinja2", "asyncio", "fabric.web", "webbrowser"}))
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project.logs, env=project.environ,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
