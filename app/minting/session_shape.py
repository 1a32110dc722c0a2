"""What OpenAI's GA ``session`` object may look like, and what is wrong with one that does not.

One table per object, then the rules that tie members together. The tables follow the API reference
(``POST /v1/realtime/client_secrets`` and the event ``session.update``). That unknown members are
refused is not in OpenAI's schema, but it is what the service does.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from app.minting.json_shape import (
    FLAG,
    NULL,
    OBJECT,
    TEXT,
    Fault,
    array,
    either,
    integer,
    invalid_value,
    mapping,
    missing_parameter,
    number,
    one_of,
    record,
    shown,
    text,
    variants,
)

__all__ = ["Fault", "conflicts", "faults", "response_conflicts"]

Json: TypeAlias = Mapping[str, object]

PCM_RATE_HZ = 24_000
VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")

AUDIO_FORMAT = variants(
    {
        "audio/pcm": record({"type": TEXT, "rate": integer(PCM_RATE_HZ, PCM_RATE_HZ)}),
        "audio/pcmu": record({"type": TEXT}),
        "audio/pcma": record({"type": TEXT}),
    }
)

TRANSCRIPTION = record(
    {
        "model": TEXT,
        "language": text(pattern="[a-z]{2}", meaning="an ISO-639-1 code such as 'en'"),
        "languages": array(TEXT, least=1),
        "keywords": array(text(pattern=r"[^<>\r\n]*", meaning="no '<', '>' or line break")),
        "prompt": TEXT,
        "delay": one_of("minimal", "low", "medium", "high", "xhigh"),
    }
)

NOISE_REDUCTION = record({"type": one_of("near_field", "far_field"), "strength": number(0)})

TURN_DETECTION = variants(
    {
        "server_vad": record(
            {
                "type": TEXT,
                "threshold": number(0, 1),
                "prefix_padding_ms": integer(0),
                "silence_duration_ms": integer(0),
                "idle_timeout_ms": either(integer(5_000, 30_000), NULL),
                "create_response": FLAG,
                "interrupt_response": FLAG,
            }
        ),
        "semantic_vad": record(
            {
                "type": TEXT,
                "eagerness": one_of("low", "medium", "high", "auto"),
                "create_response": FLAG,
                "interrupt_response": FLAG,
            }
        ),
    }
)

AUDIO_INPUT = record(
    {
        "format": AUDIO_FORMAT,
        "transcription": either(TRANSCRIPTION, NULL),
        "noise_reduction": either(NOISE_REDUCTION, NULL),
        "turn_detection": either(TURN_DETECTION, NULL),
    }
)

VOICE = either(one_of(*VOICES), record({"id": TEXT}, required=["id"]))

_TOOL_FILTER = record({"tool_names": array(TEXT), "read_only": FLAG})
_APPROVAL = record({"always": _TOOL_FILTER, "never": _TOOL_FILTER})
_TOOL_NAME = text(pattern="[a-zA-Z0-9_-]{1,64}", meaning="1 to 64 letters, digits, '_' or '-'")

TOOLS = array(
    variants(
        {
            "function": record(
                {"type": TEXT, "name": _TOOL_NAME, "description": TEXT, "parameters": OBJECT},
                required=["name"],
            ),
            "mcp": record(
                {
                    "type": TEXT,
                    "server_label": TEXT,
                    "server_description": TEXT,
                    "server_url": TEXT,
                    "connector_id": TEXT,
                    "tunnel_id": text(
                        pattern="tunnel_[a-z0-9]{32}",
                        meaning="'tunnel_' and 32 lower-case letters or digits",
                    ),
                    "authorization": TEXT,
                    "headers": either(mapping(TEXT), NULL),
                    "allowed_tools": either(array(TEXT), _TOOL_FILTER, NULL),
                    "allowed_callers": either(
                        array(one_of("direct", "programmatic"), least=1), NULL
                    ),
                    "require_approval": either(one_of("always", "never"), _APPROVAL, NULL),
                    "defer_loading": FLAG,
                },
                required=["server_label"],
            ),
        }
    )
)

TOOL_CHOICE = either(
    one_of("auto", "none", "required"),
    variants(
        {
            "function": record({"type": TEXT, "name": TEXT}, required=["name"]),
            "mcp": record(
                {"type": TEXT, "server_label": TEXT, "name": either(TEXT, NULL)},
                required=["server_label"],
            ),
        }
    ),
)

TRUNCATION = either(
    one_of("auto", "disabled"),
    variants(
        {
            "retention_ratio": record(
                {
                    "type": TEXT,
                    "retention_ratio": number(0, 1),
                    "token_limits": record({"post_instructions": integer(0)}),
                },
                required=["retention_ratio"],
            )
        }
    ),
)

TRACING = either(
    one_of("auto"), record({"workflow_name": TEXT, "group_id": TEXT, "metadata": OBJECT}), NULL
)

PROMPT = either(
    record(
        {"id": TEXT, "version": either(TEXT, NULL), "variables": either(OBJECT, NULL)},
        required=["id"],
    ),
    NULL,
)

MODALITIES = array(one_of("text", "audio"))
MAX_OUTPUT_TOKENS = either(integer(1, 4096), one_of("inf"))
REASONING = record({"effort": one_of("minimal", "low", "medium", "high", "xhigh")})
INCLUDE = array(one_of("item.input_audio_transcription.logprobs"))

SESSION = variants(
    {
        "realtime": record(
            {
                "type": TEXT,
                "model": TEXT,
                "instructions": TEXT,
                "output_modalities": MODALITIES,
                "audio": record(
                    {
                        "input": AUDIO_INPUT,
                        "output": record(
                            {"format": AUDIO_FORMAT, "voice": VOICE, "speed": number(0.25, 1.5)}
                        ),
                    }
                ),
                "include": INCLUDE,
                "tools": TOOLS,
                "tool_choice": TOOL_CHOICE,
                "parallel_tool_calls": FLAG,
                "reasoning": REASONING,
                "max_output_tokens": MAX_OUTPUT_TOKENS,
                "truncation": TRUNCATION,
                "tracing": TRACING,
                "prompt": PROMPT,
            }
        ),
        "transcription": record(
            {
                "type": TEXT,
                "model": TEXT,  # known, so that conflicts() can refuse it in OpenAI's words
                "audio": record({"input": AUDIO_INPUT}),
                "include": INCLUDE,
            }
        ),
    }
)

_MCP_SERVERS = ("server_url", "connector_id", "tunnel_id")
_ONLY_WITH = {  # member of a transcription, and the models that know it
    "languages": ("gpt-transcribe", "gpt-live-transcribe"),
    "keywords": ("gpt-transcribe", "gpt-live-transcribe"),
    "delay": ("gpt-realtime-whisper", "gpt-live-transcribe"),
}
_WITHOUT_PROMPT = ("gpt-realtime-whisper", "gpt-4o-transcribe-diarize")
_WITHOUT_TURN_DETECTION = {
    "realtime": ("gpt-transcribe", "gpt-live-transcribe", "gpt-realtime-whisper"),
    "transcription": ("gpt-live-transcribe", "gpt-realtime-whisper"),
}


def faults(session: Json, *, at: str = "session", partial: bool = False) -> list[Fault]:
    """Return everything OpenAI would refuse about *session*, in the order of its members.

    Args:
        session: A GA session as it goes into a mint or a ``session.update``.
        at: What the session itself is called in every ``param``.
        partial: The session is an update: what it leaves out stays as it is, so nothing but
            ``type`` has to be there.
    """
    return [*SESSION.faults(session, at), *conflicts(session, at=at, partial=partial)]


def conflicts(session: Json, *, at: str = "session", partial: bool = False) -> Iterator[Fault]:
    """Give the members of *session* that do not go together. What has a wrong type is passed over.

    A null counts as left out (but for ``turn_detection``), so the session may also be one as OpenAI
    echoes it. Arguments as for ``faults``.
    """
    if session.get("type") == "transcription" and "model" in session:
        yield invalid_value(
            f"{at}.model", "You must not provide a model parameter for transcription sessions."
        )
    yield from response_conflicts(session, at=at)
    audio_input = _object(_object(session, "audio"), "input")
    transcription = _object(audio_input, "transcription")
    if isinstance(audio_input.get("transcription"), Mapping):
        yield from _transcription_conflicts(
            transcription, at=f"{at}.audio.input.transcription", partial=partial
        )
    # Left out, turn detection is on, unless an update leaves it out: then it is as it was.
    detects_turns = audio_input.get("turn_detection", None if partial else "default") is not None
    unable = _WITHOUT_TURN_DETECTION.get(str(session.get("type")), ())
    if detects_turns and transcription.get("model") in unable:
        yield invalid_value(
            f"{at}.audio.input.turn_detection",
            "Turn detection is not supported for this transcription model.",
        )


def response_conflicts(settings: Json, *, at: str) -> Iterator[Fault]:
    """Give the conflicts that a session and the ``response`` of a ``response.create`` share."""
    modalities = settings.get("output_modalities")
    if isinstance(modalities, list | tuple) and len(modalities) != 1:
        yield invalid_value(
            f"{at}.output_modalities",
            f"Invalid modalities: {shown(list(modalities))}."
            " Supported combinations are: ['text'] and ['audio'].",
        )
    tools = settings.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list | tuple) else ()):
        if isinstance(tool, Mapping) and tool.get("type") == "mcp":
            yield from _mcp_conflicts(tool, at=f"{at}.tools[{index}]")


def _mcp_conflicts(tool: Json, *, at: str) -> Iterator[Fault]:
    given = [name for name in _MCP_SERVERS if tool.get(name) is not None]
    if not given:
        yield missing_parameter(f"{at}.server_url")
    for name in given[1:]:
        yield invalid_value(
            f"{at}.{name}", f"Only one of {', '.join(_MCP_SERVERS)} can be given for an MCP tool."
        )


def _transcription_conflicts(transcription: Json, *, at: str, partial: bool) -> Iterator[Fault]:
    given = {name for name, value in transcription.items() if value is not None}
    if "model" not in given:
        if not partial:
            yield missing_parameter(f"{at}.model")
    else:
        model = transcription["model"]
        for name, models in _ONLY_WITH.items():
            if name in given and model not in models:
                yield _not_with_model(f"{at}.{name}")
        if "prompt" in given and model in _WITHOUT_PROMPT:
            yield _not_with_model(f"{at}.prompt")
    if {"language", "languages"} <= given:
        yield invalid_value(
            f"{at}.languages", "Only one of 'language' and 'languages' can be given."
        )


def _not_with_model(param: str) -> Fault:
    name = param.rpartition(".")[2]
    return invalid_value(param, f"'{name}' is not supported for this transcription model.")


def _object(parent: Json, name: str) -> Json:
    child = parent.get(name)
    return child if isinstance(child, Mapping) else {}
