"""The frame of the pages: data and texts stay data and texts, in a real browser too."""

import json

import pytest

from igpo_jax.pages.document import document, embedded, escape

HOSTILE = '</script><script>document.title=1</script><!-- & \u2028\x1b[31m <img src=x onerror="document.title=1">'


def test_embedded_data_reads_back_and_holds_no_markup():
    text = embedded({"text": HOSTILE})
    assert json.loads(text) == {"text": HOSTILE}
    assert not set("<>&") & set(text)


def test_embedded_data_refuses_what_json_has_no_word_for():
    with pytest.raises(ValueError):
        embedded([float("nan")])


def test_escape_leaves_no_markup_and_no_control_characters():
    assert not set('<>"\x1b\u2028') & set(escape(HOSTILE))


@pytest.mark.browser
def test_hostile_text_does_nothing_in_a_browser(tmp_path):
    from tests.browser import complaints, open_page, requests

    script = (
        'document.getElementById("shown").textContent = JSON.parse(document.getElementById("data").textContent)[0];'
    )
    path = tmp_path / "page.html"
    path.write_text(
        document("title", f"<p id=shown></p><pre>{escape(HOSTILE)}</pre>", "p { color: red }", script, [HOSTILE])
    )
    with open_page(path) as driver:
        assert driver.title == "title"
        assert driver.find_element("id", "shown").get_attribute("textContent") == HOSTILE
        assert requests(driver) == [] and complaints(driver) == []


@pytest.mark.browser
def test_the_policy_stops_scripts_and_requests_that_slipped_in(tmp_path):
    from tests.browser import open_page, requests

    path = tmp_path / "page.html"
    body = "<script>document.title='taken'</script><img src='http://127.0.0.1:9/x.png'>"
    path.write_text(document("title", body, "", ""))
    with open_page(path) as driver:
        assert driver.title == "title" and requests(driver) == []
