"""generate and chat: letting a model write."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.command.options import DEFAULT_STORE, AsJson, ModelName, StoreFolder, make_app
from flows.command.say import say
from flows.recipe.read import checked_values
from flows.runs.base import model_folder
from model.errors import InputError
from model.generate import Sampling, complete, generate_text
from model.speaker import Speaker, load_speaker
from tasks.engine.store import Store

app = make_app()

MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to write.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopK = Annotated[int, typer.Option(min=0, help="Choose among this many likeliest tokens; 0 among all.")]
TopP = Annotated[
    float,
    typer.Option(
        help="Choose among the likeliest tokens with this probability together; above 0, at most 1."
    ),
]
MinP = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Least share of the likeliest token's probability.")
]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens that are there already become rarer.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop before this text. Repeatable.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the choice.")]
AdapterFolder = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="A LoRA or DoRA adapter for this very model.")
]


def _sampling(stop: list[str] | None, **values: Any) -> Sampling:
    return checked_values(Sampling, {**values, "stop": stop or ()}, "the options")


def _write(piece: str) -> None:
    say(piece, nl=False)
    sys.stdout.flush()


@app.command()
def generate(
    model: ModelName,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to go on from.")
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    max_tokens: MaxTokens = 100,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    adapter: AdapterFolder = None,
    as_json: AsJson = False,
) -> None:
    """Let a model go on from one text, or from several at once."""
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling = _sampling(stop, max_tokens=max_tokens, repetition_penalty=repetition_penalty, **how)
    speaker = load_speaker(model_folder(model, Store(store)), adapter)
    texts = prompts or [""]
    ids = [speaker.encode(text) for text in texts]
    if len(texts) == 1 and not as_json:
        _write(texts[0])
        for (piece,) in generate_text(speaker.model, speaker.tokenizer, ids, sampling, speaker.ends):
            _write(piece)
        say()
        return
    answers = complete(speaker.model, speaker.tokenizer, ids, sampling, speaker.ends)
    if as_json:
        say(
            json.dumps(
                [{"prompt": text, "text": answer} for text, answer in zip(texts, answers, strict=True)]
            )
        )
    for text, answer in () if as_json else zip(texts, answers, strict=True):
        say(f"{text}{answer}\n")


@app.command()
def chat(
    model: ModelName,
    store: StoreFolder = DEFAULT_STORE,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before the conversation.")
    ] = None,
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    adapter: AdapterFolder = None,
) -> None:
    """Talk to a fine-tuned model: one line a message; Ctrl-C ends an answer, Ctrl-D the conversation."""
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling = _sampling(stop, max_tokens=max_tokens, repetition_penalty=repetition_penalty, **how)
    speaker = load_speaker(model_folder(model, Store(store)), adapter)
    _ = speaker.template  # a model that cannot talk says so before the first question
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            say("\n(Ctrl-D ends the conversation)", err=True)
            continue
        if line:
            _answer(speaker, sampling, messages, line)


def _answer(speaker: Speaker, sampling: Sampling, messages: list[dict[str, str]], line: str) -> None:
    """Ask, print the answer as it comes, and remember both."""
    messages.append({"role": "user", "content": line})
    n_before, answer = len(messages), ""
    try:
        for piece in speaker.answer(messages, sampling):
            answer += piece
            _write(piece)
    except InputError as error:
        say(f"error: {error}", err=True)
        messages.pop()
        return
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    say()
    if len(messages) < n_before:
        say("(the beginning of the conversation no longer fits and is forgotten)", err=True)
    messages.append({"role": "assistant", "content": answer.strip() or "…"})
