"""What each answer was worth: compared with the answer to the same file when idle, and with the deadline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from app.load.connection import LOST, TIMED_OUT, Answer
from benchmarks.chaos.clients import Behaviour, Outcome, Role

# Batches of another size, and bf16, move a probability a little.
TOLERANCE = 0.02
# From the server's answer to its reading, on cores that are all busy.
_TRANSIT_S = 0.25


class Verdict(StrEnum):
    """Of one request."""

    RIGHT = "right, in time"
    LATE = "right, too late"
    WRONG = "wrong"
    REFUSED = "refused, with Retry-After"
    RUDE = "refused, without Retry-After"
    EXPIRED = "accepted, then the deadline passed (504)"
    AS_IDLE = "a bad file, answered as when idle"
    CUT_OFF = "a sender that stalls, ended (408, 504)"
    LEFT = "the client left"
    LOST = "the connection broke"
    HUNG = "no answer at all"
    FAILED = "an error that the file does not deserve"


BROKEN = (Verdict.LATE, Verdict.WRONG, Verdict.RUDE, Verdict.LOST, Verdict.HUNG, Verdict.FAILED)


@dataclass(frozen=True)
class Expected:
    """The answer when idle: its status, the code of its problem, or the probability of each class that it named."""

    status: int
    code: str
    probabilities: dict[int, float]
    seconds: float

    @classmethod
    def of(cls, status: int, body: bytes, seconds: float) -> Expected:
        document = json.loads(body)
        named = {each["class_id"]: each["probability"] for each in document.get("predictions", ())}
        return cls(status, document.get("code", ""), named, seconds)

    def distance(self, other: Expected) -> float:
        """The largest difference of a probability; infinite when the best class is another, or one is not named."""
        if not self.probabilities or not other.probabilities.keys() <= self.probabilities.keys():
            return float("inf")
        gaps = [abs(value - self.probabilities[each]) for each, value in other.probabilities.items()]
        best = max(other.probabilities, key=lambda each: other.probabilities[each])
        gaps.append(max(self.probabilities.values()) - self.probabilities[best])
        return max(gaps)


@dataclass(frozen=True)
class Judgement:
    """Of a whole storm.

    Attributes:
        verdicts: how often, by what the client did.
        right_by_file: how often each file was answered rightly and in time, a bad one with the right refusal.
        statuses: of all answers.
        farthest: the largest distance of a right answer from the one when idle; `exact` of `compared` are the same.
        latencies_s: of right answers, from the first byte sent.
        faults: a few answers that should not have been, in words.
    """

    verdicts: dict[str, dict[str, int]]
    right_by_file: Counter[int]
    statuses: Counter[int]
    farthest: float
    exact: int
    compared: int
    latencies_s: list[float]
    faults: list[str]

    def count(self, verdict: Verdict) -> int:
        return sum(found.get(verdict.value, 0) for found in self.verdicts.values())


def judge(
    outcomes: Sequence[Outcome], roles: Sequence[Role], expected: Sequence[Expected], until_s: float
) -> Judgement:
    """Judge every outcome; right answers count for the goodput when they came before `until_s`."""
    verdicts: dict[str, Counter[str]] = {}
    right_by_file: Counter[int] = Counter()
    statuses: Counter[int] = Counter()
    distances: list[float] = []
    latencies_s: list[float] = []
    faults: list[str] = []
    for outcome in outcomes:
        role = roles[outcome.role]
        answer = outcome.answer
        verdict, distance = _judge_one(outcome, role, expected[role.file])
        verdicts.setdefault(f"{role.name}: {role.behaviour}", Counter())[verdict.value] += 1
        if answer is not None:
            statuses[answer.status] += 1
        if distance is not None:
            distances.append(distance)
        if verdict is Verdict.RIGHT and answer is not None:
            latencies_s.append(answer.finished_s - outcome.sent_s)
        is_right = verdict in (Verdict.RIGHT, Verdict.AS_IDLE)
        if is_right and answer is not None and answer.finished_s <= until_s:
            right_by_file[role.file] += 1
        if verdict in BROKEN and answer is not None and len(faults) < 20:
            took_s = answer.finished_s - outcome.sent_s
            faults.append(f"{verdict}: {role.name}, {answer.status} after {took_s:.2f} s, {answer.body[:300]!r}")
    return Judgement(
        {name: dict(found) for name, found in verdicts.items()},
        right_by_file,
        statuses,
        farthest=max(distances, default=0.0),
        exact=sum(distance == 0.0 for distance in distances),
        compared=len(distances),
        latencies_s=latencies_s,
        faults=faults,
    )


def _judge_one(outcome: Outcome, role: Role, idle: Expected) -> tuple[Verdict, float | None]:
    """The verdict, and for an answer with probabilities how far it is from the one when idle."""
    answer = outcome.answer
    if answer is None:
        return Verdict.LEFT, None
    if answer.status in (429, 503):
        return (Verdict.RUDE if answer.retry_after_s is None else Verdict.REFUSED), None
    if answer.status in (LOST, TIMED_OUT):
        return (Verdict.LOST if answer.status == LOST else Verdict.HUNG), None
    if role.behaviour is Behaviour.STALLS:
        return (Verdict.CUT_OFF if answer.status in (408, 504) else Verdict.FAILED), None
    if answer.status == 504:
        return Verdict.EXPIRED, None
    if answer.status == 200:
        return _judge_classification(outcome, answer, role, idle)
    found = Expected.of(answer.status, answer.body, 0.0)
    same = (found.status, found.code) == (idle.status, idle.code)
    return (Verdict.AS_IDLE if same else Verdict.FAILED), None


def _judge_classification(outcome: Outcome, answer: Answer, role: Role, idle: Expected) -> tuple[Verdict, float | None]:
    distance = idle.distance(Expected.of(answer.status, answer.body, 0.0))
    if distance > TOLERANCE:
        return Verdict.WRONG, None
    late = answer.finished_s - outcome.sent_s > role.timeout_s + _TRANSIT_S
    return (Verdict.LATE if late else Verdict.RIGHT), distance
