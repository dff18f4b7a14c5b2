"""Shows a farm, or the builds on this machine, in a browser.  It reads and changes nothing."""
