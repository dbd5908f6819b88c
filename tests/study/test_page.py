"""A notebook's page loads nothing from other servers, and has its formulae drawn."""

import nbformat
import pytest
from bs4 import BeautifulSoup

from specquant.study.page import draw_formulae, page


def drawn(html):
    soup = BeautifulSoup(html, "html.parser")
    draw_formulae(soup)
    return soup


def test_formulae_become_mathml():
    soup = drawn("<p>With $t_n$ and $$\\frac{a}{b}$$ it is so.</p>")
    inline, block = soup.find_all("math")
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert [tag.name for tag in inline.find("msub").find_all()] == ["mi", "mi"]
    assert block.find("mfrac")
    assert "$" not in soup.text


@pytest.mark.parametrize(
    "html", ["<code>$a$</code>", "<pre>$a$ and $b$</pre>", "<p>5 $ and 6 $ more</p>", "<p>$HOME</p>"]
)
def test_what_is_no_formula_stays(html):
    assert str(drawn(html)) == html


def test_no_script_of_another_server_stays():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n$x^2$")])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    html = page(notebook, "title")
    assert "<msup>" in html
    assert not [tag for tag in BeautifulSoup(html, "html.parser").find_all("script") if "https://" in str(tag)]


def test_links_stay_in_a_folder_that_may_be_moved():
    told = "[a](01_b.ipynb#c) [d](../docs/e.md) [f](https://g.h)"
    html = page(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(told)]), "title")
    soup = BeautifulSoup(html, "html.parser").select_one(".jp-MarkdownCell")
    assert [link["href"] for link in soup.find_all("a")] == ["01_b.html#c", "https://g.h"]
    assert soup.find("span", title="docs/e.md in the clone").text == "d"


def test_a_page_is_light_or_dark_as_the_browser_prefers():
    soup = BeautifulSoup(page(nbformat.v4.new_notebook(), "title"), "html.parser")
    light, dark = (style for style in soup.find_all("style") if "--jp-layout-color0: " in style.text)
    assert "--jp-layout-color0: white" in light.text
    assert not light.get("media")
    assert dark["media"] == "screen and (prefers-color-scheme: dark)"
    assert "--jp-layout-color0: #111" in dark.text
