"""Variables that no session may set: through each of them a value becomes a program, a library or an option.

The list holds whatever `policy.yaml` says; `denied_env` there adds to it. A command that needs one of them
gets it from the `env` of its rule, which is the operator's word. `*` is any characters. Case does not count:
some programs (npm) do not look at it either.
"""

from __future__ import annotations

from typing import Final

NEVER_SET: Final = (
    # the shell, and where programs and files are looked for
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TMP", "TEMP", "IFS", "ENV", "CDPATH"),
    *("GLOBIGNORE", "PS4", "PROMPT_COMMAND", "BASH*", "SHELLOPTS", "ZDOTDIR"),
    # the loader and the C library
    *("LD_*", "DYLD_*", "GLIBC_TUNABLES", "GCONV_PATH", "GETCONF_DIR", "LOCPATH", "NLSPATH", "TZDIR"),
    *("MALLOC_*", "HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "RESOLV_*", "OPENSSL_*", "TERMINFO*"),
    "TERMCAP",
    # languages
    *("PYTHON*PATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS"),
    *("PYTHONBREAKPOINT", "PYTHONUSERBASE", "PYTHONEXECUTABLE", "PYTHONPYCACHEPREFIX"),
    *("PYTHONPLATLIBDIR", "PYTHON_*", "PERL*", "RUBY*", "NODE_OPTIONS", "NODE_PATH", "NODE_REPL_*"),
    *("GOFLAGS", "GOROOT", "CARGO_*", "RUSTC*", "RUSTFLAGS", "GEM_*", "BUNDLE_*", "DOTNET_*", "COR*_PROFILER*"),
    *("LUA_*", "PHP*", "CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"),
    # tools that take options, helpers or configuration from variables
    *("GIT_*", "SSH_*", "GNUPGHOME", "XDG_*", "DBUS_*", "PAGER", "MANPAGER", "EDITOR", "VISUAL"),
    *("BROWSER", "LESS*", "*_ASKPASS", "*_RSH", "PIP_*", "PYTEST_*", "UV_*", "YARN_*", "NPM_*", "MAKE*"),
    *("MFLAGS", "GNUMAKEFLAGS", "TAR_OPTIONS", "GREP_OPTIONS", "RIPGREP_CONFIG_PATH", "MAGIC"),
    *("GCC_*", "COMPILER_PATH", "CURL_HOME", "WGETRC"),
)
