"""Test strings on which different tokenizers give different token ids."""

from __future__ import annotations

import unicodedata

from tritgguf.converter.tokenizer.source import SourceTokenizer

# fmt: off
# Grouped by kind, several texts to a line.
TEXTS = (
    # empty, blank, and runs of every kind of space
    "", " ", "  ", "   ", "    x", "x    ", " leading", "trailing ", "two  spaces   three    four",
    " " * 33 + "x" + " " * 64, "\n", "\n\n", "\n\n\n\n\n", "\r\n", "\r", " \n", "\n ", " \n \n  \n",
    "\t", "\t\t\t", "\t \t\n\t",
    "a\n", "a\n\n b", "line one\nline two\r\nline three\rline four", "end. \n\n  Start", "x \t y",
    "\x0b\x0c vertical\x0band form\x0cfeed", "no\u00a0break", "em\u2003space\u2009thin", "ideographic\u3000space",
    "line\u2028and\u2029paragraph", "next\x85line", "zero\u200bwidth\u200djoin\ufeffmark", "\u00a0\u00a0", " \u2003 ",
    # digits
    "0", "1", "12", "123", "1234", "12345", "1234567890", " 7 77 777 7777", "3.14159", "1,000,000.00", "-42", "1e-10",
    "0xDEADBEEF", "2024-02-29T23:59:59Z", "٣٤٥ १२३ １２３ ৪৫৬", "½ ² Ⅷ ① ㊿ ౸", "v1.2.3-rc4", "a1b2c3", "100%",
    "$5.00 €6 ¥700", "12:34:56", "x  1   22    333\n\n4",
    # words, case, contractions
    "Hello, world!", "The quick brown fox jumps over the lazy dog.", "I'm you're he'd she'll we've it's don't",
    "I'M YOU'RE HE'D WE'VE", "'s 't 're 've 'm 'll 'd", "x'S y'Re z'lL", "’s curly’t quotes’ll", "'''",
    "o'clock 'tis rock'n'roll", "CamelCaseWord snake_case_word", "SHOUTING lower MiXeD", "étÉ ÉCOLEété ЁжикВТумане",
    "antidisestablishmentarianism", "a" * 100, "ab" * 150, "Donaudampfschifffahrtsgesellschaftskapitän",
    "http://example.com/a?b=c&d=%20#e", "me@example.co.uk", "C:\\Windows\\System32", "/usr/local/bin",
    # punctuation
    "!!!", "...", "……", "?!?!", "----", "=====", "***", "###", "((()))", "<<>>", "[[{}]]", "a,b;c:d",
    "\"quoted\" 'single' `tick`", "~!@#$%^&*()_+{}|:<>?", " . , ;", "«guillemets» „German“ 「日本」", "–—―",
    "→ ⇒ ∀∃∅ ∑∫√ ≤≥≠", "™®©", ".\n\n!\n?", "#!/bin/sh",
    # code
    "def f(x):\n    if x > 0:\n        return x ** 2\n\n    return [i for i in range(10)]  # why\n",
    'int main(void) {\n\tprintf("%d\\n", 1 << 3);\n\treturn 0;\n}\n',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\u00e9"}}', "SELECT * FROM t WHERE a='b' AND c<>d; -- note",
    '<div class="x">&amp;</div>', "for(;;){i++;--j;k+=1;}//x",
    # accents, composed and decomposed
    "café naïve Ångström", "cafe\u0301 nai\u0308ve", "Äpfel Öl Übermaß", "A\u0308pfel", "Tiếng Việt",
    "Tie\u0302\u0301ng Vie\u0323\u0302t", "Å Å Ω Ω ﬁ ﬂ",
    # scripts
    "Привет, мир! Ёлка", "Καλημέρα κόσμε", "Ἐν ἀρχῇ ἦν ὁ λόγος", "שלום עולם", "שָׁלוֹם", "مرحبا بالعالم",
    "السَّلامُ عَلَيْكُمْ", "سلام ۱۲۳ دنیا", "नमस्ते दुनिया", "हिन्दी क्षत्रिय", "বাংলা ভাষা", "தமிழ்",
    "ภาษาไทยไม่มีวรรค", "ລາວ", "မြန်မာ", "ភាសាខ្មែរ", "བོད་ཡིག", "አማርኛ", "ქართული", "Հայերեն", "你好，世界！",
    "中文和English混合123测试", "繁體中文", "日本語のテキスト、カタカナ", "ｶﾀｶﾅ ＡＢＣ", "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "𠮷野家 𠀀", "㐀㐁",
    # emoji
    "😀", "😀😃😄", " 😀 ", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵🇺🇸", "1️⃣ #️⃣", "❤️ ❤", "🦙.cpp", "🧑🏿‍🚀 in 🚀",
    # odd code points
    "\x00", "a\x00b", "\x01\x02\x1f\x7f", "\x1b[31mred\x1b[0m", "\ufffd\ufffd", "\ue000\uf8ff", "\U000f0000",
    "\U0010ffff", "\ufffe\uffff", "\u202eright to left\u202c", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "ŀ ǆ ſ ß ẞ ı İ", "\u0345\u0301alone", "ꙮ ꧁ ꧂", "𓀀𓁐", "☃\ufe0e☃\ufe0f",
    # things that look like special tokens
    "<|not_a_token|>", "<s", "</", "<|", "|>", "<unk", "[INST] [/INST]", "<0x0A>", "▁ ▁▁ a▁b", "Ġ Ċ Ġthe", "[PAD100]",
)
# fmt: on


def battery(tokenizer: SourceTokenizer) -> list[str]:
    """Return the texts to compare on: TEXTS, and each special token alone and inside a text.

    For a tokenizer that composes accents (Unicode NFC) the texts are composed first. llama.cpp has no such step, which
    one of the tokenizer's `notes` tells; the rest of its work on these texts can still be compared. For one that puts a
    space before the first text alone, the texts are those for which a file can do the same (first_space.py). Texts that
    a tokenizer's notes leave out (`comparable`) aren't compared.
    """
    texts = list(TEXTS)
    for special in tokenizer.special_tokens:
        texts += [special, f"left {special} right", f"a{special}b", f" {special}\n{special}{special}  next"]
    if (first := tokenizer.compared) is not None and first.adds:
        texts = [text for text in texts if not text.startswith((" ", "▁"))]
        texts = [text for text in texts if not any(special in text for special in tokenizer.special_tokens)]
    elif first is not None:
        texts = [first.begins + text for text in texts]
    if tokenizer.normalizes_nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return [text for text in dict.fromkeys(texts) if tokenizer.comparable(text)]
