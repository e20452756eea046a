"""The samples page: nothing of a model's text is markup, and in a real browser filters and sliders work."""

import json
import re

import pytest

from igpo_jax.evaluation import page
from tests.evaluation.records import HOSTILE, report, sample


def rows(total=12):
    """Sample n is right if n is even, truncated if 3 divides it, and has no box if it is below 2."""
    return [sample(n, n % 2 == 0, truncated=n % 3 == 0, has_box=n >= 2) for n in range(total)]


def written(tmp_path, records, samples=1):
    path = tmp_path / "samples.html"
    path.write_text(page.render(report(records, samples), records))
    return path


def test_the_page_holds_every_sample_as_data_and_none_as_markup(tmp_path):
    records = [
        *rows(),
        sample(99, False, question=HOSTILE, text=HOSTILE, pieces=[HOSTILE, "\x1b[31m\u202e"], answer=None),
    ]
    text = written(tmp_path, records).read_text()
    assert "<img" not in text and text.count("<script") == 2 and not set("\x1b\u202e") & set(text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data) == 13 and data[-1]["question"] == HOSTILE and data[-1]["pieces"][0] == HOSTILE
    assert [row["id"] for row in data[:12]] == [f"test-{n}" for n in range(12)]
    assert "models/&lt;mine&gt;" in text and "53.8%" not in text and "46.2%" in text


@pytest.mark.browser
def test_filters_in_a_browser(tmp_path):
    from tests.browser import complaints, open_page, requests

    with open_page(written(tmp_path, [*rows(), sample(3, True, suite="more", question="Whose hats?")])) as driver:

        def shown():
            return [line.text for line in driver.find_elements("css selector", "#list summary")]

        def click(name):
            driver.find_element("id", name).click()

        assert len(shown()) == 13 and "sums test-0" in shown()[0]
        click("wrong")
        assert [line.split()[1] for line in shown()] == [f"test-{n}" for n in (1, 3, 5, 7, 9, 11)]
        click("truncated")
        assert len(shown()) == 2 and driver.find_element("id", "shown").text == "2 of 13 samples"
        click("wrong")
        click("no_box")
        assert len(shown()) == 1 and "test-0" in shown()[0]
        click("truncated")
        assert len(shown()) == 2
        click("no_box")
        driver.find_element("css selector", "#suite option[value=more]").click()
        assert len(shown()) == 1 and "Whose hats?" in shown()[0]
        driver.find_element("css selector", "#suite option[value='']").click()
        driver.find_element("id", "search").send_keys("WHAT IS 11")
        assert len(shown()) == 1 and "test-11" in shown()[0]
        assert requests(driver) == [] and complaints(driver) == []


@pytest.mark.browser
def test_the_order_of_reveal_in_a_browser(tmp_path):
    from tests.browser import complaints, open_page

    with open_page(written(tmp_path, [sample(7, True)])) as driver:
        driver.find_element("css selector", "#list summary").click()
        tokens = driver.find_elements("css selector", ".token")
        assert [token.get_attribute("textContent") for token in tokens] == ["so", " it", " is", " 7", ""]
        slider = driver.find_element("css selector", ".slider input")
        masked = []
        for done in range(6):
            driver.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, done
            )
            masked.append(["masked" in token.get_attribute("class").split() for token in tokens])
        steps = [1, 3, 0, 2, 4]
        assert masked == [[step >= done for step in steps] for done in range(6)]
        lateness = [
            float(driver.execute_script("return arguments[0].style.getPropertyValue('--late')", t)) for t in tokens
        ]
        assert lateness == [step / 5 for step in steps]
        assert "gold" in driver.find_element("css selector", "dl").text and complaints(driver) == []


@pytest.mark.browser
def test_script_tags_in_a_sample_do_nothing(tmp_path):
    from tests.browser import complaints, open_page, requests

    hostile = sample(
        1, False, question=HOSTILE, text=HOSTILE, pieces=[HOSTILE], reveal_step=[0], answer=HOSTILE, id=HOSTILE
    )
    with open_page(written(tmp_path, [hostile])) as driver:
        driver.find_element("css selector", "#list summary").click()
        assert driver.find_element("css selector", "#list pre").get_attribute("textContent") == HOSTILE
        assert driver.find_element("css selector", ".token").get_attribute("textContent") == HOSTILE
        assert driver.find_elements("css selector", "img") == [] and driver.title == "Evaluation"
        assert requests(driver) == [] and complaints(driver) == []


@pytest.mark.browser
def test_a_whole_benchmark_opens_with_few_elements(tmp_path):
    """As many samples as GSM8K has, of 256 tokens: what is not looked at is not built."""
    from tests.browser import complaints, open_page

    pieces = [f" word{place}" for place in range(256)]
    records = [sample(n, n % 2 == 0, pieces=pieces, reveal_step=list(range(256)), length=256) for n in range(1319)]
    with open_page(written(tmp_path, records)) as driver:
        assert driver.find_element("id", "shown").text == "1319 of 1319 samples"
        assert driver.execute_script("return document.getElementsByTagName('*').length") < 1000
        for _ in range(13):
            driver.find_element("id", "more").click()
        assert len(driver.find_elements("css selector", "#list details")) == 1319
        assert not driver.find_element("id", "more").is_displayed() and complaints(driver) == []
