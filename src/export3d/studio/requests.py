"""What clients may ask for: the verbs, with every range checked, and the command line that does the same.

Nothing in a request is a path. Uploads are named by their ids, and ids are random. The portrait is an upload or
"bundled", a motion an upload or the name of a bundled motion, a background also `keep`, `blur` or a colour.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import model_validator as check_together

from export3d.errors import ConfigError, InputError
from export3d.motion.arkit import columns_of

BUNDLED = "bundled"
"""The portrait in the package."""
MOTIONS = ("speech", "expressions", "turns")
"""Motions in the package."""
DIRECTIONS = 10
"""Directions of the expression basis."""
LONGEST_S = 60.0
"""Longest result, seconds."""
_ID = re.compile(r"[0-9a-f]{32}")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_LARGEST_TURN = 45.0
_ALLOWED = {
    "size": "native or a whole number from 256 to 1024",
    "face": "largest, left, right, all or a number from 1, counted from the left",
    "driving_face": "largest, left, right or a number from 1, counted from the left",
    "basis": f"amounts from -20 to 20 by direction, 1 to {DIRECTIONS}",
}
"""Where pydantic's own words would tell of one alternative only."""
_OPTIONS = {"set": "scores", "absolute": "relative", "source": "portrait"}
"""Options and arguments of the commands that have another name here."""


def is_id(text: str) -> bool:
    """Whether a text has the form of the server's ids: 32 hexadecimal digits."""
    return _ID.fullmatch(text) is not None


def _one_of(*words: str) -> Any:
    """An id, or one of these words."""

    def check(text: str) -> str:
        if text not in words and not is_id(text):
            raise ValueError(f"must be {' or '.join(['an id that an upload returned', *map(repr, words)])}")
        return text

    about = " or ".join(["id of an upload", *words])
    return Annotated[str, AfterValidator(check), Field(description=about)]


def _face(value: Any) -> Any:
    """A number of a face also as text, as forms send it."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 3 else value


def _score_name(name: str) -> str:
    columns_of(name)
    return name


def _background(text: str) -> str:
    if text not in ("keep", "blur") and not is_id(text) and not _COLOUR.fullmatch(text):
        raise ValueError("must be keep, blur, a colour such as #20a040 or the id of an uploaded image")
    return text


Id = _one_of()
Number = Annotated[float, Field(allow_inf_nan=False)]
Angle = Annotated[float, Field(ge=-_LARGEST_TURN, le=_LARGEST_TURN, allow_inf_nan=False)]
Face = Annotated[
    Literal["largest", "left", "right"] | Annotated[int, Field(ge=1, le=99, strict=True)], BeforeValidator(_face)
]
Scores = Annotated[
    dict[
        Annotated[str, Field(max_length=40), AfterValidator(_score_name)],
        Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)],
    ],
    Field(max_length=60, description="0 to 1 by ARKit name"),
]
Basis = Annotated[
    dict[
        Annotated[str, Field(pattern=rf"^([1-9]|{DIRECTIONS})$")],
        Annotated[float, Field(ge=-20.0, le=20.0, allow_inf_nan=False)],
    ],
    Field(max_length=DIRECTIONS, description=f"-20 to 20 by direction, 1 to {DIRECTIONS}"),
]
Background = Annotated[
    str, AfterValidator(_background), Field(description="keep, blur, a colour #rrggbb, or id of an upload")
]
Start = Annotated[float, Field(ge=0.0, le=600.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0.04, le=LONGEST_S, allow_inf_nan=False)]
Size = Literal["native"] | Annotated[int, Field(ge=256, le=1024, strict=True)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Framed(_Request):
    """What the results of `animate`, `orbit` and `edit` have in common."""

    portrait: _one_of(BUNDLED)  # type: ignore[valid-type]
    face: Face | Literal["all"] = "largest"
    frame: Literal["photo", "crop"] | None = None
    size: Size | None = None
    background: Background = "keep"
    label: bool | None = None


class Animate(_Framed):
    """Animate a portrait with a driving video or a motion: a video with sound, poster, sheet and motion file."""

    verb: Literal["animate"]
    driving: Id | None = None  # type: ignore[valid-type]
    motion: _one_of(*MOTIONS) | None = None  # type: ignore[valid-type]
    driving_face: Face = "largest"
    start: Start = 0.0
    seconds: Seconds | None = None
    relative: bool = True
    head_motion: Literal["steady", "full", "rotation"] = "steady"
    scores: Scores = {}
    sheet: bool = True

    @check_together(mode="after")
    def _fit(self) -> Animate:
        if (self.driving is None) == (self.motion is None):
            raise ValueError("give exactly one of driving and motion")
        if self.motion is not None and self.driving_face != "largest":
            raise ValueError("a motion holds one face; leave out driving_face")
        if not self.relative and self.head_motion != "steady":
            raise ValueError("absolute motion takes over the driver's framing; leave out head_motion")
        if not self.relative and self.frame == "photo":
            raise ValueError("absolute motion takes over the driver's framing; use the frame crop")
        return self


class Orbit(_Framed):
    """Show a portrait from a camera that travels around its head."""

    verb: Literal["orbit"]
    motion: _one_of(*MOTIONS) | None = None  # type: ignore[valid-type]
    scores: Scores = {}
    path: Literal["circle", "swing", "spiral"] = "circle"
    yaw: Angle = 30.0
    pitch: Angle = 15.0
    seconds: Annotated[float, Field(ge=0.5, le=LONGEST_S, allow_inf_nan=False)] = 4.0


class Edit(_Framed):
    """Edit the expression and head pose of a portrait: one PNG."""

    verb: Literal["edit"]
    scores: Scores = {}
    basis: Basis = {}
    yaw: Angle = 0.0
    pitch: Angle = 0.0
    roll: Angle = 0.0


class Track(_Request):
    """Track the face in a video: a motion file, without pixels."""

    verb: Literal["track"]
    driving: Id  # type: ignore[valid-type]
    driving_face: Face = "largest"
    start: Start = 0.0
    seconds: Seconds | None = None


class Head(_Request):
    """One view of the head, asked for over the WebSocket."""

    n: Annotated[int, Field(ge=0, le=2**53)]
    portrait: _one_of(BUNDLED)  # type: ignore[valid-type]
    face: Face | Literal["all"] = "largest"
    yaw: Angle = 0.0
    pitch: Angle = 0.0
    roll: Angle = 0.0
    scores: Scores = {}
    basis: Basis = {}
    quality: Literal["fast", "full"] = "full"
    frame: Literal["photo", "crop"] = "crop"
    background: Background = "keep"
    label: bool | None = None


Verb = Animate | Orbit | Edit | Track
VERBS: tuple[str, ...] = tuple(get_args(kind.model_fields["verb"].annotation)[0] for kind in get_args(Verb))
_VERB: TypeAdapter[Verb] = TypeAdapter(Annotated[Verb, Field(discriminator="verb")])


def parse_verb(body: bytes | str) -> Verb:
    """The request in a JSON text; raises `InputError` with one sentence about the first thing that is wrong."""
    try:
        return _VERB.validate_json(body)
    except ValidationError as problem:
        raise InputError(sentence(problem)) from None


def parse_head(text: bytes | str) -> Head:
    """As `parse_verb`, of a message of the WebSocket."""
    try:
        return Head.model_validate_json(text)
    except ValidationError as problem:
        raise InputError(sentence(problem)) from None


def schema_of_verbs() -> dict[str, Any]:
    """The JSON schema of the verbs."""
    return _VERB.json_schema()


def sentence(problem: ValidationError) -> str:
    """What is wrong with a request, in one sentence: the first error, where, and what is allowed."""
    first = problem.errors(include_url=False, include_context=True)[0]
    place = [str(part) for part in first["loc"] if not _is_branch(str(part))]
    where = ".".join(place)[:80]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        return 'the request is not valid JSON; send one object, such as {"verb": "edit", "portrait": "bundled"}'
    if kind == "union_tag_invalid":
        return f"the request has an unknown verb {str(context['tag'])[:40]!r}; the verbs are {', '.join(VERBS)}"
    if kind == "union_tag_not_found":
        return f"the request needs a verb; the verbs are {', '.join(VERBS)}"
    if kind == "extra_forbidden":
        return f"the request has an unknown field {where!r}; {_instead(where, str(first['loc'][0]))}"
    if kind == "missing":
        return f"the request lacks the field {where!r}; add it"
    if kind in ("value_error", "assertion_error"):
        text = " ".join(str(context["error"]).split())
        return f"{where}: {text}" if where and text.startswith("must") else f"the request is not possible: {text}"
    if not where:
        return "the request must be one JSON object; send a verb and its fields"
    text = first["msg"][:1].lower() + first["msg"][1:]
    text = f"it must be {_ALLOWED[place[0]]}" if place[0] in _ALLOWED else text.replace("input should", "it must")
    return f"the request's field {where!r} is not possible: {text}"


def _instead(field: str, verb: str) -> str:
    """What to do about an unknown field of a verb, or of a request for a head."""
    kinds: dict[str, type[BaseModel]] = dict(zip(VERBS, get_args(Verb)))
    known = [name for name in kinds.get(verb, Head).model_fields if name != "verb"]
    name = "driving_face" if field == "face" else _OPTIONS.get(field)
    if name in known:
        return f"its name here is {name!r}"
    return f"leave it out; the fields of {verb if verb in VERBS else 'a head'} are {', '.join(known)}"


def _is_branch(part: str) -> bool:
    """Whether a part of an error's place names an alternative of ours instead of a field."""
    return part in VERBS or not re.fullmatch(r"[\w#-]+", part) or part in ("int", "float", "str", "[key]")


def shown_name(name: str) -> str:
    """A user's file name fit to be shown: the last part of a path, without control characters, at most 100 characters.

    >>> shown_name("..\\\\..\\\\etc/me\\n.jpg")
    'me.jpg'
    """
    last = PurePath(name.replace("\\", "/").rstrip("/")).name
    clean = "".join(sign for sign in last if sign.isprintable())
    stem, dot, ending = clean.rpartition(".")
    if len(clean) > 100:
        clean = f"{stem[: 99 - len(ending)]}.{ending}" if dot and len(ending) < 10 else clean[:100]
    return clean if clean.strip(". ") else "unnamed"


def command_line(request: Verb, names: Mapping[str, str], label: bool = False) -> str:
    """The `export3d` command that does what a request asks for, quoted for a POSIX shell.

    Args:
        request: the verb.
        names: the users' file names (or paths) by id, also of "bundled".
        label: whether outputs carry the visible label where the request does not say.

    Raises:
        ConfigError: an id that has no name.
    """

    def named(one: str) -> str:
        if one in MOTIONS:
            return one
        if one not in names:
            raise ConfigError("the file of this request is gone; upload it again")
        return _file(names[one])

    source = named(request.driving if isinstance(request, Track) else request.portrait)
    stem = _file(f"{PurePath(source).stem}-{request.verb}")
    words = ["export3d", request.verb, source]
    if isinstance(request, Track):
        words += ["-o", f"{stem}.motion", *_options({"face": request.driving_face}, request)]
        words += _options({"start": request.start, "seconds": request.seconds}, request)
        return shlex.join(words)
    if isinstance(request, Animate):
        chosen: dict[str, Any] = {"driving": request.driving, "motion": request.motion}
        words += [word for key, one in chosen.items() if one for word in (f"--{key}", named(one))]
        words += ["-o", f"{stem}.mp4", *(["--sheet", f"{stem}.png"] if request.sheet else [])]
        fields: tuple[str, ...] = ("driving_face", "start", "seconds", "head_motion")
        words += [] if request.relative else ["--absolute"]
    elif isinstance(request, Orbit):
        words += ["--motion", named(request.motion)] if request.motion else []
        words += ["-o", f"{stem}.mp4"]
        fields = ("path", "yaw", "pitch", "seconds")
    else:
        words += ["-o", f"{stem}.png"]
        fields = ("yaw", "pitch", "roll")
        words += [word for key, one in request.basis.items() for word in ("--basis", f"{key}={one:+g}")]
    words += [word for key, one in request.scores.items() for word in ("--set", f"{key}={one:g}")]
    words += _options({key: getattr(request, key) for key in fields}, request)
    background = request.background
    framing = {key: getattr(request, key) for key in ("face", "frame", "size")}
    words += _options({**framing, "background": named(background) if is_id(background) else background}, request)
    if label if request.label is None else request.label:
        words.append("--label")
    return shlex.join(words)


def _file(name: str) -> str:
    """A file name as a word that the command line does not take for an option or a colour."""
    return f"./{name}" if name.startswith(("-", "#")) else name


def _options(values: Mapping[str, Any], request: Verb) -> list[str]:
    """`--key value` of the values that differ from the request's defaults."""
    words: list[str] = []
    for key, value in values.items():
        field = "driving_face" if isinstance(request, Track) and key == "face" else key
        if value != type(request).model_fields[field].default:
            words += [f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words
