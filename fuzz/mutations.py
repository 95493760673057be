"""Changes of files, at random but repeatable: each takes a generator and gives the same bytes for the same seed."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

ZEROS = "0" * 64
DEEP = "@deep {} @"
"""A text that stands for that many lists in each other, which no JSON writer would write."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**53, -(2**63), 2**64, 10**30, 10**400, 10**999),
    *(0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "123",
        "convnet",
        "adam",
        "x" * 1000,
        "\0",
        "\x1b]0;taken\x07",
        "../../etc/passwd",
        "/dev/zero",
        "\ud800",
    ),
    *([], {}, [[]], [0] * 3, [1.5, None], ["a", "a"], [0] * 2000, {"tensor": "0"}, {"dict": []}, {"tuple": [1]}),
    *(DEEP.format(50), DEEP.format(480), DEEP.format(5000), DEEP.format(100_000)),
)


def any_bytes(random: Random, content: bytes) -> bytes:
    """Flip bits, overwrite, cut, repeat or move some of the bytes."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        place, length = random.randrange(len(changed)), random.choice((1, 2, 4, 8, 64))
        kind = random.randrange(8)
        if kind < 3:
            changed[place] ^= 1 << random.randrange(8)
        elif kind == 3:
            changed[place : place + length] = random.choice((b"\0", b"\xff", b"\x7f", random.randbytes(1))) * length
        elif kind == 4:
            changed[place : place + length] = random.randbytes(length)
        elif kind == 5:
            del changed[place : place + length]
        elif kind == 6:
            changed[place:place] = changed[random.randrange(len(changed)) :][:length]
        else:
            del changed[place:]
    return bytes(changed)


def flip_bit(random: Random, content: bytes) -> bytes:
    """Flip a single bit."""
    changed = bytearray(content)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def any_value(random: Random, value: Any) -> Any:
    """Change one place in a nesting of lists and dicts."""
    if isinstance(value, (list, dict)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = random.choice(keys)
        changed: Any = dict(value) if isinstance(value, dict) else list(value)
        kind = random.randrange(12)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[key] = value[random.choice(keys)]
        elif kind == 2 and isinstance(changed, dict):
            changed[random.choice((f"{key}s", "", "a\0b", "x" * 300, *map(str, keys)))] = changed.pop(key)
        elif kind == 2:
            changed.insert(key, random.choice(VALUES))
        else:
            changed[key] = any_value(random, value[key])
        return changed
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and random.random() < 0.4:
        return random.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), [value]))
    return random.choice(VALUES)


def to_json(random: Random, value: Any) -> str:
    """Write JSON, in which something may lie far too deep, or be named twice."""
    text = json.dumps(value)
    text = re.sub('"' + DEEP.format(r"(\d+)") + '"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)
    if random.random() < 0.02:
        keys = re.findall(r'"(\w+)": ', text)
        if keys:
            text = text.replace("{", f'{{"{random.choice(keys)}": 0, ', 1)
    return text


def safetensors(random: Random, content: bytes, entries: tuple[str, ...] = ()) -> bytes:
    """Change the header of a weight file, and seal it with a new digest, so that the reader gets to the change."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        names, metadata = [name for name in header if name != "__metadata__"], header.get("__metadata__")
        kind = random.randrange(14)
        if kind < 9 and isinstance(metadata, dict):
            key = random.choice([key for key in metadata if key in entries] or list(metadata) or ["x"])
            try:
                metadata[key] = to_json(random, any_value(random, json.loads(metadata.get(key, "0"))))
            except (ValueError, RecursionError, TypeError):
                metadata[key] = random.choice(("", "{", "[" * 5000, "1" * 5000, str(random.choice(VALUES))))
        elif kind == 9:
            header = any_value(random, header)
        elif kind == 10 and names:
            header[random.choice((f"{random.choice(names)}2", "", "a\x1b[31m"))] = header.pop(random.choice(names))
        elif kind == 11 and names:
            header[random.choice(names)] = any_value(random, header[random.choice(names)])
        elif kind == 12:
            count, end = random.choice((1, 3, 2000)), len(data)
            shape = random.choice(([0], [0, 2**40], [2**62, 0], [0] * 20))
            header |= {f"empty{i}": {"dtype": "F32", "shape": shape, "data_offsets": [end, end]} for i in range(count)}
        elif kind == 13 and names:
            name = random.choice(names)
            if isinstance(header[name], dict):
                header[name] = {
                    **header[name],
                    "dtype": random.choice(("F64", "F16", "BF16", "I32", "U8", "F8_E4M3", "C64")),
                }
        if not isinstance(header, dict):
            break
    return seal(random, header, data)


def seal(random: Random, header: Any, data: bytes) -> bytes:
    """A file of this header and these bytes: mostly with a right digest, at times with none or a wrong one."""
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    fate = random.random()
    if isinstance(metadata, dict) and fate < 0.95:
        metadata["sha256"] = ZEROS
        if fate < 0.25:
            del metadata["sha256"]
    # Surrogates stay escapes, which JSON can say.
    text = to_json(random, header).encode()
    text += b" " * (-len(text) % 8)
    whole = struct.pack("<Q", len(text)) + text + data
    return whole.replace(ZEROS.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def json_text(random: Random, content: bytes) -> bytes:
    """Change a JSON file: its values, or its bytes."""
    if random.random() < 0.2:
        return any_bytes(random, content)
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2))):
        value = any_value(random, value)
    return to_json(random, value).encode()


def toml_text(random: Random, content: bytes) -> bytes:
    """Change a TOML file: lines, values, or bytes."""
    if random.random() < 0.2:
        return any_bytes(random, content)
    lines = content.decode().splitlines()
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(lines))
        key = lines[place].partition("=")[0]
        depth = random.choice((50, 500, 5000))
        value = random.choice(
            (
                *("1979-05-27", "07:32:00", "0x" + "f" * 4000, "9" * 5000, "inf", "nan", "-0.0", "1e400", "'''x'''"),
                *(
                    "[" * depth + "]" * depth,
                    "{a=" * depth + "1" + "}" * depth,
                    "[[1], 'a', {}]",
                    "{5 = 1}",
                    '"\\u001b[31m"',
                ),
                *(json.dumps(v) for v in VALUES if v is not None and not isinstance(v, (dict, float))),
            )
        )
        line = random.choice(
            (f"{key}= {value}", f"x{place} = {value}", f"[{key.strip()}]", ".".join("a" * 2000) + " = 1", "")
        )
        lines[place : place + random.randrange(2)] = [line]
    return "\n".join(lines).encode(errors="surrogatepass")


def picture(random: Random, content: bytes) -> bytes:
    """Change the bytes of a picture, most of them near its beginning, where its sizes and its EXIF data are."""
    if random.random() < 0.5:
        return any_bytes(random, content)
    head = random.choice((32, 64, 256))
    return any_bytes(random, content[:head]) + content[head:]


Mutation = Callable[[Random, bytes], bytes]
