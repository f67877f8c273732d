"""A page in a real browser: Chromium as PySide6 ships it (QtWebEngine), without a screen, in a process of its own.

python tests/reference/browser.py PAGE OUT [WIDTH [SCHEME [SCRIPT]]]

Loads a file at a width in a colour scheme ("light" or "dark"), waits until its pictures are drawn, and writes to the
folder OUT `seen.json` (what the console said, what was asked of the network, sizes) and `page.png`, the whole of it.
With WIDTH 0: `page.pdf`, as printed on A4. With a SCRIPT, which is run when the page is loaded: no picture. What would
leave the machine is noted and blocked. Exit code 5: there is no browser.
"""

import json
import os
import sys
from pathlib import Path

MISSING = 5  # exit code: there is no browser
LOOK = """(() => {
  const box = (e) => e.getBoundingClientRect().toJSON();
  return JSON.stringify({
    drawn: document.documentElement.dataset.drawn ?? null,
    width: document.documentElement.clientWidth,
    content: document.documentElement.scrollWidth,
    height: document.documentElement.scrollHeight,
    wide: [...document.querySelectorAll("body *")]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, .unseen, svg"))
      .map((e) => `${e.tagName} ${e.className}`).slice(0, 5),
    pictures: [...document.querySelectorAll(".plot")].map((plot) => ({
      label: plot.getAttribute("aria-label"), svg: [...plot.querySelectorAll("svg.main-svg")].map(box),
      points: plot.querySelectorAll(".scatterlayer .trace").length,
      ink: getComputedStyle(plot.querySelector(".xtick text") ?? plot).fill,
    })),
    tops: Object.fromEntries([...document.querySelectorAll("article")].map((a) => [a.id, box(a).top + scrollY])),
    folded: document.querySelectorAll(".more details:not([open])").length,
    paper: getComputedStyle(document.body).backgroundColor,
  });
})()"""

SPOT = """document.body.insertAdjacentHTML("beforeend", "<i id='spot' style='position: fixed; left: 0; bottom: 0; " +
  "width: 4px; height: 4px; background: #f0f'></i>")"""


def main(page: str, out: str, width: str = "1100", scheme: str = "light", script: str = "") -> None:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    flags = "--no-sandbox --disable-gpu --disable-software-rasterizer --font-render-hinting=none"
    flags += f" --blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", flags)
    try:
        import PySide6.QtWebEngineCore  # noqa: F401
    except ImportError as error:  # not installed, or a library of the system is missing
        print(error)
        sys.exit(MISSING)
    from PySide6.QtCore import QMarginsF, QTimer, QUrl
    from PySide6.QtGui import QPageLayout, QPageSize
    from PySide6.QtWebEngineCore import (
        QWebEnginePage,
        QWebEngineProfile,
        QWebEngineSettings,
        QWebEngineUrlRequestInterceptor,
    )
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    seen = {"console": [], "asked": [], "loaded": None}

    class Listener(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):
            seen["asked"].append(info.requestUrl().toString()[:200])
            info.block(info.requestUrl().scheme() in ("http", "https", "ws", "wss"))

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):
            seen["console"].append(f"{level.name}: {message} (line {line})"[:500])

    app = QApplication(["browser"])
    profile, listener = QWebEngineProfile(), Listener()
    profile.setUrlRequestInterceptor(listener)
    view = QWebEngineView()
    web = Page(profile, view)
    view.setPage(web)
    web.settings().setAttribute(QWebEngineSettings.WebAttribute.ShowScrollBars, False)
    web.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)  # to be noticed
    view.resize(int(width) or 900, 900)
    view.show()
    folder = Path(out)

    def finish():
        (folder / "seen.json").write_text(json.dumps(seen, indent=1))
        app.exit(0)

    def look(text):
        found = json.loads(text)
        if found["drawn"] is None:
            return QTimer.singleShot(100, ask)
        seen.update(found)
        if int(width) == 0:
            layout = QPageLayout(
                QPageSize(QPageSize.PageSizeId.A4), QPageLayout.Orientation.Portrait, QMarginsF(40, 45, 40, 45)
            )
            web.pdfPrintingFinished.connect(lambda *_: finish())
            return web.printToPdf(str(folder / "page.pdf"), layout)
        if script:
            return finish()
        view.resize(int(width), min(found["height"], 30_000))  # all of it at once
        web.runJavaScript(SPOT)
        return QTimer.singleShot(100, lambda: shoot(True))

    def shoot(waiting):
        """When a spot at the very bottom was seen, all is painted; when it is gone again, the picture is taken."""
        image = view.grab().toImage()
        spotted = image.pixelColor(1, image.height() - 2).name() == "#ff00ff"
        if spotted and waiting:
            web.runJavaScript("document.getElementById('spot').remove()")
        if spotted or waiting:
            return QTimer.singleShot(100, lambda: shoot(waiting and not spotted))
        image.save(str(folder / "page.png"))
        return finish()

    def ask():
        web.runJavaScript(LOOK, look)

    def loaded(ok):
        seen["loaded"] = ok
        if script:
            web.runJavaScript(script)
        QTimer.singleShot(100, ask)

    web.loadFinished.connect(loaded)
    QTimer.singleShot(60_000, lambda: app.exit(3))
    web.load(QUrl.fromLocalFile(str(Path(page).absolute())))
    sys.exit(app.exec())


if __name__ == "__main__":
    main(*sys.argv[1:])
