"""The sub-commands of ``fabric-initiator``: a module each, with its ``arguments`` and its ``run``.

The initiator imports only the module of the command that is typed.  An argument with ``nargs="*"``
needs a default; argparse requires it otherwise.
"""

#: Name of a command and of its module -> its help.
COMMANDS = {
    "build": "Build a system, or some of its chunks or strata.",
    "attach": "Follow a build on the controller, with its logs, from anywhere.",
    "status": "Show the state of the farm, or of one build.",
    "list": "List the builds that the controller knows.",
    "cancel": "Cancel a build; steps that other builds need go on.",
    "why": "Explain what a step or a build waits for, and which workers can take it.",
    "workers": "List the workers; drain or resume one.",
    "graph": "Print the parts of a system, in the order in which they are built.",
    "show": "Show cache keys, which steps are cached, and why the others are not.",
    "checkout": "Copy an artifact out of the store.",
    "image": "Make a bootable disk image of a built system.",
    "logs": "Print the build log of a chunk, stratum or system.",
    "shell": "Open a shell in the sandbox of a chunk.",
    "gc": "Remove artifacts, layers and source trees that are no longer used.",
    "cache": "Check the files that are kept on this machine.",
    "lorry": "List lorries, import their sources, or update their pins.",
}
