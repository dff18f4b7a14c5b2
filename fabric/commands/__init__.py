"""The sub-commands of ``fabric-initiator``: a module each, with its ``arguments`` and its ``run``.

Only the module of the command that is typed is imported.
"""

#: name of a command, and of its module -> its help
COMMANDS = {
    "build": "Build a system, or some chunks or strata of it.",
    "attach": "Follow a build of the controller, and its logs, from anywhere.",
    "status": "Show how the farm, or one build, stands.",
    "list": "List the builds that the controller knows.",
    "cancel": "End a build; what others want of it goes on.",
    "why": "Tell what a step or a build waits for, and who could do it.",
    "workers": "List the workers; drain one, or let it work again.",
    "graph": "Print what a system is built from, and in which order.",
    "show": "Show cache keys, what is cached, and why the rest is not.",
    "checkout": "Copy an artifact out of the store.",
    "image": "Make a bootable disk image of a built system.",
    "logs": "Print the build log of a chunk, stratum or system.",
    "shell": "Open a shell in the sandbox of a chunk.",
    "gc": "Remove what is old: artifacts, layers, sources' trees.",
    "cache": "Look after what is kept on this machine.",
    "lorry": "Where sources come from: list, import, renew pins.",
}
