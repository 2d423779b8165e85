#!/usr/bin/env python3
"""Uses the page of `rdpm serve` in a headless Chromium, as a visitor would.

    scripts/check_page.py [--rdpm target/release/rdpm] [--model builtin] [--screenshot FILE]

Draws by typing a synonym and pressing Enter, changes class, guidance, temperature and seed, downloads
and copies what was drawn, cancels in three ways, sees a refusal, reconstructs a chosen and a dropped
image, works on a narrow screen, and gives a token. No request goes elsewhere. Prints the time from the
click to the first preview. Needs a `chromium` in the PATH (Debian's package of that name) and nothing
else: the browser is driven through a pipe.
"""

import argparse
import base64
import json
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path


class Browser:
    """One page of a Chromium that is driven by its DevTools protocol over a pipe."""

    def __init__(self, folder):
        program = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
        if program is None:
            raise SystemExit("no chromium in the PATH: install Debian's package chromium")
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        def ends():
            # Copies first: these numbers may be 3 and 4 themselves.
            reading, writing = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        # Nothing that the browser itself would ask others for.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder}/browser"]
        self.process = subprocess.Popen([program, *options, "about:blank"], preexec_fn=ends, close_fds=False,
                                        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.number, self.session, self.complaints, self.asked = b"", 0, None, [], []
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(page["targetId"] for page in pages if page["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "DOM", "Network"]:
            self.send(f"{domain}.enable")

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.read_end, 1 << 20)
            if not part:
                raise SystemExit("the browser has ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(message)
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(message["params"]["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.complaints.append(message["params"]["entry"])
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        return message

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def run(self, script):
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, script, seconds=60):
        """Until the script's value is true."""
        begin = time.monotonic()
        while not self.run(script):
            if time.monotonic() - begin > seconds:
                raise AssertionError(f"not within {seconds} s: {script}\n{self.run('document.body.innerText')}")
            time.sleep(0.01)

    def open(self, address):
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def size(self, width, height, scale=1):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=width < 600)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def press(self, key):
        code = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowRight": 39, "Tab": 9, "End": 35}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ["keyDown", "keyUp"]:
            extra = text if kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def click(self, selector):
        box = self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();
            return [b.x + b.width / 2, b.y + b.height / 2, b.width]; }})()""")
        assert box[2] > 0, f"{selector} is not visible"
        for kind in ["mousePressed", "mouseReleased"]:
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def picture(self, path):
        data = self.send("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def end(self):
        self.process.kill()
        self.process.wait()


class Server:
    def __init__(self, rdpm, model, *options):
        line = [rdpm, "serve", "--model", model, "--port", "0", *options]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://"), self.address

    def metric(self, name):
        with urllib.request.urlopen(self.address + "metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))

    def end(self):
        self.process.terminate()
        assert self.process.wait(60) == 0, "it did not end as it should"


def ready(page):
    page.wait("!document.querySelector('#go').disabled")


def set_field(page, selector, value):
    page.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()""")
    page.type(str(value))


STATUS = "document.querySelector('#status').textContent"
DONE = f"{STATUS}.startsWith('done')"
ERROR = "!document.querySelector('#error').hidden"
PICTURES = "document.querySelectorAll('#gallery img').length"


def draw(page):
    """Clicks; returns the seconds until the first preview is in the document."""
    page.run("document.querySelector('#gallery').replaceChildren()")
    page.run("""window.first = new Promise((resolve) => {
        let begin;
        document.querySelector('#go').addEventListener('click', () => { begin = performance.now(); }, {once: true});
        new MutationObserver((_, observer) => {
            if (!document.querySelector('#gallery img')) return;
            observer.disconnect(); resolve((performance.now() - begin) / 1000);
        }).observe(document.querySelector('#gallery'), {subtree: true, childList: true});
    }); null""")
    page.click("#go")
    return page.run("window.first")


def downloaded(page, folder, selector):
    """The name and bytes of what a button saves."""
    before = set(os.listdir(folder))
    page.click(selector)
    begin = time.monotonic()
    while True:
        for name in set(os.listdir(folder)) - before:
            png = Path(folder, name).read_bytes() if name.endswith(".png") else b""
            # The browser may give a file its name before its bytes.
            if png.endswith(b"IEND\xaeB`\x82"):
                return name, png
        assert time.monotonic() - begin < 20, f"{selector} saves nothing"
        page.run("1")  # Lets the browser speak.
        time.sleep(0.02)


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n", png[:8]
    return struct.unpack(">II", png[16:24])


def cancelled(page, server, number):
    """Until the server has dropped so many requests; the seconds that took."""
    begin = time.monotonic()
    while server.metric("rdpm_cancelled_total") != number:
        assert time.monotonic() - begin < 30, "the server goes on"
        time.sleep(0.05)
    return time.monotonic() - begin


def check(args, folder):
    server = Server(args.rdpm, args.model)
    page = Browser(folder)
    downloads = f"{folder}/downloads"
    os.mkdir(downloads)
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=downloads)
    page.size(1180, 900)
    page.open(server.address)
    ready(page)
    print("page:", page.text("#about"))

    own = [page.run(f"document.querySelector('{field}').value") for field in ["#cfg", "#temperature"]]

    # By keyboard alone: a synonym, its class, Enter draws.
    chosen = page.run("document.querySelector('#class').value")
    synonym = page.run("""(() => { const e = classes.find((e) => e.words.includes(',')) ?? classes.at(-1);
        return e.words.split(',').at(-1).trim(); })()""")
    first = page.run(f"title(matching({json.dumps(synonym)})[0])")
    set_field(page, "#class", synonym)
    assert page.run("document.querySelector('#class').getAttribute('aria-expanded')") == "true"
    assert page.run("document.querySelector('#class').getAttribute('aria-activedescendant')") == "class-0"
    page.press("Enter")
    assert page.run("document.querySelector('#class').value") == first, synonym
    assert page.run("document.querySelector('#classes').hidden")
    set_field(page, "#num", 2)
    page.press("Enter")
    page.wait(DONE)
    steps = page.run("document.querySelectorAll('#strip img[src]').length")
    assert page.run(PICTURES) == 2 and steps == page.run("document.querySelectorAll('#strip li').length")
    command = page.text("#command")
    assert command.startswith("rdpm sample ") and "--seed 0 " in command, command
    print(f"drawn: `{synonym}` is {first}; {command}")

    # Another class, the same picture on the command line.
    set_field(page, "#class", chosen)
    page.press("Escape")
    set_field(page, "#num", 1)
    draw(page)
    page.wait(DONE)
    shown = page.run("images[0].steps.at(-1)")
    line = page.text("#command").replace("rdpm sample", f"{args.rdpm} sample", 1)
    subprocess.run(f"{line} --out {folder}/drawn --quiet", shell=True, check=True, stdout=subprocess.DEVNULL)
    file = os.path.join(folder, "drawn", os.listdir(f"{folder}/drawn")[0])
    with open(file, "rb") as saved:
        same = page.run(f"""(async () => {{ const pixels = async (png) => {{ const i = await load(png);
            const c = new OffscreenCanvas(i.naturalWidth, i.naturalHeight).getContext('2d'); c.drawImage(i, 0, 0);
            return String(c.getImageData(0, 0, i.naturalWidth, i.naturalHeight).data); }};
            return await pixels({json.dumps(shown)}) === await pixels("{base64.b64encode(saved.read()).decode()}"); }})()""")
    assert same, "the page's picture is not the command's"
    print(f"changed: {chosen}, and the command line draws the same pixels")

    # Other settings, by numbers, by a slider and its key, by the dice; of several images each has its steps.
    set_field(page, "#cfg", "2.5")
    assert page.run("document.querySelector('#cfg-range').value") == "2.5"
    page.run("document.querySelector('#temperature-range').focus()")
    page.press("End")
    assert page.run("document.querySelector('#temperature').value") == "1.5"
    page.click("#dice")
    seed = page.run("document.querySelector('#seed').value")
    assert seed != "0" and seed.isdigit(), seed
    number = page.run("(() => { const e = classes.at(-1); return String(e.number ?? e.index); })()")
    set_field(page, "#class", number)
    page.press("Enter")
    assert page.run("document.querySelector('#class').value") == page.run("title(classes.at(-1))")
    set_field(page, "#num", 3)
    draw(page)
    page.wait(DONE)
    command = page.text("#command")
    for words in ["--num 3", f"--seed {seed}", "--cfg 2.5", "--temperature 1.5"]:
        assert words in command, command
    strip = "String([...document.querySelectorAll('#strip img')].map((e) => e.src))"
    first = page.run(strip)
    page.click("#gallery .tile:nth-child(2)")
    assert page.run(strip) != first and "image 2 of 3" in page.text("#strip-caption")

    # What was drawn, as files and as a command.
    name, png = downloaded(page, downloads, "#save-image")
    assert seed in name and png == base64.b64decode(page.run("images[1].steps.at(-1)")), name
    w, h = size_of(png)
    name, png = downloaded(page, downloads, "#save-strip")
    assert name.endswith("-steps.png") and size_of(png) == (steps * (w + 2) - 2, h), (name, size_of(png))
    name, png = downloaded(page, downloads, "#save-all")
    assert size_of(png) == (2 * w + 2, 2 * h + 2), size_of(png)
    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.click("#copy")
    page.wait("document.querySelector('#copy').textContent === 'Copied'")
    assert page.run("navigator.clipboard.readText()") == command
    print(f"settings, downloads, copied: {command}")
    set_field(page, "#class", chosen)
    page.press("Escape")
    for field, value in [("#cfg", own[0]), ("#temperature", own[1]), ("#seed", 0), ("#num", 1)]:
        set_field(page, field, value)

    # The time to the first preview.
    seconds = [draw(page)]
    for _ in range(args.rounds - 1):
        page.wait(DONE)
        seconds.append(draw(page))
    page.wait(DONE)
    print(f"first preview of one image after the click: median {statistics.median(seconds):.3f} s, "
          f"worst {max(seconds):.3f} s, of {len(seconds)}")
    assert args.must is None or statistics.median(seconds) <= args.must, f"more than {args.must} s"
    set_field(page, "#num", 4)
    seconds = [draw(page)]
    for _ in range(args.rounds - 1):
        page.wait(DONE)
        seconds.append(draw(page))
    page.wait(DONE)
    print(f"first preview of four: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s")
    assert args.must is None or statistics.median(seconds) <= args.must, f"more than {args.must} s"

    # Cancelled by its button, by a key and by leaving, and forgotten by the server.
    set_field(page, "#num", 16)
    draw(page)
    page.click("#cancel")
    page.wait(f"{STATUS} === 'cancelled'")
    seconds = [cancelled(page, server, 1)]
    assert not page.run(ERROR)
    draw(page)
    page.press("Escape")
    page.wait(f"{STATUS} === 'cancelled'")
    seconds.append(cancelled(page, server, 2))
    draw(page)
    page.open("about:blank")
    seconds.append(cancelled(page, server, 3))
    page.open(server.address)
    ready(page)
    print("cancelled by button, key, leaving: the server stopped " + ", ".join(f"{s:.2f}" for s in seconds) + " s later")

    # A refusal, with what it says.
    set_field(page, "#class", "golden retreiver of no data set")
    page.press("Escape")
    page.click("#go")
    page.wait(ERROR)
    refusal = page.text("#error")
    assert "there is no class" in refusal and "nearest" in refusal, refusal
    print("refused:", refusal.replace("\n", " / ")[:100])
    # 422 is logged as a failed resource; anything else is a fault of the page.
    page.complaints = [c for c in page.complaints if "422" not in str(c)]

    # The other tab by keyboard, and an image.
    page.run("document.querySelector('#tab-draw').focus()")
    page.press("ArrowRight")
    assert page.run("!document.querySelector('#reconstruct').hidden && document.querySelector('#draw').hidden")
    document = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[args.image or file])
    page.wait("!document.querySelector('#reconstruction').hidden")
    places = page.run("document.querySelectorAll('#codes canvas').length")
    assert places == page.run("document.querySelectorAll('#codes img').length") > 1
    page.wait("document.querySelector('#result').naturalWidth > 0")
    chosen_psnr = page.text("#psnr")
    name, png = downloaded(page, downloads, "#save-result")
    assert "reconstructed" in name and size_of(png) == (w, h), name
    # The same one, dropped on the page while the other tab is open.
    page.click("#tab-draw")
    page.run("document.querySelector('#psnr').textContent = ''")
    with open(args.image or file, "rb") as dropped:
        page.run(f"""(() => {{ const data = new DataTransfer(); const bytes = atob("{base64.b64encode(dropped.read()).decode()}");
            data.items.add(new File([Uint8Array.from(bytes, (c) => c.charCodeAt(0))], 'a.png'));
            document.dispatchEvent(new DragEvent('drop', {{dataTransfer: data, bubbles: true, cancelable: true}})); }})()""")
    page.wait("document.querySelector('#psnr').textContent !== ''")
    assert page.run("!document.querySelector('#reconstruct').hidden") and page.text("#psnr") == chosen_psnr
    print("reconstructed, chosen and dropped:", chosen_psnr)
    if args.screenshot:
        page.picture(args.screenshot.replace(".png", "-reconstruct.png"))
    # One that is no image, dropped.
    page.run("""(() => { const data = new DataTransfer(); data.items.add(new File(['no image'], 'a.png'));
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); })()""")
    page.wait(ERROR)
    assert "not an image" in page.text("#error")
    page.complaints = [c for c in page.complaints if "422" not in str(c)]

    # Nothing reaches beyond a narrow screen, with what is drawn on it.
    page.click("#tab-draw")
    page.size(320, 800)
    set_field(page, "#class", chosen)
    page.press("Enter")
    set_field(page, "#num", 2)
    draw(page)
    page.wait(DONE)
    for width in [320, 390, 768]:
        page.size(width, 800)
        for tab in ["#tab-reconstruct", "#tab-draw"]:
            page.click(tab)
            wide = page.run("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} pixels wide at {width}"
    print("narrow: drawn, and nothing wider than 320, 390 or 768 pixels")
    if args.screenshot:
        page.size(390, 1500)
        page.picture(args.screenshot.replace(".png", "-narrow.png"))
        page.size(1180, 930)
        set_field(page, "#class", chosen)
        page.press("Escape")
        set_field(page, "#num", 8)
        set_field(page, "#seed", args.seed)
        draw(page)
        page.wait(DONE, 120)
        page.run("scrollTo(0, 0); document.activeElement.blur()")
        page.picture(args.screenshot)
    # Every control has a name.
    nameless = page.run("""[...document.querySelectorAll('input, button, [role]')].filter((e) =>
        !(e.labels?.length || e.innerText.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
          || ['status', 'alert'].includes(e.getAttribute('role')))).map((e) => e.outerHTML)""")
    assert not nameless, nameless
    server.end()
    # The server is gone: the page says so.
    page.click("#go")
    page.wait(ERROR)
    assert "does not answer" in page.text("#error")
    page.complaints = [c for c in page.complaints if "ERR_CONNECTION_REFUSED" not in str(c)]

    # A token is asked for until it is right.
    token = "a-token-of-sufficient-length"
    server = Server(args.rdpm, args.model, "--token", token)
    page.open(server.address)
    page.wait("document.querySelector('#ask').open")
    for wrong, told in [("\u201cquoted\u201d-and-long-enough", "ASCII"), ("another-token-of-its-length", "wrong")]:
        page.type(wrong)
        page.press("Enter")
        page.wait(f"document.querySelector('#ask-error').textContent.includes('{told}')")
        page.run("document.querySelector('#token').value = ''")
    page.type(token)
    page.press("Enter")
    ready(page)
    set_field(page, "#num", 1)
    draw(page)
    page.wait(DONE)
    print("with a token: drawn")
    elsewhere = [url for url in page.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:", "about:"))]
    assert page.asked and not elsewhere, elsewhere
    print(f"none of {len(page.asked)} requests went elsewhere")
    server.end()
    complaints = [c for c in page.complaints if "401" not in str(c)]
    assert not complaints, complaints
    page.end()
    print("all is well")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rdpm", default="target/release/rdpm")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--image", help="a file to reconstruct [default: a drawn one]")
    parser.add_argument("--screenshot", help="a .png of the page; others are written beside it")
    parser.add_argument("--seed", default="0", help="of the screenshot's images")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring")
    parser.add_argument("--must", type=float, help="seconds that the median first preview may take")
    args = parser.parse_args()
    args.rdpm = os.path.abspath(args.rdpm)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        check(args, folder)


if __name__ == "__main__":
    main()
