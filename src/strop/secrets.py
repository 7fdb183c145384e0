"""What looks like a secret: a key or password that must not be kept in a recipe, nor be printed in a message.

Known by its shape, or by the name of the key that it is under. Revisions and digests are no secrets.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

HIDDEN = "(a secret)"

_SHAPES = {
    "an access token of Hugging Face": r"(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "a token of GitHub": r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}",
    "a token of GitLab": r"glpat-[\w-]{16,}",
    "a token of Modal": r"(?:ak|as)-(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{16,}",
    "a proxy token of Modal": r"(?:wk|ws)-(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{16,}",
    "a key of Weights & Biases": r"wandb_v\d+_[\w-]{16,}|local-[0-9a-f]{32,}",
    "a key of AWS": r"(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "an API key": r"sk-(?:proj|ant|svcacct|admin|or|lf)-[\w-]{16,}|sk-[A-Za-z0-9_]{16,}"
    r"|(?:sk|rk|pk)_(?:live|test)_\w{16,}|(?:gsk|r8|npm|dop_v1)_[A-Za-z0-9]{20,}|(?:nvapi|pplx|pypi|xai)-[\w-]{20,}"
    r"|lsv2_[a-z]{2}_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}",
    "a key of Google": r"AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}",
    "a token of Slack": r"xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{16,}",
    "a key of Azure": r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/=]{16,}",
    "a signed address": r"(?i:(?<=[?&])(?:sig|signature|x-amz-signature|x-amz-security-token|token|access_token|api_key"
    r"|apikey|key)=[\w%+/=.~-]{8,})",
    "a bearer token": r"Bearer\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}|(?i:authorization\W{1,4}basic)\s+[A-Za-z0-9+/=]{8,}",
    "a JSON web token": r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]*-----END [A-Z ]*PRIVATE KEY-----|.*)",
    "a password in an address": r"(?:(?<=://)|(?<=\w:/))[^\s/@:'\"]*:[^\s/@'\"]+(?=@)|(?<=https://)[^\s/@:'\"]+(?=@)"
    r"|(?<=http://)[^\s/@:'\"]+(?=@)",
}
_SHAPE = re.compile(
    "(?<![A-Za-z0-9])(?:" + "|".join(f"(?P<s{n}>{shape})" for n, shape in enumerate(_SHAPES.values())) + ")", re.DOTALL
)
_KINDS = dict(zip((f"s{n}" for n in range(len(_SHAPES))), _SHAPES, strict=True))

_HEX = re.compile(r"[0-9a-f]{40}")
"""Weights & Biases' older keys; of a revision, the commit."""

_HEX_IN_TEXT = re.compile(r"(?<![\w/@.-])[0-9a-f]{40}(?![\w/-])")
_NEAR_REVISION = re.compile(r"(revision|commit|sha1?|hash|digest)\W*$", re.IGNORECASE)
_OF_REVISIONS = re.compile(r"(revision|commit|sha1?|hash|digest)$", re.IGNORECASE)
_NAME = (
    r"(?:api[_-]?keys?|secret[_-]?keys?|access[_-]?keys?(?:[_-]?id)?|private[_-]?keys?|account[_-]?keys?|"
    r"(?:^|(?<=[^a-z_-]))token|(?:hf|hub|api|auth|access|session|security|bearer|refresh|proxy|wandb|modal|git(?:hub|lab)|"
    r"slack|huggingface|login)[_-]?tokens?(?:[_-]?id)?|secret|passwo?rd|passwd|passphrase|credentials?|authorization|"
    r"connection[_-]?string)"
)
_KEY = re.compile(_NAME + "$", re.IGNORECASE)
_LINE = re.compile(
    r"(?<![\w-])[\w.-]*" + _NAME + r"""["']?\s*[:=]\s*("[^"\n]*"|'[^'\n]*'|[^\s,}\]#]+)""", re.IGNORECASE | re.MULTILINE
)
_SHORTEST = 6


def kind_of(key: str, value: Any) -> str | None:
    """What secret a value or its key looks like; None if neither does. Looks into lists and mappings too."""
    if found := _shape(key):
        return found
    if isinstance(value, Mapping):
        return next(filter(None, (kind_of(str(inner), given) for inner, given in value.items())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (kind_of(key, item) for item in value)), None)
    if value is None or isinstance(value, bool) or value == "":
        return None
    text = str(value)
    if _KEY.search(key) and not isinstance(value, float):
        return "an access token or password"
    if _HEX.fullmatch(text) and not _OF_REVISIONS.search(key):
        return "a key of Weights & Biases"
    return _shape(text)


def secrets_in(text: str) -> set[str]:
    """What is a secret for where it stands in a text; shapes are left to `without_secrets`."""
    values = {found[1].strip("\"'") for found in _LINE.finditer(text)}
    values |= {
        found[0]
        for found in _HEX_IN_TEXT.finditer(text)
        if not _NEAR_REVISION.search(text, max(0, found.start() - 30), found.start())
    }
    return {value for value in values if len(value) >= _SHORTEST and not value.startswith("<")}


def without_secrets(text: str, known: Collection[str] = ()) -> str:
    """A text with secrets hidden: those that are known, and all that have the shape of one."""
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _SHAPE.sub(HIDDEN, text)


def values_under_secret_names(key: str, value: Any) -> Iterator[str]:
    """The texts of a value that are secrets by the names of their keys."""
    if isinstance(value, Mapping):
        for inner, given in value.items():
            yield from values_under_secret_names(str(inner), given)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from values_under_secret_names(key, item)
    elif isinstance(value, str | int) and not isinstance(value, bool) and _KEY.search(key):
        text = str(value)
        yield from (each for each in (text, *text.split()) if len(each) >= _SHORTEST)


def _shape(text: str) -> str | None:
    found = _SHAPE.search(text)
    return _KINDS[found.lastgroup] if found and found.lastgroup else None
