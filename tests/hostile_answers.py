"""Answers that are code."""

CODE = (
    "open\\\n({path!r},'w')",
    "[open#\n({path!r},'w')]",
    "_\uff3fimport_\uff3f\\\n('os').\\\nsystem\\\n('touch {path}')",
    "[o for o in [open]][0]({path!r}, 'w')",
    "(lambda: open)()({path!r}, 'w')",
    "sin('open({path!r}, \"w\")')",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']({path!r}, 'w')",
    "f'{{open({path!r}, \"w\")}}'",
    "x if open({path!r}, 'w') else x",
    "(y := open)({path!r}, 'w')",
    "getattr(sin, '__module__')",
    "S('open({path!r}, \"w\")')",
    "sympify('open({path!r}, \"w\")')",
    "Integer(open({path!r}, 'w'))",
    "Lambda(x, open({path!r}, 'w'))(1)",
    "preview(x, output='dvi', filename={path!r})",
    "eval('open({path!r}, \"w\")')",
)
"""Texts that create a file if they are run."""
