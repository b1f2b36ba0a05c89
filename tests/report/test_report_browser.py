"""The page in a real browser: no console message, nothing asked for, nothing wider than the screen of a phone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_examples import full

from sparsewright.report import write_report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# What the browser asks for on its own account, with any page or none.
OWN_HOSTS = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com", "chromium.org")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine (apt-get install chromium)")


def browse(page: Path, folder: Path, *flags: str) -> str:
    """Run the browser on a page; returns what it said."""
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stderr + done.stdout


def asked_for(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Console lines, and hosts asked for that are not the browser's own."""
    log = folder / "net.json"
    said = browse(page, folder, f"--log-net-log={log}", "--dump-dom")
    hosts = set(re.findall(r'"url":"(?:https?|wss?)://([^/":]+)', log.read_text(errors="replace")))
    strange = [host for host in hosts if not host.endswith(OWN_HOSTS)]
    return [line for line in said.splitlines() if "CONSOLE" in line], strange


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full(), tmp_path_factory.mktemp("report"))[0]


def test_no_console_message_and_no_request_leaves_the_file(page: Path, tmp_path: Path) -> None:
    assert asked_for(page, tmp_path) == ([], [])


def test_the_check_above_would_see_a_message_and_a_request(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<script>console.error("seen")</script><img src="http://example.invalid/a.png">')
    messages, hosts = asked_for(bad, tmp_path)
    assert len(messages) >= 1
    assert hosts == ["example.invalid"]


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    # The page forbids scripts, so a frame around it measures; its copy carries no policy.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    measure = "<script>document.title='width '+document.documentElement.scrollWidth</script>"
    (tmp_path / "inner.html").write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
    frame = f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
    show = "<script>onload=()=>document.body.dataset.said=frames[0].document.title</script>"
    (tmp_path / "outer.html").write_text(frame + show, encoding="utf-8")
    said = browse(
        tmp_path / "outer.html", tmp_path, "--allow-file-access-from-files", "--dump-dom", "--window-size=1400,900"
    )
    found = re.search(r'data-said="width (\d+)"', said)
    assert found is not None
    assert int(found.group(1)) <= width


def test_the_page_prints(page: Path, tmp_path: Path) -> None:
    goal = tmp_path / "report.pdf"
    browse(page, tmp_path, f"--print-to-pdf={goal}")
    assert goal.read_bytes().startswith(b"%PDF")
