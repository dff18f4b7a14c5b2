"""The sub-commands of ``fabric-initiator``: a module each, with its ``arguments`` and its ``run``.

The initiator imports only the module of the command that is typed.  An argument with ``nargs="*"``
needs a default; argparse requires it otherwise.
"""

#: Name of a command and of its module -> its help.
COMMANDS = {
    "init": "Make a directory of definitions of one's own, with a chunk that builds at once.",
    "build": "Build a system, or some of its chunks or strata.",
    "attach": "Follow a build on the controller, with its logs, from anywhere.",
    "status": "Show the state of the farm or of one build; without a controller, of builds here.",
    "list": "List the builds that the controller knows; without one, those that run here.",
    "cancel": "Cancel a build; steps that other builds need go on.",
    "why": "Explain what a step or a build waits for, and which workers can take it.",
    "workers": "List the workers; drain or resume one.",
    "check": "Check definitions and lorries without a build; --unused finds needless dependencies.",
    "migrate": "Bring definitions of older versions of the format to version 8, as a diff.",
    "graph": "Print the parts of a system, in the order in which they are built.",
    "show": "Show cache keys, which steps are cached, and why the others are not.",
    "artifact": "List what the store has; show, delete or share artifacts.",
    "checkout": "Copy an artifact out of the store.",
    "image": "Make a bootable disk image, or an archive, of a built system.",
    "sbom": "Write what is in a system, as SPDX or CycloneDX.",
    "affected": "Find the systems that contain a component, or that a vulnerability affects.",
    "provenance": "Write signed statements of where artifacts come from, for other tools.",
    "verify": "Check that a built system is what its definitions and sources give.",
    "certify": "Build a system once more, under other conditions, and compare it bit by bit.",
    "trace": "Print what a build did and when: a trace for Perfetto, or OpenTelemetry spans.",
    "logs": "Print the build log of a chunk, stratum or system.",
    "diff": "Compare two systems, commits or artifacts: chunks, files and sizes.",
    "edit": "Edit the source of a chunk in a work tree; builds use the files there.",
    "shell": "Open a shell in the sandbox of a chunk, in a built system, or in artifacts.",
    "gc": "Remove artifacts, layers and source trees that are no longer used.",
    "cache": "Check the files that are kept on this machine.",
    "config": "Show each setting, its value, and where the value comes from.",
    "completion": "Print a script that completes command lines in bash, zsh or fish.",
    "lorry": "List lorries, import their sources, update their pins, or add one.",
}
