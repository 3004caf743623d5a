"""The report's page in headless Chromium, opened from disk: what its script does, and that it does so without a word."""

import json
import shutil

import numpy as np
import pytest

import main
from datasets.readers import load_scene
from utils.figures.palette import CORRECT, UNLABELLED, WRONG, class_colours

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (tests/requirements.txt)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser"),
              pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")]

HOSTILE = '</script><script>document.title = "taken"</script><img src=x onerror="document.title = 1">'
WIDE, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, train_once, tmp_path_factory):
    """The report of two runs and a copy of one whose target has a script for a name and other scores, open."""
    out, folder = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("named")
    runs = [train_once("--method", name).path for name in ("erm_gain", "erm")]
    other = shutil.copytree(runs[1], folder / "other")
    about = json.loads((other / "run.json").read_text()) | {"target": HOSTILE}
    (other / "run.json").write_text(json.dumps(about))
    scores = json.loads((other / "evaluation.json").read_text())
    for place, entry in enumerate(scores["rules"].values()):
        entry["target"]["kappa"] = (0.123, 0.9, 0.0945)[place]
    (other / "evaluation.json").write_text(json.dumps(scores))
    assert main.main(["report", *map(str, [*runs, other]), "--out", str(out), "--gpu", "-1"]) == 0
    size(browser, WIDE)
    browser.get((out / "index.html").as_uri())
    browser.execute_async_script("""
        const done = arguments[0], stage = document.getElementById("stage");
        const ask = () => stage.dataset.ready === undefined ? setTimeout(ask, 20) : done();
        ask();""")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []      # nor refused loads
    assert browser.title != "taken" and browser.title != "1"


def size(browser, shape):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": shape[0], "height": shape[1], "deviceScaleFactor": 1, "mobile": shape == PHONE})


def choose(page, name, text):
    """Choose an option of a select by its text."""
    page.execute_script("""
        const select = document.querySelector(arguments[0]);
        select.value = Array.from(select.options).find((one) => one.textContent === arguments[1]).value;
        select.dispatchEvent(new Event("change"));""", name, text)


def column(page, grid, name):
    """The texts of a table's column, rows that are shown, in their order."""
    return page.execute_script("""
        const table = document.querySelector(`#${arguments[0]} table`);
        const place = Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.textContent === arguments[1]);
        return Array.from(table.tBodies[0].rows).filter((row) => !row.hidden).map((row) => row.cells[place].textContent);
        """, grid, name)


def sort(page, grid, name):
    page.execute_script("""
        Array.from(document.querySelectorAll(`#${arguments[0]} th button`)).find(
            (button) => button.textContent === arguments[1]).click();""", grid, name)


def pixels(page, canvas):
    """The colours of a canvas [H, W, 3] in 0..255."""
    height, width, values = page.execute_script("""
        const canvas = document.getElementById(arguments[0]), context = canvas.getContext("2d");
        return [canvas.height, canvas.width,
                Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];""", canvas)
    return np.reshape(values, (height, width, 4))[..., :3]


def test_a_table_is_sorted_by_number_and_filtered(page):
    assert set(column(page, "scores", "rule")) == {"last"}
    choose(page, "#scores select[name=rule]", "all")
    sort(page, "scores", "κ")
    values = [float(text.split()[0]) for text in column(page, "scores", "κ")]
    assert values == sorted(values, reverse=True) and {90.0, 12.3, 9.4} <= set(values)      # not as texts
    sort(page, "scores", "κ")
    assert [float(text.split()[0]) for text in column(page, "scores", "κ")] == sorted(values)
    choose(page, "#scores select[name=method]", "erm")
    assert set(column(page, "scores", "method")) == {"erm"}
    choose(page, "#scores select[name=method]", "all")
    sort(page, "scores", "method")
    assert column(page, "scores", "method") == sorted(column(page, "scores", "method"))
    sort(page, "scores", "n")                                    # the constant answer has none: last either way
    assert column(page, "scores", "n")[-1] == "–" and column(page, "scores", "n")[0] != "–"
    sort(page, "scores", "n")
    assert column(page, "scores", "n")[-1] == "–"


def test_the_viewer_shows_truth_maps_and_errors(page, shared_pair):
    labels = load_scene(str(shared_pair.target)).labels
    colours = np.round(255 * np.array([UNLABELLED, *class_colours(7)]))
    choose(page, "#viewer-pair", next(text for text in options(page, "#viewer-pair") if "script" not in text))
    wait_for_pair(page)
    choose(page, "#viewer-left", "ground truth")
    np.testing.assert_array_equal(pixels(page, "canvas-left"), colours[labels])
    choose(page, "#viewer-right", "erm")
    shown = pixels(page, "canvas-right")
    predicted = np.argmax((shown[:, :, None] == colours).all(-1), axis=-1)
    assert predicted.min() >= 1
    choose(page, "#viewer-right", "erm: errors")
    outcome = np.where(labels == 0, 0, np.where(labels == predicted, 1, 2))
    np.testing.assert_array_equal(pixels(page, "canvas-right"),
                                  np.round(255 * np.array([UNLABELLED, CORRECT, WRONG]))[outcome])
    row, place = np.argwhere(labels > 0)[7]
    names = ("grass healthy", "grass stressed", "trees", "water", "residential buildings", "non-residential buildings", "road")
    told = point_at(page, row, place, labels.shape)
    assert told == f"row {row}, column {place} · ground truth: {names[labels[row, place] - 1]} · " \
                   f"erm: {names[predicted[row, place] - 1]}"


def options(page, select):
    return page.execute_script("""
        return Array.from(document.querySelector(arguments[0]).options, (one) => one.textContent);""", select)


def wait_for_pair(page):
    page.execute_async_script("""
        const done = arguments[0], stage = document.getElementById("stage"), pair = document.getElementById("viewer-pair");
        const ask = () => stage.dataset.ready === pair.value ? done() : setTimeout(ask, 20);
        ask();""")


def point_at(page, row, place, shape):
    """What the viewer says of a pixel when the pointer is there."""
    return page.execute_script("""
        const [row, place, height, width] = arguments, stage = document.getElementById("stage");
        const box = stage.getBoundingClientRect();
        stage.dispatchEvent(new PointerEvent("pointermove", {
            clientX: box.left + box.width * (place + 0.5) / width, clientY: box.top + box.height * (row + 0.5) / height}));
        return document.getElementById("readout").textContent;""", int(row), int(place), *shape)


def test_the_slider_moves_the_border_between_the_maps(page):
    def border():
        return page.execute_script("""
            const box = document.getElementById("stage").getBoundingClientRect();
            const line = document.getElementById("divider").getBoundingClientRect();
            return (line.left + line.width / 2 - box.left) / box.width;""")
    assert border() == pytest.approx(0.5, abs=0.01)
    slider = page.find_element("id", "slider")
    slider.send_keys(webdriver.Keys.HOME)
    assert border() == pytest.approx(0, abs=0.01)
    for _ in range(40):
        slider.send_keys(webdriver.Keys.ARROW_RIGHT)
    assert border() == pytest.approx(0.2, abs=0.01)
    clip = page.execute_script("return getComputedStyle(document.getElementById('canvas-right')).clipPath")
    assert clip == "inset(0px 0px 0px 20%)"


def test_a_figure_is_large_on_a_click(page):
    button = page.find_element("css selector", ".enlarge")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    small, large = button.find_element("tag name", "img"), page.find_element("css selector", "dialog img")
    assert large.is_displayed() and large.size["width"] > 2 * small.size["width"]
    assert large.get_property("naturalWidth") > 500
    page.find_element("id", "close").click()
    assert not large.is_displayed()


def test_every_picture_is_one(page):
    assert page.execute_script("return Array.from(document.querySelectorAll('.enlarge img')).every("
                               "(one) => one.complete && one.naturalWidth > 0)")


@pytest.mark.parametrize("shape", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_screen(page, shape):
    size(page, shape)
    width, view = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    size(page, WIDE)
    assert width <= view == shape[0]


def test_in_print_everything_is_open_and_the_controls_are_gone(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    shown, closed = page.execute_script("""
        const seen = (name) => getComputedStyle(document.querySelector(name)).display !== "none";
        return [[seen("nav"), seen("#viewer"), seen(".filters"), seen(".gallery")],
                document.querySelectorAll("details:not([open])").length];""")
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert shown == [False, False, False, True] and closed == 0
