"""``make pictures``: the pictures in the documentation, taken of the demo by Debian's Chromium.

With arguments, ``pictures.py dark NAME.png`` or ``pictures.py phone NAME.png``, one to look at.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "live-page.png"
DESKTOP = "--window-size=1280,900"
SHAPES = {
    "light": [DESKTOP],
    "dark": [DESKTOP, "--force-dark-mode"],
    "phone": ["--window-size=500,1000"],
}
LOOKS = 15
CROWD = 6
BETWEEN = 1.6  # seconds; the plots take note of no more


def place_orders(page: str) -> None:
    """Place orders until the demo is gone, so that there are open sessions to be seen."""
    orders = page.replace("/sessionz", "/orders")
    with suppress(OSError):
        while True:
            urllib.request.urlopen(orders, data=b"", timeout=60).close()  # noqa: S310


def main() -> None:
    """Start the demo, wait until there is something to see, and take the picture."""
    shape, target = (sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else ("light", PICTURE)
    target.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "session_metrics_otel", "demo"]
    command += ["--port", "0", "--metrics-port", "0", "--rate", "60", "--seed", "7"]
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo,
    ):
        crowd: list[threading.Thread] = []
        lines = "".join(demo.stdout.readline() for _ in range(3)) if demo.stdout else ""
        try:
            (address,) = re.findall(r"http://\S+/sessionz", lines)
            for _ in range(LOOKS):  # so that the plots have something to show
                time.sleep(BETWEEN)
                urllib.request.urlopen(f"{address}.json").close()  # noqa: S310
            crowd = [threading.Thread(target=place_orders, args=(address,)) for _ in range(CROWD)]
            for thread in crowd:
                thread.start()
            chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
            chromium += ["--hide-scrollbars", f"--user-data-dir={profile}"]
            chromium += [f"--screenshot={target}", *SHAPES[shape]]
            chromium += ["--virtual-time-budget=30000", address]
            subprocess.run(chromium, check=True, capture_output=True, timeout=120)
        finally:
            demo.terminate()
            demo.communicate()
            for thread in crowd:
                thread.join()
    print(target)


if __name__ == "__main__":
    main()
