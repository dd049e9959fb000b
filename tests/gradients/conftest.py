"""Puts what the tests of gradients share on their path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
