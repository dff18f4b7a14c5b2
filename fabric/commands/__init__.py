"""What each sub-command of ``fabric-initiator`` does: a module each, with its ``run``."""
