"""The parts of an initiator: the state of a request, its logs, the session, and the screens."""
