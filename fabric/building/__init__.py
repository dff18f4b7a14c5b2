"""One job, built: staging areas, the sandbox, the steps, archives, system assembly."""
