"""Commands of operators: cancel a request, drain a worker or resume it."""

from __future__ import annotations

from fabric.errors import suggest
from fabric.scheduling.events import Drained, Reply
from fabric.scheduling.lifecycle import finish
from fabric.scheduling.requests import find_requests
from fabric.scheduling.state import FarmState
from fabric.wire.messages import Answer, Command

#: Commands remembered, so that a late copy of one does not undo a later one.
_COMMANDS = 1000


def on_command(state: FarmState, command: Command) -> None:
    answer = state.commands.get(command.id)
    if answer is None:
        answer = _cancel(state, command) if command.what == "cancel" else _drain(state, command)
        state.commands[command.id] = answer
        if len(state.commands) > _COMMANDS:
            del state.commands[next(iter(state.commands))]
    state.outbox.effects.append(Reply(answer))


def _cancel(state: FarmState, command: Command) -> Answer:
    """Cancel a request for an operator, or for the user who submitted it."""
    found = find_requests(state, command.about)
    if len(found) != 1:
        problem = "several requests begin with" if found else "no request here is called"
        return Answer(command.id, error=f"{problem} {command.about}")
    [request] = found
    if request.over:
        result = f"it is {request.state} already"
    else:
        finish(state, request, "cancelled", "cancelled on demand")
        result = "cancelled"
    return Answer(command.id, lines=(f"{request.title}: {result}",))


def _drain(state: FarmState, command: Command) -> Answer:
    """Assign nothing new to a worker, or assign work to it again."""
    name, on = command.about, command.what == "drain"
    worker = state.workers.get(name)
    if worker is None and name not in state.drained:
        hint = suggest(name, {**state.workers, **state.drained})
        hint = hint or "; `fabric-initiator workers` lists them"
        return Answer(command.id, error=f"no worker is named {name}{hint}")
    if on != (name in state.drained):
        if on:
            state.drained[name] = None
        else:
            del state.drained[name]
        state.outbox.effects.append(Drained(name, on))
        if worker is not None:
            worker.drained = on
            state.queues.join(worker, state.now)
            state.queues.update_room(name, state.now)
    result = "gets nothing new" if on else "gets work"
    if worker is None:
        result += " when it comes back"
    elif on and worker.held:
        result += f", and still does {len(worker.held)}"
    return Answer(command.id, lines=(f"{name} {result}",))
