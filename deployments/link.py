"""Every running request of one ingress: the replica it is on, what has arrived of it, and its way to another replica.

The link remembers the token ids that each request has got, so when a replica dies, or has to give up its requests, they
go to another one and continue after the last token that arrived here: the new engine takes those tokens for its own
output. While no replica can take them they wait.

A request that was aboard when replicas died may be what kills them. After a few deaths it shares a replica with no
other suspect, and the next death ends it; so it can take down a bounded number of replicas and its neighbours survive.
One that then generates for a while is a suspect no longer, nor is any when the one that kills has been found.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deployments.membership import IngressReport, Member, Membership
from deployments.metrics.counting import Asked, LostBy
from deployments.peer import RENEW_S, Dial, Frames, Peer
from deployments.routing import Arrival, Refusal
from deployments.stream import SUSPECT_AFTER, Request, Stream
from deployments.traffic import Place, Traffic

MAX_HELD = 10_000
QUARANTINED_TOLD = 100  # to the controller: the latest
MOST_ID_CHARACTERS = 100  # clients may choose ids of any length

log = logging.getLogger(__name__)


class NoReplicaReadyError(Exception):
    """No replica of the model can take a request now."""


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step of a replica: vLLM's encoded outputs."""

    replica: str
    frames: Frames


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that was given up, and why."""

    request_id: str
    reason: str


class FleetLink:
    """The replicas of a model as one ingress sees them. Used from one event loop."""

    def __init__(self, ingress: str, dial: Dial, traffic: Traffic, now: Callable[[], float] = time.monotonic) -> None:
        self.asked = Asked()
        self._ingress = ingress
        self._dial = dial
        self._traffic = traffic
        self.now = now
        self._membership = Membership()
        self._peers: dict[str, Peer] = {}
        self._streams: dict[str, Stream] = {}
        self._aboard: dict[str, Stream] = {}  # those that are on a replica, by wire id
        self._held: dict[str, Stream] = {}  # the others, by request id
        self._events: asyncio.Queue[Step | Failed] = asyncio.Queue()
        self._sweeper: asyncio.Task[None] | None = None
        self._moved_from: Counter[str] = Counter()  # by replica
        self._quarantined: deque[str] = deque(maxlen=QUARANTINED_TOLD)

    # --- what is known ---

    @property
    def name(self) -> str:
        """This ingress."""
        return self._ingress

    @property
    def membership(self) -> Membership:
        """The fleet as the controller last described it."""
        return self._membership

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of all replicas, ready or not."""
        return tuple(self._peers)

    @property
    def ready(self) -> tuple[str, ...]:
        """Names of the replicas that take new requests now. May be called from any thread.

        They are those that drain where all that was to take over is gone, or is not there yet.
        """
        able = [(name, peer.member.accepts) for name, peer in self._peers.copy().items() if peer.takes_requests]
        return tuple(name for name, accepts in able if accepts) or tuple(name for name, _ in able)

    @property
    def is_open(self) -> bool:
        """Whether a new request would be taken, at once or after an announced stall."""
        return not self._membership.is_closing and bool(self.ready or self._membership.holds_new)

    def report(self) -> IngressReport:
        """What the controller wants to know of this ingress. May be called from any thread."""
        return IngressReport(
            ingress=self._ingress,
            connected=frozenset(name for name, peer in self._peers.copy().items() if peer.is_connected),
            unfinished_requests=len(self._streams),
            held_requests=len(self._held),
            decode_tokens_per_s=self._traffic.speeds(),
            moved_from=dict(self._moved_from),
            quarantined=tuple(self._quarantined),
        )

    def admit(self, arrival: Arrival) -> Place | Refusal:
        """A place for a new request like this one, or why there is none now; what will be held needs none."""
        ready = self.ready
        return self._traffic.admit(arrival, ready, self.now()) if ready else Place()

    # --- for the engine in the ingress ---

    def submit(self, request: Request) -> None:
        """Send a request to the replica the router chooses; hold it during an announced stall.

        Raises:
            NoReplicaReadyError: nothing has been sent.
            Exception: whatever the request's ``encode`` raises; nothing has been sent.
        """
        is_ready = bool(self.ready)
        if not self.is_open or (not is_ready and len(self._held) >= MAX_HELD):
            raise NoReplicaReadyError(f"none of the {self._membership.planned_replicas} replicas takes requests now")
        stream = Stream(request, self.now())
        if not is_ready:  # what cannot be encoded is refused now: later it would raise where all that is held is sent
            request.encode(stream.next_wire_id(), ())
        self._send_or_hold(stream)
        self._streams[request.request_id] = stream

    def abort(self, request_ids: Iterable[str]) -> None:
        """Have the requests dropped wherever they are; unknown ids have finished already."""
        for request_id in request_ids:
            stream = self._streams.get(request_id)
            if stream is not None:
                if stream.peer is not None:
                    stream.peer.abort(stream.wire_id)
                self._end(stream)

    def settle(
        self, replica: str, wire_id: str, token_ids: Sequence[int], *, is_finished: bool, now_s: float
    ) -> str | None:
        """Account for what a replica has computed; returns the request it is about.

        None when the request is no longer there: it has moved, or its client has gone.
        """
        stream = self._aboard.get(wire_id)
        if stream is None:
            return None
        if token_ids and not stream.token_ids:
            self._traffic.began_to_answer(replica, now_s - stream.arrived_at_s)
        is_acquitted = stream.take(token_ids, now_s)
        self._traffic.computed(replica, wire_id, len(token_ids))
        if is_finished:
            self._end(stream)
        if is_acquitted:
            self._send_held()
        return stream.request.request_id

    def is_continued(self, wire_id: str) -> bool:
        """Whether a request had got tokens of another replica before it was sent under this id."""
        stream = self._aboard.get(wire_id)
        return stream is not None and stream.tokens_before > 0

    async def next_event(self) -> Step | Failed:
        """Wait for the next step of any replica, or the end of a request that could not go on."""
        if not self._events.empty():
            await asyncio.sleep(0)  # else a backlog of steps would keep all that arrives and goes out waiting
        return await self._events.get()

    # --- for the fleet ---

    def update(self, membership: Membership) -> None:
        """Follow the fleet: connect to new replicas, leave those that are gone, move what has to move."""
        self._membership = membership
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        members = {member.replica: member for member in membership.members}
        gone = [peer for name, peer in self._peers.items() if not _is_at(members.get(name), peer.member)]
        for peer in gone:  # all of them first, so that none gets the requests of another
            del self._peers[peer.member.replica]
            self._traffic.forget(peer.member.replica)
            peer.close()
        for name, member in members.items():
            self._traffic.expect(member)
            if name in self._peers:
                self._peers[name].member = member
            else:
                self._peers[name] = Peer(member, self._ingress, self._dial, self)
        for peer in gone:
            self.lost(peer)
        for peer in self._peers.values():
            if peer.member.leaves:
                self._move_all(peer)
        self._send_held()

    def close(self) -> None:
        """Drop the connections; the replicas notice and abort what is left."""
        for peer in self._peers.values():
            peer.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    # --- for the peers ---

    def connected(self) -> None:
        """A replica can take requests."""
        self._send_held()

    def stepped(self, replica: str, frames: Frames) -> None:
        """A replica has sent an engine step."""
        self._events.put_nowait(Step(replica, frames))

    def lost(self, peer: Peer) -> None:
        """A replica has gone with all that was on it."""
        self.asked.broken[peer.member.replica] += self._peers.get(peer.member.replica) is peer  # else it was taken out
        aboard = self._all_on(peer)
        for stream in aboard:
            self._take_off(stream)
            # No word since it was sent: the replica was dead already, with others perhaps, and did not die of it.
            stream.deaths += peer.messages > stream.messages_before
        if any(stream.deaths > SUSPECT_AFTER for stream in aboard):
            for stream in self._streams.values():  # it was none of the others
                stream.deaths *= stream.deaths > SUSPECT_AFTER
        for stream in aboard:
            if (unmovable := stream.request.unmovable) is not None:
                self._fail(stream, "unmovable", f"replica {peer.member.replica} has gone, and {unmovable}")
            elif stream.deaths > SUSPECT_AFTER:
                reason = f"{stream.deaths} replicas have died with it aboard; it is not tried again"
                self._quarantined.append(stream.request.request_id[:MOST_ID_CHARACTERS])
                self._fail(stream, "quarantined", reason)
            else:
                self._moved_from[peer.member.replica] += 1
                self._send_or_hold(stream)

    # --- sending, holding, moving ---

    def _send_or_hold(self, stream: Stream) -> None:
        if not self._try_to_send(stream):
            stream.held_at_s = self.now()
            self._held[stream.request.request_id] = stream

    def _try_to_send(self, stream: Stream) -> bool:
        names = [name for name in self.ready if not stream.is_suspect or not self._has_suspect(self._peers[name])]
        if not names:
            return False
        arrival, request = stream.arrival(), stream.request
        frames = request.encode(arrival.request_id, stream.token_ids)  # first: what it raises must leave nothing behind
        name = self._traffic.send(arrival, request.prompt_token_ids, request.salt, names, self.now())
        if name is None:
            return False
        stream.peer, stream.wire_id = self._peers[name], arrival.request_id
        stream.messages_before, stream.tokens_before = stream.peer.messages, len(stream.token_ids)
        stream.sendings += 1
        self._aboard[stream.wire_id] = stream
        stream.peer.send(frames)
        return True

    def _send_held(self) -> None:
        for request_id, stream in sorted(self._held.items(), key=_turn):
            if self._try_to_send(stream):
                del self._held[request_id]

    def _move_all(self, peer: Peer) -> None:
        for stream in self._all_on(peer):
            if stream.request.unmovable is None:
                peer.abort(stream.wire_id)
                self._take_off(stream)
                self._moved_from[peer.member.replica] += 1
                self._send_or_hold(stream)

    def _all_on(self, peer: Peer) -> list[Stream]:
        return [stream for stream in self._aboard.values() if stream.peer is peer]

    def _has_suspect(self, peer: Peer) -> bool:
        return any(stream.is_suspect for stream in self._all_on(peer))

    def _take_off(self, stream: Stream) -> bool:
        """Forget that the request is on its replica; False when it was on none."""
        if stream.peer is None:
            return False
        del self._aboard[stream.wire_id]
        self._traffic.ended(stream.peer.member.replica, stream.wire_id)
        stream.peer = None
        return True

    def _end(self, stream: Stream) -> None:
        del self._streams[stream.request.request_id]
        self._held.pop(stream.request.request_id, None)
        # An aborted one counts too: vLLM aborts where it has found a stop string, and a client that left has waited.
        if stream.peer is not None and (tpot_s := stream.tpot_s) is not None:
            self._traffic.answered(stream.peer.member.replica, tpot_s)
        if self._take_off(stream) and stream.is_suspect:
            self._send_held()  # another suspect may have waited for the place

    def _fail(self, stream: Stream, why: LostBy, reason: str) -> None:
        self._end(stream)
        self.asked.lost[why] += 1
        log.error("request %s is given up: %s", stream.request.request_id, reason)
        self._events.put_nowait(Failed(stream.request.request_id, reason))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            # By the time that holds now: a stall that is announced after a replica was lost may last longer.
            late_s = self.now() if self._membership.is_going else self.now() - self._membership.hold_s
            for stream in [one for one in self._held.values() if one.held_at_s < late_s]:
                self._fail(stream, "held-too-long", self._membership.why_lost)


def _turn(held: tuple[str, Stream]) -> tuple[int, bool, float]:
    """Whose turn it is first. Of suspects the newest: with the others aboard the replica had lived until it came."""
    stream = held[1]
    return stream.request.priority, stream.is_suspect, -stream.arrived_at_s if stream.is_suspect else 0.0


def _is_at(member: Member | None, known: Member) -> bool:
    """Whether a replica is still where it was; otherwise it has gone, or Serve has started it again."""
    return member is not None and (member.host, member.port) == (known.host, known.port)
