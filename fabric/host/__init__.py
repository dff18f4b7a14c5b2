"""Access to the machine: processes, locks, files, systemd, the terminal, the event log."""
