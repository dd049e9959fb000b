"""Files that are whole or not there, and that say so when they are not what was written."""
