"""Measuring: what text costs, as a whole and byte by byte. Beside the codec; nothing below imports it."""
