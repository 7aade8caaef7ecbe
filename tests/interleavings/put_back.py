"""Faults put back on purpose: each was there once, or breaks an order that a comment insists on.

The search must find each within `WITHIN` seeds of the scenario that is named. The numbers are those of the faults that
a hunt with real processes and threads had found. How an edit is written is said in instrument.py.
"""

from typing import NamedTuple

from instrument import Edit

WITHIN = 10_000


class Mutation(NamedTuple):
    """What is changed in which module, and the scenario that finds it."""

    scenario: str
    module: str
    edits: tuple[Edit, ...]


def _of(scenario: str, module: str, *edits: Edit) -> Mutation:
    return Mutation(scenario, module.removeprefix(".") if "." in module else f"dispatch.{module}", edits)


# fmt: off
MUTATIONS: dict[str, Mutation] = {
    "2: a function that cannot be read after the commit": _of(
        "the_store_refuses", "queue",
        """
-                unread += claimed[start:stop]
-                start = stop
-                continue
+                raise
""",
    ),
    "3, 23: what was taken back is forgotten if its release is refused": _of(
        "the_store_refuses", "loop",
        """
-                self._take_in_refusal(error)
+                self.claims.releases.clear()
                 raise
             self.claims.releases.clear()
""",
    ),
    "4: what others left is not looked at again": _of(
        "others_die", "loop",
        """
-            self.peers.look_at = self._committer.retry_at
+            pass
""",
    ),
    "5: Ctrl-C between the lock and its handler": _of(
        "is_interrupted", "driving",
        """
+        self._lock.acquire()
         interrupts.__enter__()
-        self._lock.acquire()
""",
    ),
    "10: reports are dropped when no worker can be started": _of(
        "workers_break", "loop",
        """
         self._committer.retry_at = math.inf
+        if self._engine.broken:
+            self._engine.reports.clear()
""",
    ),
    "15: Ctrl-C after the turn and before the telling": _of(
        "is_interrupted", "driving",
        """
         self._lock.release()
-        try:
-            self._afterwards()
-        finally:
-            interrupts.__exit__()
+        interrupts.__exit__()
+        self._afterwards()
""",
    ),
    "16: Ctrl-C before the lock is let go": _of(
        "is_interrupted", "driving",
        """
+        interrupts.__exit__()
         self._lock.release()
-        try:
-            self._afterwards()
+        self._afterwards()
-        finally:
-            interrupts.__exit__()
""",
    ),
    "17: Ctrl-C while turns are taken": _of(
        "is_interrupted", "driving",
        """
-        with interrupts:
+        if True:
             while not (is_done := done()) and not self.is_closed:
""",
    ),
    "18: the time of a driver begins too late": _of(
        "one_drives_while_another_waits_for_an_event", "driving",
        """
         before = interrupts.set_wake(self.wake)
+        began = time.monotonic()
         try:
""",
        """
-                if self._stands_by:
+                if time.monotonic() - began > STANDBY_S:
""",
    ),
    "19: a submit that is refused tells nothing": _of(
        "submits_are_refused", "driving",
        """
         self._lock.release()
         try:
+            if _[0] is None:
-            self._afterwards()
+                self._afterwards()
         finally:
             interrupts.__exit__()
""",
    ),
    "19: a turn that is refused for a dropped iterator forgets the reports": _of(
        "drops_an_iterator", "loop",
        """
-        try:
-            while self.dropped:
-                self.cancel(*self.dropped.first(self.waiters))
-                self.dropped.remove_first()
+        while self.dropped:
+            self.cancel(*self.dropped.first(self.waiters))
+            self.dropped.remove_first()
+        try:
""",
        """
-        if (self.dropped and retry_at == math.inf) or engine.reports or peers.was_notified:
+        if engine.reports or peers.was_notified:
""",
        """
-            self._committer.put_off(error)
+            pass
""",
    ),
    "20: a callback that exits ends the own thread": _of(
        "callbacks_submit_and_ask", ".future",
        """
-                if not interrupts.hold(error):
+                raise
+                if True:
""",
    ),
    "22: Ctrl-C in a finalizer": _of(
        "is_interrupted", ".map_iterator",
        """
+    def __del__(self):
+        if hasattr(self, "_arrivals"):
+            self._dispatcher.forget(self._arrivals)
+
     def _end(self, error: BaseException) -> None:
""",
    ),
    "a claim is given twice whose function could not be read": _of(
        "the_store_refuses", "claims",
        """
-        self.unread = []
         if self._special:
""",
    ),
    "a refusal is only heeded where reports wait": _of(
        "the_store_refuses", "loop",
        """
-        if self._committer.refuse():
+        if (self.claims.reports or self.claims.releases) and self._committer.refuse():
""",
    ),
    "futures with the condition of any other": _of(
        "is_interrupted", ".lean_future",
        """
-                        self._made = SafeCondition()
+                        self._made = threading.Condition(threading.RLock())
""",
    ),
    "a future ends without a second look for who waits": _of(
        "two_submit_and_one_waits", ".lean_future",
        """
             with _making:
-                if self._made is None:
+                if True:
                     if self._state == PENDING:
""",
    ),
    "what was ready before the end is taken in after it": _of(
        "is_left_by_ctrl_c", "driving",
        """
-                if self.is_closed or self.is_stopped:
+                if self.is_closed:
""",
    ),
    "an error is not told before a callback waits": _of(
        "callbacks_submit_and_ask", "driving",
        """
-        self._afterwards()
         me = threading.get_ident()
         with self._driver_lock:
""",
    ),
    "nobody sees to it that no one sleeps in a selector that is closed": _of(
        "two_submit_and_one_waits", "driving",
        """
     def _let_driver_leave(self) -> None:
+        return
""",
    ),
    "who parks does not look again for what it waits for": _of(
        "workers_break", "driving",
        """
-            if is_driven and not (done() or self.is_closed or interrupts.is_to_leave()):
+            if is_driven and not (self.is_closed or interrupts.is_to_leave()):
""",
    ),
    "a driver that leaves does not wake the own thread": _of(
        "one_drives_while_another_waits_for_an_event", "driving",
        """
+                pass
-                if self._stands_by:
-                    self._standby.set()
""",
    ),
    "a wake is lost where the lock is taken": _of(
        "submits_and_asks", "driving",
        """
+        pass
-        if self._wanted:
-            self._write_wake()
""",
    ),
    "what was ready is taken in twice": _of(
        "one_parks_while_another_drives", "driving",
        """
-                if self._events_seen != seen:
+                if False:
""",
    ),
    "events count as taken in before they are": _of(
        "one_parks_while_another_drives", "driving",
        """
-            self._events_seen += 1
+            pass
""",
        """
+        self._events_seen += 1
         try:
             for key, mask in ready:
""",
    ),
    "who drives is not told of news": _of(
        "submits_and_asks", "driving",
        """
-        if (self._sleepers and not is_calm) or (has_news and self._is_driven_elsewhere()):
+        if self._sleepers and not is_calm:
""",
    ),
    "who sleeps is not told of an earlier alarm": _of(
        "the_store_refuses", "driving",
        """
-        if (self._sleepers and not is_calm) or (has_news and self._is_driven_elsewhere()):
+        if has_news and self._is_driven_elsewhere():
""",
    ),
    "futures that know are counted without a lock": _of(
        "two_submit_and_one_waits", "waiters",
        """
-                with self._notified_lock:
+                if True:
                     self._notified += told
""",
    ),
    "a result counts as read before it is": _of(
        "is_interrupted", ".future",
        """
             if stored is _UNREAD:
                 return
+            self._stored = _UNREAD
""",
    ),
    "reports that a submit took in are left": _of(
        "others_die", "loop",
        """
-        if (self.dropped and retry_at == math.inf) or engine.reports or peers.was_notified:
+        if self.dropped and retry_at == math.inf:
""",
    ),
    "a call is given before its claim is committed": _of(
        "submits_and_asks", "loop",
        """
+        self.claims.queue.add((id,), function, None, (call,), not self._holds)
         self._store.add_claimed(self._owner, self._run, id, function, call, now())
""",
    ),
}
