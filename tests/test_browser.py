"""In the distribution's Chromium: notebooks in JupyterLab, the report, and the site (make test-browser)."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from specquant.files import project_root
from specquant.study.page import page as notebook_page
from specquant.study.report import Live, write_report
from tests.study.test_site import build

ROOT = project_root()
NOTEBOOKS = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
SLIDERS = [name for name in NOTEBOOKS if "study.sliders import" in (ROOT / "notebooks" / name).read_text()]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: install it (apt install chromium)"),
]
MINUTES = 60_000  # in milliseconds
SLOW = 5 * MINUTES  # for what a page does by itself: on a slow machine, beside others, it takes long
FIRST_SCREEN = 720  # pixels of a notebook that are seen before anybody scrolls, on a small screen
# What a page's text looks like: its contrast, by WCAG, with the nearest background behind it that is not transparent.
CONTRAST = """elements => elements.filter(e => e.innerText && e.innerText.trim() && e.offsetParent).map(e => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let behind = [255, 255, 255], dark = matchMedia('(prefers-color-scheme: dark)').matches;
  if (dark) behind = [18, 18, 18];
  for (let n = e; n; n = n.parentElement) {
    const c = parse(getComputedStyle(n).backgroundColor);
    if (c.length === 3 || c[3] > 0.9) { behind = c; break; } }
  const front = parse(getComputedStyle(e).color);
  let alpha = front.length === 4 ? front[3] : 1;
  for (let n = e; n; n = n.parentElement) alpha *= getComputedStyle(n).opacity;
  const seen = front.slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * behind[i]);
  const [a, b] = [light(seen), light(behind)].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.innerText.slice(0, 40)]; })"""
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"  # the notebook in JupyterLab that is not behind another
PAGE = f"document.querySelector('{SHOWN} .jp-WindowedPanel-outer')"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What is cut off, or has to be moved sideways to be seen, but tables, formulae, and what a program wrote.
HIDDEN = """elements => elements.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1
  && getComputedStyle(e).overflowX !== 'visible' && !e.querySelector('table, math')
  && !e.closest('.language-output')).map(e => e.innerText)"""
# The brightness of a picture's upper left pixel, from 0 to 255, where it is drawn on nothing: 0 if it is transparent.
CORNER = """picture => { const canvas = document.createElement('canvas').getContext('2d');
  canvas.drawImage(picture, 0, 0); return Math.min(...canvas.getImageData(0, 0, 1, 1).data); }"""


@pytest.fixture(scope="module")
def chromium():
    """The distribution's Chromium, one for all tests; they are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make .venv/.ready")
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "headless": True, "chromium_sandbox": False, "timeout": SLOW}
        try:
            started = driver.chromium.launch(args=[*QUIET.split(), "--disable-sync"], **options)
        except playwright.Error as error:
            pytest.skip(f"Chromium does not start here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@contextmanager
def window_of(chromium, scheme="light", width=1280):
    """A window that knows nothing of those before it."""
    window = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    window.set_default_timeout(SLOW)
    try:
        yield window
    finally:
        window.close()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab as `make lab` starts it, on copies of the notebooks that write elsewhere; its address and folder."""
    root = tmp_path_factory.mktemp("lab")
    (root / "notebooks").mkdir()
    for name in NOTEBOOKS:
        text = (ROOT / "notebooks" / name).read_text()
        (root / "notebooks" / name).write_text(text.replace('\\"results/tiny', f'\\"{root}/results'))
    (options,) = re.findall(r"^\t\$\(BIN\)/python -m jupyterlab (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    ours = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    ours += [f"--LabApp.user_settings_dir={root}/settings", f"--LabApp.workspaces_dir={root}/workspaces"]
    command = [sys.executable, "-m", "jupyterlab", *shlex.split(options), *ours]
    with open(root / "log.txt", "w") as log:
        server = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
    try:
        wait_for(lambda: asked(f"{address}/api"), (root / "log.txt").read_text)
        yield address, root
    finally:
        server.terminate()
        server.wait(timeout=30)


def asked(address, method="GET"):
    """What a server answers; None where it does not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=10) as answer:
            return json.loads(answer.read() or "{}")
    except OSError:
        return None


def wait_for(condition, explain=str, minutes=10):
    until = time.monotonic() + 60 * minutes
    while not condition():
        assert time.monotonic() < until, explain()
        time.sleep(0.5)


def close_kernels(address):
    for session in asked(f"{address}/api/sessions") or []:
        asked(f"{address}/api/sessions/{session['id']}", "DELETE")


def kernel_of(address, path):
    """What a notebook's own kernel is doing; others may never have been asked anything, and start for ever."""
    states = {each["path"]: each["kernel"]["execution_state"] for each in asked(f"{address}/api/sessions") or []}
    return states.get(f"notebooks/{path.name}")


def opened(window, address, name):
    tab = window.new_page()
    show(tab, address, name)
    return tab


def show(tab, address, name):
    """Show a notebook alone in JupyterLab."""
    tab.goto(f"{address}/lab/tree/notebooks/{name}?reset")
    wait_until_in_front(tab, name)


def wait_until_in_front(tab, name):
    """JupyterLab opens again what was left open, and keeps it in the page, hidden, behind what it shows."""
    tab.locator(".lm-TabBar-tab.lm-mod-current", has_text=name).wait_for()
    tab.wait_for_selector(f"{SHOWN} .jp-MarkdownCell h1")


def left_open(address):
    """What JupyterLab has kept of its window, to open it again."""
    kept = asked(f"{address}/lab/api/workspaces/default") or {}
    return json.dumps(kept.get("data", {}).get("layout-restorer:data", {}).get("main"))


def run_all(tab, address, path):
    """Run a notebook to its end by JupyterLab's menu, and save it; returns it."""
    # Before there is a kernel the menu would ask for one.
    wait_for(lambda: kernel_of(address, path) == "idle")
    tab.wait_for_selector(f"{SHOWN} .jp-Notebook-ExecutionIndicator[data-status='idle']", state="attached")
    tab.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    tab.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]

    def ended():
        if kernel_of(address, path) != "idle":
            return False
        tab.keyboard.press("Control+s")
        tab.wait_for_timeout(1000)
        ran = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        failed = any(output.output_type == "error" for cell in ran for output in cell.outputs)
        return failed or ran[-1].execution_count == len(code)

    wait_for(ended, minutes=20)
    return nbformat.read(path, 4)


def cleared(path, up_to=""):
    """Take the outputs away, so that what is there afterwards is of the run.

    up_to: what the last cell calls that is to run; those behind it go, as nothing here looks at them.
    """
    notebook = nbformat.read(path, 4)
    if up_to:
        calls = [cell.source.splitlines()[-1].startswith(up_to) for cell in notebook.cells]
        notebook.cells = notebook.cells[: calls.index(True) + 1]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    return path


def scroll_to(tab, locator):
    """JupyterLab draws only what is near the screen: scroll from the top until it is there."""
    tab.evaluate(f"{PAGE}.scrollTop = 0")
    tab.wait_for_timeout(300)
    for _ in range(60):
        if locator.count() and locator.first.is_visible():
            locator.first.scroll_into_view_if_needed()
            return locator.first
        tab.mouse.move(640, 500)
        tab.mouse.wheel(0, 500)
        tab.wait_for_timeout(300)
    raise AssertionError(f"{locator} is nowhere in the notebook")


def test_lab_opens_on_the_tour_and_each_notebook_on_its_question_answer_and_figure(lab, chromium):
    address, _ = lab
    with window_of(chromium) as window:
        tab = window.new_page()
        tab.goto(address)
        wait_until_in_front(tab, "00_tour.ipynb")
        assert "notebooks" in [item["name"] for item in asked(f"{address}/api/contents/")["content"]]
        for name in NOTEBOOKS:
            show(tab, address, name)
            title = next(c for c in nbformat.read(ROOT / "notebooks" / name, 4).cells if c.cell_type == "markdown")
            heading = tab.locator(f"{SHOWN} h1").first
            assert heading.inner_text().rstrip("¶").strip() in title.source, name
            picture = f"document.querySelector('{SHOWN} .jp-RenderedImage img')"
            tab.wait_for_function(f"{picture}?.complete && {picture}.naturalHeight > 0")
            end = tab.evaluate(f"{picture}.getBoundingClientRect().bottom - {PAGE}.getBoundingClientRect().top")
            assert 0 < end <= FIRST_SCREEN, f"the first figure of {name} is not on the first screen"
            assert tab.evaluate(f"{PAGE}.scrollWidth - {PAGE}.clientWidth") <= 0, f"{name} is wider than the screen"
        close_kernels(address)


def test_lab_opens_on_the_tour_over_what_was_left_open(lab, chromium):
    address, root = lab
    with window_of(chromium) as window:
        opened(window, address, "06_planner.ipynb")
        wait_for(lambda: "06_planner" in left_open(address))
    with window_of(chromium) as window:
        tab = window.new_page()
        tab.goto(address)
        wait_until_in_front(tab, "00_tour.ipynb")
        assert tab.locator(".jp-NotebookPanel").count() == 2
        assert "tour" in tab.locator(f"{SHOWN} h1").first.inner_text()
        assert list((root / "workspaces").iterdir())  # and so not among the user's own
        close_kernels(address)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_texts_and_tables_can_be_read_in_each_theme_of_lab(lab, chromium, theme):
    address, root = lab
    settings = root / "settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"theme": f"JupyterLab {theme}"}))
    with window_of(chromium) as window:
        tab = opened(window, address, "00_tour.ipynb")
        tab.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
        coloured = f"{SHOWN} .jp-OutputArea-output span[style*='background']"
        scroll_to(tab, tab.locator(coloured))
        readable(tab, coloured, least=7)
        texts = (".jp-RenderedHTML p", ".jp-RenderedHTML td", ".jp-RenderedHTML th", ".jp-RenderedMarkdown p")
        readable(tab, ", ".join(f"{SHOWN} {each}" for each in texts))
        close_kernels(address)
    settings.unlink()


def test_the_tour_runs_to_its_end_and_a_click_shows_another_tree(lab, chromium):
    address, root = lab
    path = cleared(root / "notebooks/00_tour.ipynb")
    with window_of(chromium) as window:
        tab = opened(window, address, path.name)
        notebook = run_all(tab, address, path)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        buttons = tab.locator(f"{SHOWN} .widget-toggle-buttons button")
        scroll_to(tab, buttons)
        changes(tab, buttons.last.click)
        close_kernels(address)


@pytest.mark.parametrize("name", SLIDERS)
def test_a_slider_moves_the_figure(lab, chromium, name):
    address, root = lab
    path = cleared(root / "notebooks" / name, up_to="explore(")
    with window_of(chromium) as window:
        tab = opened(window, address, name)
        run_all(tab, address, path)
        scroll_to(tab, tab.locator(f"{SHOWN} .widget-slider"))
        tab.locator(f"{SHOWN} .widget-slider .noUi-handle").last.focus()  # of the agreement, which is not at its end
        seconds = [changes(tab, lambda: tab.keyboard.press("ArrowRight")) for _ in range(5)]
        print(f"from a key to the new figure: {', '.join(f'{each:.2f}' for each in sorted(seconds))} s")
        close_kernels(address)


def changes(tab, act):
    """Assert that a figure on the screen is another one after this, wholly drawn; returns how many seconds it took."""
    before = tab.evaluate(
        """selector => {
        const pictures = () => [...document.querySelectorAll(selector)].map(e => e.src).join();
        const drawn = () => [...document.querySelectorAll(selector)].every(e => e.complete);
        const before = pictures();
        window.tookSeconds = null;
        const from = performance.now();
        const look = () => pictures() && pictures() !== before && drawn()
          ? (window.tookSeconds = (performance.now() - from) / 1000) : requestAnimationFrame(look);
        look();
        return before; }""",
        f"{SHOWN} .jp-RenderedImage img",
    )
    assert before
    act()
    return tab.wait_for_function("window.tookSeconds").json_value()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("docs") / "site")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of all notebooks as they are committed, one of them failed, with figures and a table."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "figures/h200", folder / "figures")
    for table in ("csv", "json"):
        shutil.copy(ROOT / f"data/recorded/h200/verify_cost.{table}", folder)
    figures = sorted(f"figures/{path.name}" for path in (folder / "figures").glob("*.png"))
    for place, name in enumerate(NOTEBOOKS):
        notebook, stem = nbformat.read(ROOT / "notebooks" / name, 4), Path(name).stem
        (folder / f"notebooks/{stem}.html").write_text(notebook_page(notebook, stem))
        shutil.copy(ROOT / "notebooks" / name, folder / "notebooks")
        record = {"error": "ValueError: it fails" if place == 1 else None, "seconds": 3, "title": stem}
        record |= {"date": "2026-01-01T00:00:00+00:00", "commit": "0123456789" * 4, "uncommitted_changes": place == 2}
        record |= {"files": ["verify_cost.csv", *figures[:2]], "findings": {"it is so": True, "or so": False}}
        (folder / f"notebooks/{stem}.json").write_text(json.dumps(record))
    write_report(folder, "tiny", [Path(name).stem for name in NOTEBOOKS])
    return folder


def readable(tab, selector, least=4.5):
    """Assert that there is such text, and that it stands out from what is behind it."""
    contrasts = tab.eval_on_selector_all(selector, CONTRAST)
    assert contrasts, selector
    assert [told for told in contrasts if told[0] < least] == [], selector


def test_pages_of_the_report_have_their_figure_on_the_first_screen(report, chromium):
    with window_of(chromium) as window:
        tab = window.new_page()
        for name in NOTEBOOKS:
            tab.goto((report / f"notebooks/{Path(name).stem}.html").as_uri())
            end = tab.evaluate("document.querySelector('.jp-RenderedImage img').getBoundingClientRect().bottom")
            assert end <= FIRST_SCREEN, f"the first figure of {name} is not on the first screen"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_can_be_read_and_followed(report, chromium, scheme):
    with window_of(chromium, scheme) as window:
        if scheme == "light":
            follow(window, report, report / "index.html")
        tab = window.new_page()
        tab.goto((report / "index.html").as_uri())
        readable(tab, "h1, h2, h3, p, td, th, li, dd, dt, a, span, figcaption")
        assert tab.evaluate(TOO_WIDE) <= 0


@pytest.mark.parametrize(("scheme", "sheet"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(17, 17, 17)")])
def test_pages_of_the_report_can_be_read_light_and_dark(report, chromium, scheme, sheet):
    with window_of(chromium, scheme) as window:
        tab = window.new_page()
        for name in NOTEBOOKS:
            tab.goto((report / f"notebooks/{Path(name).stem}.html").as_uri())
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == sheet, name
            readable(tab, "main *")
            assert tab.eval_on_selector(".jp-RenderedImage img", CORNER) == 255, f"a figure of {name} is not on white"
        for shown in (".jp-RenderedHTML td", ".highlight span", ".jp-InputPrompt", "summary", "a[href]"):
            readable(tab, shown)
        tab.emulate_media(media="print", color_scheme=scheme)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        readable(tab, "main *")


def test_nothing_of_the_report_is_beside_the_screen_of_a_phone(report, chromium):
    with window_of(chromium, width=390) as window:
        tab = window.new_page()
        for path in report.rglob("*.html"):
            fits(tab, path, "body *")


def test_the_report_of_a_running_batch_is_loaded_again(report, chromium):
    names = [Path(name).stem for name in NOTEBOOKS]
    write_report(report, "tiny", names, Live(names[0], 4, 25, tuple(names[1:])))
    with window_of(chromium) as window:
        tab = window.new_page()
        tab.goto((report / "index.html").as_uri())
        tab.get_by_text("running, cell 4 of 25").first.wait_for()
        write_report(report, "tiny", names)
        tab.get_by_text("running, cell 4 of 25").first.wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_can_be_read_and_followed(site, chromium, scheme):
    with window_of(chromium, scheme) as window:
        if scheme == "light":
            follow(window, site, site / "index.html")
        tab = window.new_page()
        tab.goto((site / "notebooks/00_tour.html").as_uri())
        readable(tab, ".jp-OutputArea-output span[style*='background']")
        readable(tab, ".jp-RenderedMarkdown p, .jp-RenderedHTML td, .jp-RenderedHTML th")
        assert not tab.locator(".celltoolbar", has_text="nbval").first.is_visible()  # the tests' own marks
        for path in pages_of(site):
            tab.goto(path.as_uri())
            readable(tab, "article :not(.headerlink)")  # that one is shown beside a heading when it is pointed at


def fits(tab, path, selector, hidden=HIDDEN):
    """Open a page and assert that all of it is on the screen, or can be scrolled to."""
    tab.goto(path.as_uri())
    assert tab.evaluate(TOO_WIDE) <= 0, f"{path} is wider than the screen"
    assert tab.eval_on_selector_all(selector, hidden) == [], path


def pages_of(site):
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]  # a server's, not a folder's


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_the_site_is_beside_the_screen(site, chromium, width):
    with window_of(chromium, width=width) as window:
        tab, hidden = window.new_page(), HIDDEN.replace("table, ", "") if width == 1280 else HIDDEN
        for path in (path for path in pages_of(site) if path.parent.name != "api"):  # whose tables are wide
            fits(tab, path, "article *", hidden)
            for figure in tab.locator("article .jp-RenderedImage img").all()[:1]:
                assert figure.bounding_box()["width"] > 0.9 * 358, path  # what a phone leaves between the margins


def follow(window, folder, start):
    """Open every page that is linked from here, directly or not; nothing may be missing, wide, or fetched elsewhere."""
    tab, fetched, seen, ahead = window.new_page(), [], set(), [start]
    tab.on("request", lambda request: fetched.append(request.url))
    while ahead:
        path = ahead.pop()
        if path in seen:
            continue
        seen.add(path)
        tab.goto(path.as_uri())
        if path.suffix == ".html" and path.parent.name != "api":  # names of the API are as long as they are
            assert tab.evaluate(TOO_WIDE) <= 0, f"{path.relative_to(folder)} is wider than the screen"
        for link in tab.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
            if link.startswith("file:"):
                target = Path(unquote(urlsplit(link).path))
                assert target.is_file(), f"{path.relative_to(folder)} links {link}"
                ahead += [target] if target.suffix == ".html" else []
    assert len(seen) > 5
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
