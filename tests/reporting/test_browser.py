"""The page in a real browser: filters, slider, search and keys work; what a model wrote does nothing; it opens fast."""

import json

import pytest

from igpo_jax import report
from tests.reporting import cases

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of one run with 24 rollouts, two of them hostile."""
    folder = cases.make_run(tmp_path_factory.mktemp("run") / "run")
    rows = [
        cases.row(group=n // 4, correct=n % 2 == 0, all_wrong=n < 8, rescued=n < 4, replaced=n in (1, 2))
        for n in range(12)
    ]
    rows[5] |= {"truncated": True, "answer": None, "completion": "unicorn", "pieces": ["uni", "corn\n", "!"]}
    rows[11] |= {
        "pieces": [cases.HOSTILE] * 3,
        "question": cases.HOSTILE,
        "reason": cases.HOSTILE,
        "answer": cases.HOSTILE,
    }
    cases.save_rollouts(folder, rows)
    finding = {"stage": "igpo", "step": 3, "signature": "ratio_gap", "value": 0.1, "advice": "check the <b>masks</b>"}
    (folder / "health.jsonl").write_text(json.dumps(finding) + "\n")
    cases.save_rollouts(folder, [cases.row(group=n // 4) for n in range(12)], step=20)
    assert report.main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver(page):
    from tests.browser import open_page

    with open_page(page) as driver:
        yield driver


@pytest.fixture(autouse=True)
def afresh(driver):
    driver.refresh()


def text(driver, name):
    return driver.find_element("id", name).text


def click(driver, name):
    driver.execute_script(f"document.querySelector('[data-filter={name}]').click()")


def counts(driver):
    chips = driver.find_elements("css selector", "#filters .chip")
    return {chip.get_attribute("data-filter"): int(chip.find_element("tag name", "small").text) for chip in chips}


def tokens(driver, kind):
    return [node.text for node in driver.find_elements("css selector", f"#text .token.{kind}")]


def set_step(driver, value):
    driver.execute_script(
        "const s = document.getElementById('step'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", value
    )


def test_filters_combine_and_count(driver):
    assert text(driver, "shown") == "24 of 24"
    expected = {"all_wrong": 8, "rescued": 4, "replaced": 2, "truncated": 1, "no_answer": 1, "correct": 6, "unused": 0}
    assert counts(driver) == expected | {"hinted": 24}
    click(driver, "all_wrong")
    assert text(driver, "shown") == "8 of 24" and counts(driver)["correct"] == 4
    click(driver, "correct")
    assert text(driver, "shown") == "4 of 24" and counts(driver)["all_wrong"] == 4 and counts(driver)["replaced"] == 1
    click(driver, "correct")
    assert text(driver, "shown") == "4 of 24", "the second click excludes"
    click(driver, "truncated")
    assert text(driver, "shown") == "1 of 24" and "group 1, sample 1" in text(driver, "where")
    click(driver, "no_answer"), click(driver, "no_answer")
    assert text(driver, "shown") == "0 of 24" and not driver.find_element("id", "rollout").is_displayed()


def test_the_slider_goes_through_the_steps(driver):
    assert text(driver, "count") == "step 2 of 2" and tokens(driver, "masked") == []
    assert tokens(driver, "hint") == ["spends"] == tokens(driver, "dropped")
    set_step(driver, 0)
    assert len(tokens(driver, "masked")) == 2 and text(driver, "count") == "step 0 of 2"
    set_step(driver, 1)
    assert len(tokens(driver, "masked")) == 1 and tokens(driver, "new") == ["·"]
    driver.find_element("id", "play").click()
    driver.find_element("id", "next").click()
    assert text(driver, "count") == "step 2 of 2", "another rollout is shown whole, and nothing plays on"
    assert text(driver, "play") == "play"


def test_the_order_of_reveal_is_a_shade(driver):
    shades = [
        node.value_of_css_property("background-color") for node in driver.find_elements("css selector", "#text .token")
    ]
    assert len(set(shades)) == 3


def test_the_facts_of_a_rollout(driver):
    verdict = text(driver, "verdict")
    for fact in ("reward\n0", "advantage\n-0.5", "judge\ndifferent numbers", "answer\n427", "right answer\n437"):
        assert fact in verdict
    assert len(driver.find_elements("css selector", "#mates button")) == 4
    driver.find_elements("css selector", "#mates button")[2].click()
    assert "group 0, sample 2" in text(driver, "where")


def test_search_looks_into_prompt_and_completion(driver):
    from selenium.webdriver.support.ui import WebDriverWait

    driver.find_element("id", "search").send_keys("UNIcorn")
    WebDriverWait(driver, 5).until(lambda d: text(d, "shown") == "1 of 24")
    assert counts(driver)["truncated"] == 1 and counts(driver)["correct"] == 0


def test_keys_and_jumps(driver):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    ActionChains(driver).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT).perform()
    assert text(driver, "where") == "igpo step 10, group 0, sample 1"
    Select(driver.find_element("id", "jump-file")).select_by_visible_text("igpo 20")
    assert text(driver, "where") == "igpo step 20, group 0, sample 0"
    Select(driver.find_element("id", "jump-group")).select_by_visible_text("2")
    assert text(driver, "where") == "igpo step 20, group 2, sample 0"


def test_curves_show_their_values_and_can_be_hidden(driver):
    from selenium.webdriver.common.action_chains import ActionChains

    figure = driver.find_element("id", "figure-all_wrong")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    ActionChains(driver).move_to_element(figure.find_element("tag name", "svg")).perform()
    assert figure.find_element("css selector", ".tip").text == "step 3\nbefore the second batch 40%\nafter it 20%"
    assert len(figure.find_elements("css selector", "svg[role=img] .line")) == 2
    figure.find_element("css selector", ".key button").click()
    assert len(figure.find_elements("css selector", "svg[role=img] .line")) == 1


def test_health_findings_are_listed_and_marked(driver):
    assert "ratio_gap" in text(driver, "health") and "check the <b>masks</b>" in text(driver, "health")
    marks = driver.find_elements("css selector", "#figure-reward .event title")
    assert [mark.get_attribute("textContent") for mark in marks] == ["run, step 3: ratio_gap"]
    assert driver.find_elements("css selector", "#figure-sft_loss .event, #figure-evaluation .event") == []


def test_what_a_model_wrote_does_nothing(driver):
    from selenium.webdriver.support.ui import Select

    from tests.browser import complaints, requests

    title = driver.title
    Select(driver.find_element("id", "jump-group")).select_by_visible_text("2")
    for _ in range(3):
        driver.find_element("id", "next").click()
    assert "<img src=http" in text(driver, "text") and "<script>" in text(driver, "prompt")
    assert "onerror" in text(driver, "verdict")
    assert driver.title == title and driver.find_elements("css selector", "#rollout img, #list img") == []
    assert requests(driver) == [] and complaints(driver) == []


def test_two_thousand_rollouts_open_in_under_two_seconds(tmp_path, capsys):
    """From the start of the navigation until the first picture with list, curves and a rollout is on the screen."""
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.browser import complaints, open_page

    folder = cases.make_run(tmp_path / "run", steps=360)
    cases.save_rollouts(folder, cases.many_rows(2000, 256))
    assert report.main([str(folder)]) == 0
    size = (folder / "report.html").stat().st_size / 1e6
    mark = "return (performance.getEntriesByName('ready')[0] || {startTime: null}).startTime"
    with open_page(folder / "report.html") as driver:
        times = []
        for _ in range(3):
            times.append(WebDriverWait(driver, 20).until(lambda d: d.execute_script(mark)))
            driver.refresh()
        WebDriverWait(driver, 20).until(lambda d: d.execute_script(mark))
        assert text(driver, "shown") == "2000 of 2000" and complaints(driver) == []
        assert len(driver.find_elements("css selector", "#list .row")) < 60
    with capsys.disabled():
        print(
            "\n"
            + json.dumps({"rollouts": 2000, "tokens": 256, "MB": round(size, 1), "ready_ms": [round(t) for t in times]})
        )
    assert sorted(times)[1] < 2000
