"""Pages held against the rules of accessibility: axe-core inside headless Chromium.

    python tests/report/axe.py PAGE.html ...

Needs Chromium and `axe.min.js`: from `npm install axe-core` in the root, from `pip install axe-playwright-python` (only the
script in it is used), or from where AXE_CORE says.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERIOUS = ("serious", "critical")
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_RUN = """<script>
addEventListener("load", () => setTimeout(() => axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const said = document.createElement("pre"); said.id = "axe-found";
  said.textContent = JSON.stringify(found.violations.map(v => ({id: v.id, impact: v.impact, help: v.help,
    nodes: v.nodes.map(n => n.target.join(" ") + ": " + n.failureSummary)})));
  document.body.replaceChildren(said);
}), 300));
</script>"""


def chromium() -> str | None:
    """The browser, where there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def script() -> Path | None:
    """axe's script, where there is one."""
    package = importlib.util.find_spec("axe_playwright_python")
    places = [os.environ.get("AXE_CORE", ""), str(ROOT / "node_modules" / "axe-core" / "axe.min.js")]
    places += [str(Path(package.origin).parent / "axe.min.js")] if package and package.origin else []
    return next((Path(p) for p in places if p and Path(p).is_file()), None)


def missing() -> str:
    """What would be needed and is not here; empty where all is."""
    wants = {"Chromium": chromium(), "axe-core (`pip install axe-playwright-python`)": script()}
    return ", ".join(name for name, found in wants.items() if found is None)


def violations(page: Path, dark: bool = False, width: int = 1200) -> list[dict[str, Any]]:
    """What axe finds on a page, in light or dark and at a width: id, impact, help and the places.

    The page is looked at in a copy beside it, without its policy on scripts, which would keep axe out.
    """
    axe, browser = script(), chromium()
    assert axe is not None, missing()
    assert browser is not None, missing()
    text = _POLICY.sub("", page.read_text("utf-8"))
    ending = f'<script src="{axe.as_uri()}"></script>{_RUN}</body>'
    copy = page.resolve().with_name(f".axe-{page.name}")
    copy.write_text(ending.join(text.rsplit("</body>", 1)), "utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=30000",
            f"--user-data-dir={profile}", f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            copy.as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        finally:
            copy.unlink()
    found = re.search(r'<pre id="axe-found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"axe did not answer on {page}: {done.stderr[-2000:]}"
    answer: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return answer


def serious(page: Path, **how: Any) -> list[str]:
    """The serious and critical findings as lines."""
    return [
        f"{v['impact']} {v['id']} ({v['help']}): {node}"
        for v in violations(page, **how)
        if v["impact"] in SERIOUS
        for node in v["nodes"]
    ]


def main() -> int:
    if lacks := missing():
        print(f"needs {lacks}")
        return 2
    count = 0
    for page in map(Path, sys.argv[1:]):
        for how in ({}, {"dark": True}, {"width": 390}):
            lines = serious(page, **how)
            count += len(lines)
            print(f"{page} {how}: {len(lines)} serious")
            print("".join(f"  {' '.join(line.split())[:400]}\n" for line in lines[:12]), end="")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
