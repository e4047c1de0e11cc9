"""The report in a real browser: nothing runs that must not, everything works, and it is quick."""

import random
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stargate.report.data import load_report
from stargate.report.page import render_page
from stargate.report.records import DialogueView, ReportData, ResponseView
from stargate.types import Pair
from tests.fakes.report_run import MARKUP, SCRIPT, build_halted_run, build_run
from tests.integration.chromium import FOUND, ReportBrowser, chromium, each

pytestmark = pytest.mark.integration

DIALOGUE = "#dialogue=eval-m2%2Ftest-task0%3Atest-a%2F0"
MAX_OPEN_SECONDS = 2.0
_OPENINGS = 5
_WORDS = 400  # different ones; a dialogue of a small model has no larger vocabulary
_HACK = "<script>window.hacked=1</script></script><img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportBrowser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield ReportBrowser(running.driver)


@pytest.fixture(scope="module")
def page(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(data, tmp_path_factory.mktemp("page"))


@pytest.fixture(autouse=True)
def clean(browser: ReportBrowser) -> Iterator[None]:
    """Every test starts at 1280 pixels in the light theme and ends without a console error."""
    browser.resize(1280)
    browser.prefer("light")
    browser.console_errors()
    yield
    assert browser.console_errors() == []


def write(data: ReportData, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render_page(data), encoding="utf-8")
    return path


def test_it_opens_without_a_request_or_an_error(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    assert browser.requested() == [page.resolve().as_uri()]
    assert browser.run("return document.title").startswith("tiny-20260101-000000")
    assert browser.found() == "1\u201325 of 76 dialogues"
    assert len(browser.listed()) == 25
    assert browser.run("return document.querySelectorAll('figure svg').length") >= 5


def test_figures_differ_by_the_theme_and_not_in_size(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    colours = {}
    for theme in ("light", "dark"):
        browser.prefer(theme)
        colours[theme] = browser.run(
            """
            const text = document.querySelector('figure svg text');
            return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill,
                    document.querySelector('figure svg').getBoundingClientRect().width];
            """
        )
    assert colours["light"][0] == "rgb(251, 250, 248)"
    assert colours["dark"][0] == "rgb(20, 22, 25)"
    assert colours["light"][1] != colours["dark"][1]
    assert colours["light"][2] == colours["dark"][2] > 200


def test_the_button_turns_the_theme(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    paint = "return getComputedStyle(document.body).backgroundColor"
    assert browser.run("return document.getElementById('theme').textContent") == "Dark"
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paint) == "rgb(20, 22, 25)"
    browser.open(page)
    assert browser.run(paint) == "rgb(20, 22, 25)", "the choice is remembered"
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paint) == "rgb(251, 250, 248)"


def test_filters(browser: ReportBrowser, page: Path, data: ReportData) -> None:
    browser.open(page)

    def count(test: object) -> int:
        assert callable(test)
        return sum(bool(test(dialogue)) for dialogue in data.dialogues)

    browser.set_filter("version", "2")
    assert browser.found().endswith(f"of {count(lambda d: d.version == 2)} dialogues (of 76)")
    browser.set_filter("source", "test")
    ids = browser.listed()
    assert len(ids) == count(lambda d: d.version == 2 and d.source == "test") == 12
    assert all(name.startswith("eval-m2/") for name in ids)
    browser.set_filter("persona", "test-b")
    assert len(browser.listed()) == 6
    browser.set_filter("task", "test-task1")
    assert browser.listed() == [f"eval-m2/test-task1:test-b/{index}" for index in (0, 1)]
    # -100 - 5 - 3 + 4 + index
    browser.set_filter("low", "-103.5")
    assert browser.listed() == ["eval-m2/test-task1:test-b/1"]
    browser.set_filter("high", "-103.2")
    assert browser.found() == "No dialogue fits these filters (of 76)"
    browser.run("document.querySelector('[type=reset]').click()")
    browser.wait(f"return {FOUND} === '1\u201325 of 76 dialogues'")
    browser.set_filter("chosen", True)
    chosen = {d.id for d in data.dialogues if d.chosen}
    assert set(browser.listed()) == chosen and len(chosen) == 8


def test_search_looks_into_every_text(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    browser.set_filter("search", "EATE")
    assert browser.found().startswith("No dialogue")
    # An answer's words, in any order and case.
    browser.set_filter("search", "red RICE <script>")
    assert browser.listed() == [
        "eval-m2/test-task0:test-a/0",
        "evaluations/strict/eval-m2/test-task0:test-a/0",
    ]
    # A response's.
    browser.set_filter("search", "trained response")
    assert browser.found() == "1\u20138 of 8 dialogues (of 76)"


def test_orders_and_pages(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    browser.set_filter("source", "test")
    browser.set_filter("order", "gain_high")
    # m2, second dialogue of a pair: 104 - 95.
    assert browser.texts(".row-gain")[:4] == ["+9.0"] * 4
    browser.set_filter("order", "score_low")
    assert browser.texts(".row-score")[0] == "\u2212108.0"
    browser.set_filter("order", "played")
    first = browser.listed()
    browser.run("document.getElementById('later').click()")
    assert browser.found() == "26\u201336 of 36 dialogues (of 76)"
    assert not set(browser.listed()) & set(first)
    assert browser.run("return document.getElementById('later').disabled")
    browser.run("document.getElementById('earlier').click()")
    assert browser.listed() == first


def test_side_by_side(browser: ReportBrowser, page: Path) -> None:
    browser.open(page, DIALOGUE)
    opened = "[e.dataset.dialogue, e.classList.contains('opened')]"
    sides = browser.run(f"return {each('.side')}.map(e => {opened})")
    assert sides == [
        ["eval-m0/test-task0:test-a/0", False],
        ["eval-m2/test-task0:test-a/0", True],
    ]
    assert browser.texts(".side-score strong") == ["\u2212100.0", "\u221296.0"]
    # m0: 3 and then 1; m2: 5 and 3.
    assert browser.texts(".turn-gain") == [
        *("+3.0 nats", "+1.0 nats"),
        *("+5.0 nats", "+3.0 nats"),
    ]
    assert browser.texts(".comparison strong") == ["+4.0 nats"]
    left = browser.texts(".side:nth-child(1) .question p")
    right = browser.texts(".side:nth-child(2) .question p")
    assert left == ["Who lives with you, m0?", "I see."]
    assert right == ["Who lives with you, m2?", "What do you never eat?"]
    # The fact is marked in the answer where it was told, and in the list of facts.
    assert browser.texts(".side:nth-child(2) mark")[0] == "I live with <b>two cats</b>"
    assert browser.texts(".side:nth-child(2) .fact-chip") == ["fact 1", "fact 2"]
    assert browser.texts(".facts tbody td") == [
        *("\u2713", "\u2713", "\u25cf"),
        *("\u00b7", "\u2713", "\u25cf"),
        *("\u00b7", "\u00b7", "\u00b7"),
    ]
    assert browser.texts(".gold p") == ["Gold 0 for <em>Ana Ruiz</em>: no onions."]
    assert browser.texts(".response h4") == [
        "Final response by m0",
        "Final response by m0",
        "Final response by m2",
    ]


def test_a_training_dialogue_beside_the_chosen_one(browser: ReportBrowser, page: Path) -> None:
    browser.open(page, "#dialogue=t0%2Fa-task0%3Aa-a%2F2")
    sides = browser.run(f"return {each('.side')}.map(e => e.dataset.dialogue)")
    assert sides == ["t0/a-task0:a-a/1", "t0/a-task0:a-a/2"]
    # -50, -48 and -49 around their mean; the middle one was chosen.
    assert browser.texts(".strip-item") == ["\u221250.0", "\u2605\u221248.0", "\u221249.0"]
    assert "0.0 against the pair's mean" in browser.texts(".side.opened .side-score")[0]


def test_keys_walk_through_the_list_and_leave(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    ids = browser.listed()
    browser.run("document.querySelectorAll('#dialogue-list a')[0].click()")
    shown = "return document.querySelector('.side.opened')?.dataset.dialogue"

    browser.wait(f"{shown} === arguments[0]", ids[0])
    browser.press("\ue014")  # right
    assert browser.run(shown) == ids[1]
    assert browser.run("return decodeURIComponent(location.hash)") == f"#dialogue={ids[1]}"
    browser.press("j")
    assert browser.run(shown) == ids[2]
    browser.press("\ue012")  # left
    assert browser.run(shown) == ids[1]
    browser.press("\ue00c")  # escape
    assert browser.run("return document.getElementById('detail').open") is False
    assert browser.run("return location.hash") == "#browser"


def test_an_unknown_dialogue_opens_nothing(browser: ReportBrowser, page: Path) -> None:
    browser.open(page, "#dialogue=%E0%A4%A&task=%00")
    assert browser.run("return document.getElementById('detail').open") is False


def test_a_task_leads_to_its_dialogues(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.breakdown a[href*=\"test-task1\"]').click()")
    browser.wait(f"return {FOUND} === '1\u201312 of 12 dialogues (of 76)'")
    ids = browser.listed()
    assert len(ids) == 12 and all("/test-task1:" in name for name in ids)
    assert all(name.startswith("eval-") for name in ids)


def test_tables_are_sorted_by_their_heads(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    press = "document.querySelectorAll('#where table')[1].tHead.rows[1].cells[2]"
    values = "return [...document.querySelectorAll('#where table')[1].tBodies[0].rows].map("
    browser.run(f"{press}.querySelector('button').click()")
    falling = browser.run(values + "row => Number(row.cells[2].dataset.value))")
    assert browser.run(f"return {press}.getAttribute('aria-sort')") == "descending"
    browser.run(f"{press}.querySelector('button').click()")
    rising = browser.run(values + "row => Number(row.cells[2].dataset.value))")
    assert falling == sorted(falling, reverse=True) and rising == falling[::-1]
    assert falling[0] != falling[1]


def test_nothing_that_a_model_wrote_runs(
    browser: ReportBrowser, data: ReportData, tmp_path: Path
) -> None:
    """Markup in every text there is: tasks, names, facts, golds, questions, answers, responses."""

    def hacked(pair: Pair) -> Pair:
        person = replace(pair.persona, name=_HACK, facts=(_HACK, _HACK, _HACK))
        return replace(pair, task=replace(pair.task, text=_HACK), persona=person, gold=_HACK)

    def hack(dialogue: DialogueView) -> DialogueView:
        turns = tuple(
            replace(turn, question=_HACK, answer=f"well: {_HACK}") for turn in dialogue.turns
        )
        pair, responses = hacked(dialogue.pair), (ResponseView(0, _HACK),)
        return replace(dialogue, pair=pair, turns=turns, responses=responses)

    evil = replace(
        data,
        name=f"run {_HACK}",
        status=_HACK,
        environment={_HACK: {"a": [_HACK]}},
        notes=(_HACK,),
        dialogues=tuple(map(hack, data.dialogues)),
    )
    page = write(evil, tmp_path)
    for fragment in ("", DIALOGUE, f"#task={SCRIPT}"):
        browser.open(page, fragment)
        browser.run("return new Promise(done => setTimeout(done, 50))")
        assert browser.run("return window.hacked") is None
        smuggled = "img, main script:not([type='application/json'])"
        assert browser.run(f'return document.querySelectorAll("{smuggled}").length') == 0
        assert browser.requested() == [page.resolve().as_uri()]
    browser.open(page, DIALOGUE)
    assert browser.texts("#detail-title") == [_HACK]
    assert set(browser.texts(".question p")) == {_HACK}
    assert set(browser.texts(".answer p")) == {f"well: {_HACK}"}
    assert browser.texts(".gold p") == [_HACK]
    assert set(browser.texts(".response p")) == {_HACK}
    assert browser.texts(".bar strong") == [f"run {_HACK}"]


def test_even_a_script_in_the_page_would_not_run(
    browser: ReportBrowser, page: Path, tmp_path: Path
) -> None:
    """The policy, tried with what escaping is there to prevent."""
    text = page.read_text(encoding="utf-8")
    evil = tmp_path / "evil.html"
    evil.write_text(text.replace("<main>", f"<main>{_HACK}", 1), encoding="utf-8")
    browser.open(evil)
    assert browser.run("return window.hacked") is None
    # The browser says that it refused, and that is why this is no error here.
    assert any("Content Security Policy" in message for message in browser.console_errors())


def test_model_text_is_shown_as_it_is(browser: ReportBrowser, page: Path) -> None:
    browser.open(page, DIALOGUE)
    assert MARKUP in browser.texts(".answer p")
    assert not browser.run("return document.title").startswith("pwned")


@pytest.mark.parametrize("fragment", ["", DIALOGUE])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_page_is_wider_than_the_screen(
    browser: ReportBrowser, page: Path, width: int, fragment: str
) -> None:
    browser.resize(width, 844)
    browser.open(page, fragment)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.getElementById('detail').scrollWidth") <= width


def test_print_leaves_the_browser_out(browser: ReportBrowser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    paper = tmp_path / "report.pdf"
    browser.print_to(paper)
    assert paper.read_bytes().startswith(b"%PDF")
    browser.resize(700)  # A4 between its margins
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = browser.run(
            "return ['browser', 'measures'].map(id => "
            "document.getElementById(id).getClientRects().length)"
        )
        width = browser.run("return document.documentElement.scrollWidth")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert shown == [0, 1]
    assert width <= 700


def test_a_run_that_died_opens(browser: ReportBrowser, tmp_path: Path) -> None:
    browser.open(write(load_report(build_halted_run(tmp_path)), tmp_path))
    assert browser.found().startswith("1\u2013")


def test_ten_thousand_dialogues_open_quickly(browser: ReportBrowser, tmp_path: Path) -> None:
    data = wordy(load_report(build_run(tmp_path, 10_000)))
    assert len(data.dialogues) >= 10_000
    page = write(data, tmp_path)
    opened: list[float] = []
    listed_at: list[float] = []
    for _ in range(_OPENINGS):
        browser.open(page)
        loaded = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
        browser.wait(loaded)  # 0 while the event's last listeners still run
        mark = "return performance.getEntriesByName('stargate:list')[0].startTime / 1000"
        opened.append(browser.run(loaded))
        listed_at.append(browser.run(mark))
    print(
        f"\n{len(data.dialogues):,} dialogues, {page.stat().st_size / 1e6:.1f} MB: "
        f"load event after {statistics.median(opened):.2f} s (fastest {min(opened):.2f}), "
        f"list drawn after {statistics.median(listed_at):.2f} s (fastest {min(listed_at):.2f}), "
        f"{_OPENINGS} openings"
    )
    # The fastest, because what else runs on the machine can only add to it.
    assert max(min(opened), min(listed_at)) < MAX_OPEN_SECONDS
    # It stays usable: few rows are laid out, and a search through every text is quick.
    assert browser.run("return document.querySelectorAll('#dialogue-list li').length") == 25
    seconds = browser.run(
        """
        const field = document.getElementById('filters').elements.search;
        field.value = 'w17 w3';
        const start = performance.now();
        field.dispatchEvent(new Event('input', { bubbles: true }));
        return new Promise(done => new MutationObserver(
          () => done((performance.now() - start) / 1000)
        ).observe(document.getElementById('dialogue-list'), { childList: true }));
        """
    )
    print(f"first search through all texts: {seconds:.2f} s")
    # Once only, so it must bear a busy machine; 0.2 s on a quiet one.
    assert seconds < 5 * MAX_OPEN_SECONDS


def wordy(data: ReportData) -> ReportData:
    """Texts as long as a small model's and hardly two the same: the string table can't help."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(_WORDS)]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    def write_anew(dialogue: DialogueView) -> DialogueView:
        turns = tuple(replace(turn, question=text(25), answer=text(20)) for turn in dialogue.turns)
        responses = tuple(replace(one, text=text(100)) for one in dialogue.responses)
        return replace(dialogue, turns=(*turns, *turns[:1]), responses=responses)

    return replace(data, dialogues=tuple(map(write_anew, data.dialogues)))
