"""The console of nodes that have something to do.

scripts/check-examples runs it. With SCREENSHOTS=directory it takes its time, and leaves pictures there.
"""

import os
import random
import unittest

from browser import Page
from example import Example, look, looks, picture

# How many looks at the nodes, a second apart, the charts show.
LOOKS = 25 if os.environ.get("SCREENSHOTS") else 3


class Console(Example, unittest.TestCase):
    arguments = ("chat-room",)

    def test_clients_of_both_nodes_and_what_they_hear_move_the_charts(self):
        profile = self.browser.profile(self)
        crowd = Page(self.browser, profile, self.address)
        # Some come and go, all say something.
        crowd.eval("""
            window.sockets = [];
            window.come = (place) => {
                sockets[place]?.close();
                sockets[place] = new WebSocket(nodes[place % 3 % 2]);
            };
            for (let place = 0; place < 240; place++) come(place);
        """)
        crowd.until("sockets.every(socket => socket.readyState === 1)")
        console = Page(self.browser, profile, f"{self.apis[0]}/#/nodes")
        shown = "document.querySelector('#charts polyline')?.points.length"

        looked, lot = 0, 8
        while looked < LOOKS:
            lot = max(2, lot + random.randint(-2, 2))
            for _ in range(lot):
                self.redis.publish("mg:all", '{"type":"news"}')
            crowd.eval(f"sockets.slice(0, {lot * 9}).forEach(socket => socket.readyState === 1 && socket.send('{{}}'))")
            crowd.eval(f"for (let more = 0; more < {lot}; more++) come(Math.floor(Math.random() * sockets.length))")
            before = looked
            while looked == before:
                looked = console.eval(shown) or 0
                crowd.eval("new Promise(done => setTimeout(done, 50))")
        rows = "[...document.querySelectorAll('#nodes tbody tr td:nth-child(3)')].map(cell => Number(cell.textContent))"
        # The crowd, and nobody by the console; its own page was sent away by the application.
        console.until(f"{rows}.reduce((sum, clients) => sum + clients) === 240")
        for language in ("en", "zh"):
            if not console.eval("document.documentElement.lang").startswith(language):
                console.click("#language")
            for way, size, scheme in looks():
                look(console, size, scheme)
                picture(console, f"console-{language}-{way}")
        self.assertEqual(console.complaints(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
