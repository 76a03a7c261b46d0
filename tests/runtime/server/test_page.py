"""The chat page in a real browser, on a real server with the demo model.

TRITGGUF_RECORD_PAGE=1 writes the screenshots in docs/images/.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium, show_on
from tests.paths import DOCS
from tests.served import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def browser(tmp_path_factory, served):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wait(browser: Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.05).until(lambda _: condition())


def texts(browser: Chrome, selector: str) -> list[str]:
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector)]


def element(browser: Chrome, name: str):
    return browser.find_element(By.ID, name)


def is_idle(browser: Chrome) -> bool:
    return element(browser, "send").is_displayed()


def open_page(browser: Chrome, url: str) -> None:
    browser.get(url)
    wait(browser, lambda: texts(browser, "#model option") == ["demo", "caller"])


def settings(browser: Chrome, **values: str) -> None:
    element(browser, "toggle").click()
    for name, value in values.items():
        field = element(browser, name)
        field.clear()
        field.send_keys(value)
    element(browser, "toggle").click()


def ask(browser: Chrome, question: str) -> None:
    element(browser, "question").send_keys(question, Keys.ENTER)
    wait(browser, lambda: texts(browser, ".message.user")[-1:] == [question])


def problems(browser: Chrome) -> list[dict]:
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_conversation(browser, served):
    open_page(browser, served.url)
    settings(browser, temperature="0", max_tokens="60")
    ask(browser, "Who are you?")
    wait(browser, lambda: is_idle(browser) and texts(browser, ".stats"))
    assert "language model" in texts(browser, ".assistant")[0]
    assert "tokens/s" in texts(browser, ".stats")[0]
    ask(browser, "What do you like to eat?")
    wait(browser, lambda: is_idle(browser) and len(texts(browser, ".stats")) == 2)
    assert "cached" in texts(browser, ".stats")[1]
    assert problems(browser) == []
    element(browser, "clear").click()
    assert texts(browser, ".message") == []


def test_stop_ends_the_answer_and_frees_the_slot(browser, served):
    open_page(browser, served.url)
    settings(browser, temperature="0", max_tokens="10")
    served.process.send_signal(signal.SIGSTOP)  # so that the answer isn't there before the button is pressed
    try:
        ask(browser, "Tell me a long story.")
        element(browser, "stop").click()
        wait(browser, lambda: is_idle(browser))
        assert texts(browser, ".stats") == ["stopped"]
    finally:
        served.process.send_signal(signal.SIGCONT)
    served.wait_until("slots_busy", 0)
    ask(browser, "Hello!")  # goes on after an answer that was stopped
    wait(browser, lambda: is_idle(browser))
    assert "answer" in texts(browser, ".stats")[-1]


def test_system_text_and_errors_are_shown(browser, served):
    """The demo's template refuses a system message, so its text is put before the question: more tokens."""
    open_page(browser, served.url)
    settings(browser, temperature="0", max_tokens="5", system="Answer like a pirate who has lost his ship.")
    ask(browser, "Hello!")
    wait(browser, lambda: is_idle(browser))
    assert int(texts(browser, ".stats")[-1].split()[1]) > 10
    settings(browser, temperature="-1", system="")
    ask(browser, "Hello again!")
    wait(browser, lambda: texts(browser, ".problem"))
    assert "temperature is -1" in texts(browser, ".problem")[-1]
    assert element(browser, "question").get_attribute("value") == "Hello again!"


def test_a_models_text_never_becomes_html(browser, served):
    open_page(browser, served.url)
    settings(browser, temperature="0", max_tokens="5")
    hostile = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    ask(browser, hostile)
    wait(browser, lambda: is_idle(browser))
    browser.execute_script("write(document.querySelector('.assistant > div:last-child'), arguments[0])", hostile)
    assert texts(browser, ".assistant")[-1] == hostile
    assert browser.title == "tritgguf"
    assert not browser.find_elements(By.CSS_SELECTOR, "main img, main script")


@pytest.mark.parametrize(("name", "dark", "width"), [("chat", False, 1000), ("chat-dark-phone", True, 390)])
def test_it_fits_the_screen_in_light_and_dark(browser, served, name, dark, width):
    show_on(browser, dark=dark, width=width)
    open_page(browser, served.url)
    settings(browser, temperature="0", max_tokens="60", seed="", system="")
    for question in ("Who are you?", "What do you like to eat?", "Do you have a dog?"):
        ask(browser, question)
        wait(browser, lambda: is_idle(browser))
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (max(int(part) for part in colour[4:-1].split(",")) < 60) == dark
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for control in ("question", "send", "toggle", "clear", "model"):
        box = element(browser, control).rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 38  # a finger's width
    assert element(browser, "send").rect["y"] < 760
    if os.environ.get("TRITGGUF_RECORD_PAGE"):
        (DOCS / "images").mkdir(exist_ok=True)
        browser.save_screenshot(str(DOCS / "images" / f"serve-{name}.png"))
    show_on(browser)
