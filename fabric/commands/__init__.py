"""What each sub-command of ``fabric-initiator`` does, one module each: ``run(options, settings)``."""
