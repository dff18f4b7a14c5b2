"""One build request, followed to its end: what the broker says, on the screen and in log files."""

from __future__ import annotations

import getpass
import time
import uuid
from pathlib import Path

import zmq

from fabric.embedded import EmbeddedFabric
from fabric.errors import MachineFault
from fabric.plan import Plan
from fabric.render import BuildView, RunningView, Screen, duration
from fabric.userlogs import UserLog
from fabric.wire import mirror as protocol
from fabric.wire.messages import PROTOCOL, LogHint, LogPiece, Refused, StepState, Submit, Update
from fabric.wire.mirror import RequestMirror
from fabric.wire.sockets import Codec, connect, dealer, drain, ipc, send, subscriber

#: Lines of a failed step's log that are shown.
TAIL = 20
#: Seconds between two looks at the clock when nothing comes.
TICK = 0.2
#: Seconds between two looks at the children, and two pictures for the screen.
LOOK_EVERY = 0.1
#: Messages taken in one turn of the loop.
MESSAGES_AT_ONCE = 200


class Session:
    """One build request, followed to its end."""

    def __init__(
        self, plan: Plan, fabric: EmbeddedFabric, screen: Screen, keep_going: bool
    ) -> None:
        self._steps = {plan.keys[step.id]: step for step in plan.steps}
        self._log_names = plan.log_names
        self._fabric = fabric
        self._screen = screen
        self._began = time.monotonic()
        self._look_due = self._began
        self._logs: dict[str, UserLog] = {}
        self._paths: dict[str, Path] = {}
        self._tails: dict[str, list[str]] = {}
        self._context = zmq.Context()
        self._jobs = dealer(self._context)
        connect(self._jobs, ipc(fabric.directory, "jobs"))
        self._stream = subscriber(self._context)
        connect(self._stream, ipc(fabric.directory, "logs"))
        self._codec: Codec[Update | LogPiece | Refused] = Codec(Update | LogPiece | Refused)
        self._hints: Codec[LogHint] = Codec(LogHint)
        self._poller = zmq.Poller()
        self._poller.register(self._jobs, zmq.POLLIN)
        self._poller.register(self._stream, zmq.POLLIN)
        self.mirror = RequestMirror(
            Submit(
                protocol=PROTOCOL,
                request=uuid.uuid4().hex,
                title=f"{plan.graph.system} for {_user()}",
                steps=plan.offers(),
                goals=tuple(plan.keys[goal] for goal in plan.goals),
                keep_going=keep_going,
            )
        )

    def run(self) -> None:
        """Until the request is over and every log is whole, or given up."""
        while not self.mirror.complete:
            self._do(self.mirror.tick(time.monotonic()))
            left = max(0.0, min(TICK, self.mirror.due - time.monotonic()))
            self._poller.poll(round(left * 1000))
            now = time.monotonic()
            for frames in drain(self._jobs, MESSAGES_AT_ONCE):
                match message := self._codec.decode(frames[-1]):
                    case Update():
                        self._do(self.mirror.update(message, now))
                    case LogPiece():
                        self._do(self.mirror.piece(message, now))
                    case Refused():
                        self._do(self.mirror.refused(message, now))
            for key, hint, data in drain(self._stream, MESSAGES_AT_ONCE):
                self._do(self.mirror.hint(key.decode(), self._hints.decode(hint), data, now))
            if now >= self._look_due:  # not for each piece of log
                self._look_due = now + LOOK_EVERY
                if news := self._fabric.check():
                    self._screen.say(news, "yellow")
                self._screen.show(self._view())

    def close(self) -> None:
        """Tell the broker that we leave; close files and sockets."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()
        self._do(self.mirror.leave())
        self._context.destroy(linger=100)

    def counts(self) -> str:
        """ "20 built, 3 cached"."""
        states = [step.state for step in self.mirror.steps.values()]
        cached = states.count("cached")
        return f"{states.count('done')} built" + (f", {cached} cached" if cached else "")

    def failures(self) -> str:
        """ "zlib failed", "zlib, jq failed", or whatever else the broker says."""
        failed = [
            self._steps[key].name
            for key, step in self.mirror.steps.items()
            if step.state == "failed"
        ]
        return f"{', '.join(failed)} failed" if failed else self.mirror.message

    def report_failures(self, system: str) -> None:
        """What a person needs to go on from here."""
        for key, step in self.mirror.steps.items():
            if step.state != "failed":
                continue
            name = self._steps[key].name
            say = self._screen.say
            say(f"\n{name} failed: {step.message}", "bold red")
            for line in self._tails.get(key, []):
                say(f"  | {line}")
            if step.failed_command:
                lines = step.failed_command.strip().replace("\n", "\n    ")
                say(f"  {step.failed_phase}:\n    {lines}")
            if key in self._paths:
                say(f"  log:   {self._paths[key]}")
            if self._steps[key].kind == "chunk":
                say(f"  shell: fabric-initiator shell {name} --system {system}")

    # -- inside ----------------------------------------------------------------------------

    def _do(self, actions: list[protocol.Action]) -> None:
        for action in sorted(actions, key=_endings_first):
            match action:
                case protocol.Send():
                    send(self._jobs, self._codec.encode(action.message))
                case protocol.Changed():
                    self._tell(action.old, action.new)
                case protocol.OpenLog():
                    self._open_log(action.key)
                case protocol.AppendLog():
                    self._logs[action.key].write(action.offset, action.data)
                case protocol.CloseLog():
                    self._close_log(action)
                case protocol.Over():
                    if action.refused:
                        raise MachineFault(f"the broker refuses this build: {action.message}")

    def _open_log(self, key: str) -> None:
        if key in self._logs:
            self._logs[key].restart()
            return
        self._logs[key] = log = UserLog(Path.cwd(), self._log_names[key])
        self._paths[key] = log.path
        self._stream.subscribe(key.encode())

    def _close_log(self, action: protocol.CloseLog) -> None:
        log = self._logs.pop(action.key)
        self._tails[action.key] = log.tail(TAIL)
        log.close()
        self._stream.unsubscribe(action.key.encode())
        if not action.whole:
            self._screen.say(f"{log.path.name} is not complete: the rest of it was lost", "yellow")

    def _tell(self, old: StepState | None, new: StepState) -> None:
        name = self._steps[new.key].name
        if old is None or (old.state, old.fence) != (new.state, new.fence):
            self._screen.event(
                "step",
                name=name,
                key=new.key,
                state=new.state,
                worker=new.worker,
                seconds=new.seconds,
                message=new.message,
                log=str(self._paths.get(new.key, "")),
            )
            done, total = self._progress()
            if new.state == "running":
                self._screen.say(f"[{done}/{total}] {name}: building on {new.worker}")
            elif new.state == "done":
                self._screen.say(f"[{done}/{total}] {name}: built in {duration(new.seconds)}")
            elif new.state == "failed":
                self._screen.say(f"[{done}/{total}] {name}: failed", "bold red")
            elif old is not None and old.state == "running" and new.message:
                self._screen.say(f"[{done}/{total}] {name}: again, {new.message}", "yellow")

    def _progress(self) -> tuple[int, int]:
        states = [step.state for step in self.mirror.steps.values()]
        return states.count("done"), len(states) - states.count("cached")

    def _view(self) -> BuildView:
        steps = self.mirror.steps.values()
        done, total = self._progress()
        return BuildView(
            title=self.mirror.title,
            total=total,
            done=done,
            failed=sum(step.state == "failed" for step in steps),
            cached=sum(step.state == "cached" for step in steps),
            seconds=time.monotonic() - self._began,
            left=self.mirror.left,
            running=tuple(
                RunningView(
                    name=self._steps[step.key].name,
                    worker=step.worker,
                    phase=step.phase,
                    seconds=step.running_for,
                    expected=step.expected,
                    log_size=step.log_size,
                )
                for step in steps
                if step.state == "running"
            ),
            waiting=self.mirror.message,
        )


def _endings_first(action: protocol.Action) -> bool:
    """What ended is told before what begins; all else stays in order."""
    return isinstance(action, protocol.Changed) and action.new.state == "running"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the password file
        return "somebody"
