"""What is asked of which vLLM server to record an incident. One scenario is a list of lives of replicas, in order.

Each holds what diverges, at least two quiet repeats of it, and a look-alike: the same mechanism is near, and must
not be named. Request names say which is which: NAME-PROMPT, such as `idle1-tides`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_server import Client

PROMPTS = {
    "refund": "A customer wants a refund for a damaged kettle. Write a short, polite reply.",
    "tides": "Explain in three sentences why there are two tides a day.",
    "sql": "Write an SQL query that lists the ten customers with the highest total order value.",
    "haiku": "Write a haiku about an old lighthouse.",
    "meeting": "Summarize: the launch moves to May, Ana owns the budget, and testing needs two more people.",
    "python": "Write a Python function that returns the median of a list of numbers.",
    "paris": "Give me a one day plan for Paris with two museums and a walk.",
    "email": "Write a short email asking a colleague to review a pull request by Friday.",
    "bread": "How do I make simple white bread? Answer in four steps.",
    "names": "Suggest five names for a small coffee shop near a harbor.",
}
NEIGHBOURS = (
    "Describe the water cycle to a child.", "List four uses of a paper clip.", "What does HTTP status 503 mean?",
    "Write a product description for a red rain jacket with four pockets and a hood that folds away.",
    "Give three tips for learning a new language.", "What is the difference between a crocodile and an alligator?",
    "Draft a notice that the elevator is out of service until Tuesday, and tell people where the stairs are.",
    "Name three rivers in Europe and the countries they cross.", "Write two sentences about autumn in the mountains.",
    "How long should I boil an egg?", "Explain recursion with an example from daily life, in at most five sentences.",
    "What should I pack for a weekend by the sea in October if the forecast says wind, rain and some sun?",
)  # fmt: skip
HANDBOOK = (
    "The harbor cafe opens at seven on weekdays and at nine on Sundays.",
    "Whoever opens checks the boiler, the till and the back door, in that order.",
    "Milk is delivered on Mondays and Thursdays; sign the slip and keep the pink copy.",
    "Beans are stored in the dry room, never beside the soap.",
    "A cup that is chipped is thrown away at once, even when it is only a little chip.",
    "Guests who ask for tap water get it without being charged.",
    "Refunds up to ten coins are decided at the counter; above that ask Ines.",
    "Dogs may sit under the tables on the terrace but not inside.",
    "When the alarm rings, close the gas first and only then lead the guests out.",
    "The spare key is with the baker across the street.",
    "Cakes are cut into twelve pieces; the last two are for whoever closes.",
    "The radio stays below the fourth mark before noon.",
    "Orders by telephone are written on the blue pad with the hour and a name.",
    "Nobody works more than six hours without a break of thirty minutes.",
    "The ice machine is cleaned on the first Tuesday of the month.",
    "Lost things wait in the wooden box for eight weeks.",
    "The card reader needs a new roll when a red line shows on the paper.",
    "On days of storm the terrace is closed and the parasols are tied.",
)
QUESTIONS = {
    "closing": "What must the person who closes remember?",
    "summary": "Summarize these rules in three sentences.",
    "storm": "A storm is coming on Sunday. What do we do, and when do we open?",
    "letter": "Write a short welcome letter to a new colleague that uses these rules.",
    "refund": "A guest wants a refund of twelve coins for a cold soup. What happens?",
    "list": "List the five rules that matter most for safety.",
    "quiz": "Write three quiz questions about these rules, with answers.",
    "dog": "A guest comes with a dog and asks for tap water. What do I say?",
}
OTHERS = [(f"neighbour{number:02d}", text) for number, text in enumerate(NEIGHBOURS)]


@dataclass(frozen=True)
class Life:
    """One life of one replica: its name, its server's flags, and what is asked of it."""

    replica: str
    flags: tuple[str, ...]
    drive: Callable[[Client], Awaitable[None]]


def rules(question: str, sentences: int = len(HANDBOOK)) -> str:
    """Return a long prompt: the first sentences of the handbook, then a question about them."""
    return f"Rules of the house. {' '.join(HANDBOOK[:sentences])}\n\n{QUESTIONS[question]}"


async def quiet(client: Client, arm: str, prompts: dict[str, str]) -> None:
    """Ask each prompt alone."""
    for name, text in prompts.items():
        await client.ask(f"{arm}-{name}", text)


async def together(client: Client, arm: str, order: list[tuple[str, str]], apart_ms: int = 40) -> None:
    """Ask all, each `apart_ms` after the one before."""
    await asyncio.gather(*(client.ask(f"{arm}-{name}", text, at * apart_ms) for at, (name, text) in enumerate(order)))


# --- load: the same requests alone, then among others ----------------------------------------------------------------


async def load(client: Client) -> None:
    """Ten prompts alone, twice, then all at once among twelve others."""
    await quiet(client, "idle1", PROMPTS)
    await quiet(client, "idle2", PROMPTS)
    order: list[tuple[str, str]] = []
    for at, prompt in enumerate(PROMPTS.items()):
        order += [*OTHERS[at : at + 1], prompt]
    await together(client, "load", order + OTHERS[len(PROMPTS) :])


# --- preemption: a pool that is too small for all --------------------------------------------------------------------

PREEMPTED = ("tides", "bread", "email")
PIECES_BEFORE_RESET = 20


async def preemption(client: Client) -> None:
    """Alone; alone, but preempted by an operator on the way; then together in a pool that is too small for all.

    Under load those that came last lose their KV. The look-alike came first: its neighbours are preempted, it is not.
    """
    chosen = {name: PROMPTS[name] for name in PREEMPTED}
    await quiet(client, "idle1", chosen)
    await quiet(client, "idle2", chosen)
    for name, text in chosen.items():
        await client.ask_and_interrupt(
            f"reset-{name}", text, PIECES_BEFORE_RESET, lambda: client.reset_cache(preempt=True)
        )
    first, *last = chosen.items()
    await together(client, "load", [first, *OTHERS[:4], *last])


# --- prefix cache: the second turn of a chat, cold, warm, and warm in company ----------------------------------------

CHATS = ("python",)
SECOND_TURN = "Explain the last part."
FIRST_ANSWER_TOKENS = 48


async def prefix_cache(client: Client) -> None:
    """Ask a follow-up with an empty cache, and with the KV of the first turn in it, which single steps computed.

    The look-alike: among others it differs from alone, and the hit has the same length in both.
    """
    for name in CHATS:
        first = PROMPTS[name]
        answer = await client.ask(f"first-{name}", first, max_tokens=FIRST_ANSWER_TOKENS)
        chat = [("user", first), ("assistant", answer), ("user", SECOND_TURN)]
        said = [{"role": role, "content": text} for role, text in chat]
        for arm in ("cold1", "cold2"):
            await client.reset_cache()
            await client.ask(f"{arm}-{name}", said)
        for arm in ("warm1", "warm2", "company"):
            await client.reset_cache()
            await client.ask(f"before-{arm}-{name}", first, max_tokens=FIRST_ANSWER_TOKENS)
            others = [
                client.ask(f"{other}-{arm}-{name}", text, at * 40)
                for at, (other, text) in enumerate(OTHERS[:3] if arm == "company" else ())
            ]
            await asyncio.gather(*others, client.ask(f"{arm}-{name}", said, 200 if others else 0))


# --- truncation: a gateway that cuts prompts to a smaller context ----------------------------------------------------

LONG = ("storm", "quiz")


def through(limit: int, *arms: str) -> Callable[[Client], Awaitable[None]]:
    """Return what gateways do that cut prompts to `limit` tokens: two long prompts, and one that always fits."""

    async def drive(client: Client) -> None:
        for arm in arms:
            for name in LONG:
                await client.ask(f"{arm}-{name}", rules(name), truncate_prompt_tokens=limit)
            await client.ask(f"{arm}-fits", rules("dog", 4), truncate_prompt_tokens=limit)

    return drive


async def truncation(client: Client) -> None:
    """Ask through a gateway that knows this replica's context, then through one that thinks it smaller."""
    await through(WIDE, "wide1", "wide2")(client)
    await through(NARROW, "narrow1", "narrow2")(client)


WIDE, NARROW = 960, 200

# --- chunk budget: the same question to a replica that cuts prompts into smaller chunks ------------------------------


async def chunks(client: Client) -> None:
    """Ask two long prompts and a short one alone, twice.

    With a budget of 40 tokens `list` (81 tokens) is cut as 40, 40, 1, and a launch of one token takes other kernels.
    The look-alikes: `letter` (105) is cut as 40, 40, 25, and `haiku` not at all.
    """
    asked = {"list": rules("list", 2), "letter": rules("letter", 3), "haiku": PROMPTS["haiku"]}
    for arm in ("ask1", "ask2"):
        await quiet(client, f"{client.replica}-{arm}", asked)


PLAIN = ("--max-model-len", "1024", "--no-enable-prefix-caching")
CACHING = ("--max-model-len", "1024", "--enable-prefix-caching", "--block-size", "32")
SMALL_CONTEXT = ("--max-model-len", "256", "--no-enable-prefix-caching")
SMALL_POOL = ("--block-size", "32", "--num-gpu-blocks-override", "16", "--max-num-seqs", "8")


def budget(tokens: int) -> tuple[str, ...]:
    """Return the flags of a replica with this many tokens a launch."""
    return (*PLAIN, "--max-num-seqs", "8", "--max-num-batched-tokens", str(tokens))


SCENARIOS: dict[str, tuple[Life, ...]] = {
    "load": (Life("a", PLAIN, load),),
    "preemption": (Life("a", SMALL_CONTEXT + SMALL_POOL, preemption),),
    "prefix-cache": (Life("a", CACHING, prefix_cache),),
    "truncation": (Life("a", PLAIN, truncation), Life("b", SMALL_CONTEXT, through(NARROW, "small"))),
    "chunk-budget": (Life("a", budget(512), chunks), Life("b", budget(512), chunks), Life("c", budget(40), chunks)),
}
