"""The only code that knows a terminal exists."""
