"""The pack `persistence`: files that a user's programs obey without being asked, outside any session.

Whoever writes one of them acts later as that user, with no wall around: at the next login, the next `git status`,
the next time a folder is opened in an editor. Not here are the sources of a project (makefiles, configuration of
linters, scripts of package.json): those are what the work is about, and they run when somebody runs them.

A list of names is never complete, so the home is closed by its shape, `~/.*`: present or absent, known or not.
What its programs find outside dot-names, and what they find in projects, is named.
"""

from __future__ import annotations

from typing import Final

from policy.packs.closing import guarded, sealed

_HOMES = (
    *sealed(
        "start files, settings, programs and secrets of the user, obeyed by whatever he runs",
        *("~/.*", "/home/*/.*", "/root/.*"),
    ),
    *guarded("programs that the user's shell finds by their names", "~/bin/**", "/home/*/bin/**", "/root/bin/**"),
    *guarded("programs that the user's shell finds by their names", "~/sbin/**", "~/go/bin/**", "~/perl5/**"),
    *guarded("programs that the user starts from his desktop", "~/Applications/**", "~/AppImages/**"),
    *guarded(
        "an installation of programs and libraries that the user's shell has in its PATH",
        *("~/miniconda/**", "~/miniconda2/**", "~/miniconda3/**", "~/anaconda/**", "~/anaconda2/**"),
        *("~/anaconda3/**", "~/miniforge/**", "~/miniforge3/**", "~/mambaforge/**", "~/micromamba/**"),
        *("~/google-cloud-sdk/**", "~/Android/Sdk/**", "~/android-sdk/**", "~/flutter/**", "~/depot_tools/**"),
        *("~/emsdk/**", "~/linuxbrew/**", "~/homebrew/**"),
    ),
    *guarded(
        "libraries and data with code that the user's programs load",
        *("~/go/pkg/**", "~/R/*-library/**", "~/texmf/**", "~/nltk_data/**", "~/scikit_learn_data/**"),
        *("~/quicklisp/**", "~/common-lisp/**"),
    ),
    *guarded("what the user's home links to, or keeps for his dot-names", "~/dotfiles/**", "~/dots/**", "~/stow/**"),
    *guarded("virtual machines that the user starts", "~/VirtualBox VMs/**", "~/vmware/**"),
    *guarded("programs that a web server runs", "~/public_html/**"),
    *guarded("the mail system obeys it", "~/Maildir/.mailfilter", "~/Maildir/.qmail*", "~/sieve/**"),
    *guarded(
        "a launcher on the user's desktop",
        *("~/Desktop/*.desktop", "~/Schreibtisch/*.desktop", "~/Bureau/*.desktop", "~/Escritorio/*.desktop"),
        *("~/Scrivania/*.desktop", "~/Área de Trabalho/*.desktop", "~/Ambiente de Trabalho/*.desktop"),
        *("~/Bureaublad/*.desktop", "~/Pulpit/*.desktop", "~/Plocha/*.desktop", "~/Skrivbord/*.desktop"),
        *("~/Skrivebord/*.desktop", "~/Työpöytä/*.desktop", "~/Masaüstü/*.desktop", "~/Asztal/*.desktop"),
        *("~/Рабочий стол/*.desktop", "~/Стільниця/*.desktop", "~/桌面/*.desktop", "~/デスクトップ/*.desktop"),
        *("~/바탕화면/*.desktop", "~/سطح المكتب/*.desktop"),
    ),
    *guarded(
        "what a file manager makes new files from",
        *("~/Templates/**", "~/Vorlagen/**", "~/Modèles/**", "~/Plantillas/**", "~/Modelli/**", "~/Modelos/**"),
        *("~/Sjablonen/**", "~/Szablony/**", "~/Šablony/**", "~/Mallar/**", "~/Шаблоны/**", "~/模板/**"),
    ),
)

# A tool that looks for its file in the folder it is started in, then in the one above, ends in the home: a file
# there is obeyed in every project below that has none of its own.
_ABOVE_PROJECTS = (
    *guarded("node finds modules here from every project below", "~/node_modules/**"),
    *guarded(
        "with it the home is a repository to git, whose configuration it obeys in every folder below that is in none",
        *("~/HEAD", "/home/*/HEAD"),
    ),
    *guarded(
        "a tool that is started in a project below finds it, and runs what it says",
        *("~/package.json", "~/pnpm-workspace.yaml", "~/pnpmfile.js", "~/lerna.json", "~/nx.json", "~/turbo.json"),
        *("~/rush.json", "~/angular.json", "~/nest-cli.json", "~/wrangler.*", "~/netlify.toml", "~/firebase.json"),
        *("~/hardhat.config.*", "~/truffle-config.js", "~/foundry.toml", "~/dprint.json", "~/pubspec.yaml"),
        *("~/eslint.config.*", "~/prettier.config.*", "~/babel.config.*", "~/postcss.config.*"),
        *("~/stylelint.config.*", "~/tailwind.config.*", "~/commitlint.config.*", "~/lint-staged.config.*"),
        *("~/release.config.*", "~/jest.config.*", "~/vite.config.*", "~/vitest.config.*", "~/webpack.config.*"),
        *("~/gulpfile.*", "~/Gruntfile.*", "~/tsconfig.json", "~/jsconfig.json", "~/deno.json", "~/deno.jsonc"),
        *("~/bunfig.toml", "~/biome.json", "~/biome.jsonc", "~/rome.json"),
        *("~/pyproject.toml", "~/setup.cfg", "~/setup.py", "~/tox.ini", "~/pytest.*", "~/conftest.py"),
        *("~/mypy.ini", "~/ruff.toml", "~/uv.toml", "~/Pipfile", "~/tasks.py", "~/fabfile.py", "~/manage.py"),
        *("~/tasks/__init__.py", "~/fabfile/__init__.py", "~/pixi.toml", "~/pants.toml", "~/hie.yaml"),
        *("~/noxfile.py", "~/dodo.py", "~/pavement.py", "~/SConstruct", "~/wscript", "~/meson.build"),
        *("~/Makefile", "~/makefile", "~/GNUmakefile", "~/justfile", "~/Justfile", "~/JUSTFILE", "~/Taskfile.*"),
        "~/taskfile.*",
        *("~/Rakefile*", "~/rakefile*", "~/Gemfile", "~/gems.rb", "~/Guardfile", "~/Vagrantfile", "~/vagrantfile"),
        *("~/Capfile", "~/Thorfile", "~/Package.swift", "~/Project.toml", "~/JuliaProject.toml", "~/xmake.lua"),
        *("~/Berksfile", "~/Dangerfile", "~/Fastfile", "~/Brewfile", "~/Podfile"),
        *("~/Cargo.toml", "~/rust-toolchain", "~/rust-toolchain.toml", "~/build.rs", "~/go.mod", "~/go.work"),
        *("~/build.gradle*", "~/settings.gradle*", "~/pom.xml", "~/build.xml", "~/build.sbt", "~/build.sc"),
        *("~/WORKSPACE", "~/WORKSPACE.bazel", "~/MODULE.bazel", "~/BUILD", "~/BUILD.bazel", "~/BUCK"),
        *("~/dune-project", "~/dune-workspace", "~/stack.yaml", "~/cabal.project*", "~/mix.exs", "~/rebar.config"),
        *("~/project.clj", "~/deps.edn", "~/bb.edn", "~/shadow-cljs.edn", "~/composer.json", "~/phpunit.xml*"),
        *("~/Directory.Build.*", "~/Directory.Packages.props", "~/global.json", "~/nuget.config", "~/NuGet.?onfig"),
        *("~/flake.nix", "~/shell.nix", "~/default.nix", "~/devenv.nix", "~/devbox.json", "~/guix.scm"),
        *("~/compose.y*", "~/compose.override.y*", "~/docker-compose.y*", "~/docker-compose.override.y*"),
        *("~/docker-bake.*", "~/Dockerfile", "~/Containerfile", "~/Tiltfile", "~/skaffold.yaml", "~/Procfile"),
        *("~/ansible.cfg", "~/terragrunt.hcl", "~/root.hcl", "~/Pulumi.yaml", "~/serverless.y*", "~/lefthook.y*"),
        *("~/CMakeLists.txt", "~/CMakePresets.json", "~/CMakeUserPresets.json", "~/configure", "~/gradlew", "~/mvnw"),
    ),
    *guarded(
        "an agent that is started in a project below obeys it",
        *("~/CLAUDE.md", "~/CLAUDE.local.md", "~/AGENTS.md", "~/AGENT.md", "~/AGENTS.override.md", "~/GEMINI.md"),
        *("~/QWEN.md", "~/CRUSH.md", "~/WARP.md"),
    ),
)

_REPOSITORIES = (
    *guarded(
        "git runs programs that it names (core.fsmonitor, diff.external, filters, aliases), on a mere `git status`",
        *("**/.git/config", "**/.git/config.worktree", "**/.git/worktrees/*/config.worktree"),
        *("**/.git/modules/**/config", "**/.git/modules/**/config.worktree", "**/*.git/config"),
    ),
    *guarded("git runs what lies here", "**/.git/hooks/**", "**/.git/modules/**/hooks/**", "**/*.git/hooks/**"),
    *guarded(
        "it tells git which of the configured filters and programs to use",
        *("**/.git/info/attributes", "**/.git/modules/**/info/attributes"),
    ),
    *guarded(
        "it tells git where the configuration of this repository is",
        *("**/.git/commondir", "**/.git/worktrees/*/commondir", "**/.git/worktrees/*/gitdir"),
        "**/.git/modules/**/commondir",
    ),
    *guarded(
        "git runs the commands in it when the rebase goes on",
        *("**/.git/rebase-merge/git-rebase-todo", "**/.git/rebase-merge/git-rebase-todo.backup"),
        *("**/.git/rebase-merge/author-script", "**/.git/rebase-apply/author-script"),
        *("**/.git/worktrees/*/rebase-merge/git-rebase-todo", "**/.git/sequencer/todo"),
    ),
    *guarded(
        "a version control system runs hooks, extensions and aliases that it names",
        *("**/.hg/hgrc", "**/.hg/hgrc-not-shared", "**/.hg/sharedpath", "**/.sl/config", "**/.bzr/branch/branch.conf"),
        *("**/.jj/repo/config.toml", "**/.jj/repo/config-id", "**/.jj/repo/store/git_target", "**/.pijul/config"),
        "**/.jj/workspace-config.toml",
        "**/_darcs/prefs/defaults",
    ),
    *guarded(
        "hooks that git was told to run",
        *("**/.husky/**", "**/.githooks/**", "**/.git-hooks/**", "**/.hooks/**", "**/githooks/**"),
        *("**/git-hooks/**", "**/.git_hooks/**", "**/.lefthook/**", "**/.lefthook-local/**", "**/.lefthook-local.*"),
        *("**/lefthook-local.*", "**/.overcommit.yml", "**/.local-overcommit.yml", "**/.pre-commit-hooks/**"),
    ),
)

_EDITORS = (
    *guarded(
        "an editor obeys it when it opens the folder: tasks, debuggers, language servers, interpreters",
        *("**/.vscode/**", "**/*.code-workspace", "**/.vs/**", "**/.theia/**", "**/.idea/**", "**/.run/**"),
        *("**/*.ipr", "**/*.iws", "**/.fleet/**", "**/.zed/**", "**/.nova/**", "**/.helix/**", "**/.kakrc"),
        *("**/*.sublime-project", "**/*.sublime-workspace", "**/*.kateproject", "**/.kateproject", "**/.kateconfig"),
        *("**/.settings/**", "**/.externalToolBuilders/**", "**/nbproject/private/**", "**/.bsp/**"),
        *("**/.lapce/**", "**/.pulsar/**", "**/.atom/**", "**/.brackets.json", "**/.geany/**", "**/*.geany"),
        "**/.project",
    ),
    *guarded(
        "vim runs it where 'exrc' or a plugin for local settings is on",
        *("**/.exrc", "**/_exrc", "**/.vimrc", "**/.gvimrc", "**/_vimrc", "**/.nvimrc", "**/.nvim.lua"),
        *("**/.lvimrc", "**/.local.vimrc", "**/.vimrc.local", "**/.vim/**", "**/.nvim/**", "**/.vimspector.json"),
        *("**/.neoconf.json", "**/.lazy.lua", "**/.nlsp-settings/**", "**/.ycm_extra_conf.py", "**/Session.vim"),
    ),
    *guarded(
        "a server that an editor starts for the folder runs the program, the plugin or the code in it",
        *("**/.luarc.json", "**/.luarc.jsonc", "**/.jedi/**", "**/.ropeproject/**", "**/.lsp/**", "**/hie.yaml"),
        *("**/.merlin", "**/omnisharp.json", "**/buildServer.json", "**/.sourcekit-lsp/**", "**/.phpactor.*"),
    ),
    *guarded(
        "Emacs evaluates it when it visits a file here",
        *("**/.dir-locals.el", "**/.dir-locals-2.el", "**/.projectile", "**/.emacs", "**/.emacs.d/**"),
        "**/.spacemacs",
    ),
)

_AGENTS = (
    *guarded(
        "an agent starts the servers that it names",
        *("**/.mcp.json", "**/mcp.json", "**/.mcp/**", "**/mcp_config.json", "**/mcp_settings.json"),
        *("**/claude_desktop_config.json", "**/opencode.json", "**/opencode.jsonc", "**/.opencode.json"),
        *("**/crush.json", "**/.crush.json", "**/.mcp.local.json"),
    ),
    *guarded(
        "settings, hooks, permissions and instructions of an agent",
        *("**/.claude/**", "**/.claude.json", "**/.claude-plugin/**", "**/.cursor/**", "**/.codex/**"),
        *("**/.gemini/**", "**/gemini-extension.json", "**/CLAUDE.local.md", "**/AGENTS.local.md"),
        *("**/AGENTS.override.md", "**/.*rules"),
        *("**/.qwen/**", "**/.windsurf/**", "**/.codeium/**", "**/.continue/**"),
        *("**/.continuerc.json", "**/.cline/**", "**/.clinerules/**", "**/.roo/**"),
        *("**/.roorules*", "**/.roomodes", "**/.kilocode/**", "**/.kilocodemodes", "**/.kiro/**", "**/.amazonq/**"),
        *("**/.augment/**", "**/.augment-guidelines", "**/.junie/**", "**/.trae/**", "**/.void/**"),
        *("**/.opencode/**", "**/.goose/**", "**/.goosehints", "**/.crush/**", "**/.factory/**", "**/.amp/**"),
        *("**/.agents/**", "**/.agent/**", "**/.aider*", "**/.copilot/**", "**/.warp/**", "**/.openhands/**"),
        *("**/.zencoder/**", "**/.tabnine/**", "**/.cody/**", "**/.sourcegraph/**", "**/.serena/**"),
        *("**/.taskmaster/**", "**/.ruler/**", "**/.antigravity/**", "**/.vibe/**"),
        *("**/.grok/**", "**/.iflow/**", "**/.rovodev/**", "**/.forge/**", "**/.kilo/**", "**/.codebuddy/**"),
        *("**/.lingma/**", "**/.comate/**", "**/.pi/**", "**/.devin/**"),
        *("**/.aiassistant/**", "**/.rulesync/**"),
        *("**/.openclaw/**", "**/.qodo/**", "**/.openhands_instructions"),
        *("**/.github/copilot-instructions.md", "**/.github/instructions/**", "**/.github/prompts/**"),
        *("**/.github/chatmodes/**", "**/.github/agents/**", "**/.github/hooks/**", "**/.github/copilot/**"),
        "**/.github/skills/**",
    ),
)

_FOLDERS = (
    *guarded(
        "a shell or a version manager obeys it when it enters the folder",
        *("**/.envrc", "**/.envrc.local", "**/.envrc.private", "**/.direnv/**", "**/.direnvrc", "**/.autoenv*"),
        *("**/mise.toml", "**/mise.*.toml", "**/.mise*.toml", "**/.mise/**", "**/mise/config*.toml"),
        *("**/.config/mise.toml", "**/.config/mise.*.toml", "**/.config/mise/**", "**/.rtx.toml"),
        *("**/.tool-versions", "**/.rvmrc"),
        *("**/.versions.conf", "**/.pdm-python", "**/.sdkmanrc", "**/.proto/**", "**/.prototools"),
        *("**/.shadowenv.d/**", "**/.rbenv-vars", "**/.env.leave", "**/bin/activate-hermit", "**/bin/hermit.hcl"),
    ),
    *guarded(
        "a tool builds and enters an environment that it describes, when the folder is opened",
        *("**/.devcontainer/**", "**/.devcontainer.json", "**/.gitpod.yml", "**/.idx/**", "**/.codesandbox/**"),
        *("**/.replit", "**/.ona/**"),
    ),
    *guarded(
        "a package manager runs the programs that it names",
        *("**/.yarnrc", "**/.yarnrc.yml", "**/.yarn/releases/**", "**/.yarn/plugins/**", "**/.yarn/sdks/**"),
        "**/.npmrc",
        *("**/.pnpmfile.*", "**/pnpmfile.js", "**/pnpmfile.cjs", "**/.cargo/config", "**/.cargo/config.toml"),
        "**/.bundle/config",
        *("**/.bundle/plugin/**", "**/pip.conf"),
    ),
    *guarded("Python imports it at every start", "**/usercustomize.py", "**/sitecustomize.py"),
    *guarded(
        "Jupyter and IPython run it",
        *("**/jupyter_*config.py", "**/jupyter_*config.json", "**/ipython_config.py", "**/ipython_kernel_config.py"),
        *("**/.jupyter/**", "**/.ipython/**"),
    ),
    *guarded(
        "a debugger or an interactive interpreter that is started here runs it",
        *("**/.gdbinit", "**/.gdbearlyinit", "**/.lldbinit", "**/.cgdb/**", "**/.radare2rc", "**/.pdbrc"),
        *("**/.pdbrc.py", "**/.perldb", "**/.byebugrc", "**/.rdbgrc", "**/.rdbgrc.rb", "**/.irbrc", "**/.pryrc"),
        *("**/.Rprofile", "**/.Renviron", "**/.RData", "**/.octaverc", "**/.ghci", "**/.ocamlinit", "**/.iex.exs"),
        *("**/.erlang", "**/.psysh.php", "**/.nrepl.edn", "**/.gnuplot", "**/.maxima/**", "**/.tmuxinator.y*"),
        *("**/.tmuxp.*", "**/.reviewboardrc", "**/.arcconfig"),
    ),
)

# The names of a home's files elsewhere: folders that homes link to, and homes that are not where they usually are.
_DOTFILES = guarded(
    "start files that a home may link to",
    *("**/.bashrc", "**/.bash_profile", "**/.bash_login", "**/.bash_logout", "**/.bash_aliases", "**/.bashrc.d/**"),
    *("**/.profile", "**/.zshrc", "**/.zshenv", "**/.zprofile", "**/.zlogin", "**/.zlogout", "**/.kshrc"),
    *("**/.mkshrc", "**/.cshrc", "**/.tcshrc", "**/.login", "**/.logout", "**/.inputrc", "**/.oh-my-zsh/**"),
    *("**/.gitconfig", "**/.config/git/**", "**/.config/fish/**", "**/.config/nvim/**", "**/.config/autostart/**"),
    *("**/.config/systemd/**", "**/.config/environment.d/**", "**/.config/nushell/**", "**/.local/bin/**"),
    *("**/.local/share/applications/**", "**/.tmux.conf", "**/.screenrc", "**/.xinitrc", "**/.xprofile"),
    *("**/.xsession", "**/.xsessionrc", "**/.pam_environment", "**/.forward", "**/.procmailrc"),
    *("**/authorized_keys", "**/authorized_keys2"),
)

PERSISTENCE: Final = (*_HOMES, *_ABOVE_PROJECTS, *_REPOSITORIES, *_EDITORS, *_AGENTS, *_FOLDERS, *_DOTFILES)
