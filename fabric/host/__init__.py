"""What programs need of the machine they run on: processes, files, systemd, the terminal."""
