"""Puts the bank of problems on the path of every test, and signals in the state in which a shell starts commands."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Ignored signals are inherited: what runs the tests in the background, or by nohup, would decide what they find.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
