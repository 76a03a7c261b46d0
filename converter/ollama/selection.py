"""Which of a model's two templates Ollama renders: the Modelfile's Go TEMPLATE, or the jinja in the file.

Ollama 0.30.0 and newer count what each offers, by texts in the templates, and take the jinja if it offers more
(shouldPreferChatTemplate in https://github.com/ollama/ollama/blob/main/server/images.go). This project's Go templates
offer thinking or nothing. OLLAMA_GO_TEMPLATE=1, set where the server runs, makes it take the TEMPLATE.
"""

from __future__ import annotations

TOOLS, THINKING = "tools", "thinking"


def jinja_offers(jinja: str) -> tuple[str, ...]:
    """Return what clients may ask of a model with this jinja: tools, thinking, both or neither."""
    tools = "tools" in jinja or "tool_call" in jinja
    # Some templates only cut the thoughts out of earlier answers; what they are cut at tells that there are thoughts.
    cuts = any(f"content.split({quote}</think>{quote})" in jinja for quote in "'\"")
    thinking = ("<think>" in jinja and "</think>" in jinja) or (
        cuts and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja
    )
    return (TOOLS,) * tools + (THINKING,) * thinking


def go_offers(template: str) -> tuple[str, ...]:
    """Return the same for one of the Go templates of families.py."""
    return (THINKING,) if ".Thinking" in template else ()


def more_in_jinja(jinja: str, template: str) -> tuple[str, ...]:
    """Return what the jinja offers, for which Ollama renders it instead of the Go template; () if Ollama doesn't."""
    offered = jinja_offers(jinja)
    return offered if len(offered) > len(go_offers(template)) else ()
