"""The pack `secrets`: where keys, tokens, passwords and private correspondence lie.

Nearly all of it is beneath dot-names of a home, which `persistence` closes as a whole; here it stands by name, for
a policy that pulls in this pack alone and for copies elsewhere. Certificates stay readable (a `cacert.pem` is part of
every program that speaks TLS), keys do not; examples of environment files (`.env.example`) stay readable as well.
"""

from __future__ import annotations

from typing import Final

from policy.closing import sealed

_KEYS = (
    *sealed(
        "private keys",
        *("**/.ssh/**", "**/.putty/**", "**/*.ppk", "**/id_rsa", "**/id_dsa", "**/id_ecdsa", "**/id_ed25519"),
        *("**/id_ecdsa_sk", "**/id_ed25519_sk", "**/id_xmss", "**/*_rsa", "**/*_dsa", "**/*_ecdsa"),
        *("**/*_ed25519", "**/ssh_host_*_key", "**/*.key", "**/*.key.pem", "**/key.pem", "**/privkey*.pem"),
        *(
            "**/*private*.pem",
            "**/*keypair*.pem",
            "**/private_key",
            "**/private-key",
            "**/*.pvk",
            "**/*-priv.pem",
            "**/*_priv.pem",
            "**/server-key.pem",
            "**/server_key.pem",
        ),
        *("**/client-key.pem", "**/client_key.pem", "**/ca-key.pem", "**/ca_key.pem", "**/tls-key.pem"),
        *("**/ssl-key.pem", "**/cert-key.pem", "**/rsa-key.pem", "**/rsa_key.pem", "**/ssh-key*.pem"),
        *("~/*.pem", "~/Downloads/*.pem", "~/Desktop/*.pem", "~/Documents/*.pem", "**/*.p8"),
        *("**/*.agekey", "**/sops/age/**", "**/.age/**", "**/*.nk", "**/.sigstore/**", "**/cosign.key"),
    ),
    *sealed("keys of GnuPG", "**/.gnupg/**", "**/secring.*", "**/pubring.kbx~", "**/*private*.asc", "**/*secret*.asc"),
    *sealed(
        "a store of keys and certificates",
        *("**/*.p12", "**/*.pfx", "**/*.pkcs12", "**/*.jks", "**/*.jceks", "**/*.bks", "**/*.keystore"),
        *("**/*.keytab", "**/.pki/**", "**/.keystore", "**/cwallet.sso", "**/ewallet.p12"),
    ),
    *sealed(
        "passwords",
        *("**/*.kdbx", "**/*.kdb", "**/*.psafe3", "**/*.opvault/**", "**/*.agilekeychain/**", "**/*.1pif"),
        *("**/*.1pux", "**/*.keychain", "**/*.keychain-db", "**/.password-store/**", "**/.config/op/**"),
        *("**/.config/Bitwarden*/**", "**/.config/keepassxc/**", "**/.lastpass/**", "**/.local/share/keyrings/**"),
        *("**/.gnome2/keyrings/**", "**/.local/share/kwalletd/**", "**/kwallet/**", "**/bitwarden_export*"),
        *("**/passwords.txt", "**/password.txt", "**/passwords.csv", "**/passwd.txt", "**/Passwords.csv"),
        *("**/*recovery-codes*.txt", "**/*recovery_codes*.txt", "**/*backup-codes*.txt"),
    ),
    *sealed(
        "a wallet",
        *("**/wallet.dat", "**/*.wallet", "**/UTC--*", "**/.bitcoin/**", "**/.ethereum/**", "**/.electrum/**"),
        *("**/.litecoin/**", "**/.dogecoin/**", "**/.monero/**", "**/.config/solana/**", "**/mnemonic.txt"),
        *(
            "**/seed-phrase*",
            "**/.exodus/**",
            "**/.config/Exodus/**",
            "**/.brownie/accounts/**",
            "**/.foundry/keystores/**",
        ),
    ),
)

_PROJECTS = (
    *sealed(
        "secrets of a project in its environment",
        *("**/.env", "**/.env.local", "**/.env.*.local", "**/.env.dev", "**/.env.devel", "**/.env.development"),
        *("**/.env.stage", "**/.env.staging", "**/.env.prod", "**/.env.production", "**/.env.live"),
        *("**/.env.preprod", "**/.env.preview", "**/.env.sandbox", "**/.env.demo", "**/.env.test"),
        *("**/.env.testing", "**/.env.qa", "**/.env.uat", "**/.env.ci", "**/.env.docker", "**/.env.secret"),
        *("**/.env.secrets", "**/.env.private", "**/.env.keys", "**/.env.override", "**/.env.user", "**/.env.me"),
        *("**/.env.bak", "**/.env.backup", "**/.env.old", "**/.env.orig", "**/.env.save", "**/.env~"),
        *("**/.env-local", "**/.env-dev*", "**/.env-prod*", "**/.env-staging", "**/.env_local", "**/.env_dev*"),
        *("**/.env_prod*", "**/.env_staging", "**/.env_file", "**/.envs/**"),
        *("**/.envrc", "**/.envrc.local", "**/.envrc.private", "**/.*.env", "**/prod*.env"),
        *("**/staging.env", "**/local.env", "**/secret*.env", "**/.dev.vars", "**/.secrets/**", "**/.secret"),
        "**/.secret.*",
    ),
    *sealed(
        "secrets of a project",
        *("**/secrets.yml", "**/secrets.yaml", "**/secrets.json", "**/secrets.toml", "**/secrets.ini"),
        *(
            "**/secrets.txt",
            "**/secrets.conf",
            "**/secrets.cfg",
            "**/secrets.php",
            "**/instance/config.py",
            "**/app/config/parameters.yml",
            "**/secret.yml",
            "**/secret.yaml",
            "**/secret.json",
            "**/secret.toml",
            "**/secret.txt",
        ),
        *("**/credentials.json", "**/credentials.yml", "**/credentials.yaml"),
        *("**/credentials.toml", "**/credentials.ini", "**/credentials.xml", "**/credentials.csv"),
        *("**/credentials.txt", "**/credentials.db", "**/.credentials", "**/.credentials/**", "**/.credentials.json"),
        *("**/creds.json", "**/creds.txt", "**/creds.yml", "**/creds.yaml", "**/api_key.txt", "**/apikey.txt"),
        *("**/api_keys.txt", "**/token.txt", "**/.token", "**/.tokens", "**/.api_key", "**/.apikey"),
        *("**/.htpasswd", "**/.htdigest", "**/wp-config.php", "**/LocalSettings.php", "**/config.inc.php"),
        *("**/sites/*/settings.php", "**/local_settings.py", "**/local.settings.json", "**/prod.secret.exs"),
        *("**/secret_token.rb", "**/.secret_key", "**/secret_key.txt", "**/key.properties", "**/keystore.properties"),
        *(
            "**/signing.properties",
            "**/secrets.properties",
            "**/secret.properties",
            "**/*.secret",
            "**/credentials.tfrc.json",
        ),
        *("**/appsettings.Production.json", "**/appsettings.Local.json", "**/appsettings.Secrets.json"),
        *("**/knife.rb", "**/.chef/**", "**/proftpdpasswd", "**/ventrilo_srv.ini", "~/*/auth.json"),
        *("**/.vault-token", "**/.vault_pass*", "**/.vault-pass*", "**/vault_pass*", "**/vault-pass*"),
        *("**/etc/shadow*", "**/etc/gshadow*", "**/*.dockercfg", "**/.dockerconfigjson"),
    ),
    *sealed(
        "keys and state of an infrastructure",
        *(
            "**/*.tfstate",
            "**/*.tfstate.backup",
            "**/terraform.tfstate*",
            "**/*.tfvars",
            "**/*.tfvars.json",
            "**/.terraformrc",
            "**/terraform.rc",
        ),
        *("**/.terraform.d/**", "**/.pulumi/**", "**/kubeconfig", "**/*.kubeconfig", "**/kubeconfig.y*"),
        *(
            "**/*-kubeconfig.yaml",
            "**/*-kubeconfig.yml",
            "**/k3s.yaml",
            "**/talosconfig",
            "**/*.publishsettings",
            "**/*.rdp",
        ),
    ),
    *sealed(
        "a key for Google's services",
        *("**/client_secret*.json", "**/client-secret*.json", "**/service-account*.json", "**/service_account*.json"),
        *("**/serviceAccount*.json", "**/serviceaccount*.json", "**/*firebase-adminsdk*.json", "**/gcp-key*.json"),
        *("**/gcloud-service-key*", "**/application_default_credentials.json", "**/token.pickle"),
    ),
    *sealed(
        "keys for Amazon's services",
        *("**/accessKeys.csv", "**/*_accessKeys.csv", "**/rootkey.csv", "**/aws_credentials", "**/aws-credentials"),
        *("**/.s3cfg", "**/.boto", "**/.passwd-s3fs", "**/.aws-sam/**/credentials"),
    ),
    *sealed(
        "passwords of servers that an editor or a client remembers",
        *("**/sftp-config.json", "**/.vscode/sftp.json", "**/.ftpconfig", "**/.remote-sync.json", "**/.ftppass"),
        *("**/WebServers.xml", "**/webServers.xml", "**/dataSources.local.xml", "**/.idea/dataSources/**"),
        *("**/deployment-config.json", "**/dbeaver-data-sources.xml", "**/data-sources.json"),
        *("**/credentials-config.json", "**/robomongo.json", "**/robo3t.json", "**/filezilla.xml"),
        *("**/recentservers.xml", "**/sitemanager.xml", "**/.config/filezilla/**", "**/.config/remmina/**"),
        *("**/.local/share/remmina/**", "**/.vnc/passwd", "**/.config/tigervnc/**", "**/WinSCP.ini"),
    ),
    *sealed(
        "the keys of a private network",
        *("**/*.ovpn", "**/*.tblk", "**/wg?.conf", "**/wg-*.conf", "**/.openvpn/**", "**/.wireguard/**"),
        *("**/.config/wireguard/**", "**/wpa_supplicant.conf", "**/*.nmconnection", "**/tailscaled.state"),
    ),
)

_PROGRAMS = (
    *sealed(
        "keys for a cloud",
        *("**/.aws/**", "**/.azure/**", "**/.config/gcloud/**", "**/.gsutil/**", "**/.oci/**", "**/.bluemix/**"),
        *(
            "**/.config/doctl/**",
            "**/.config/hcloud/**",
            "**/.config/scw/**",
            "**/.config/linode-cli",
            "**/.linode-cli",
        ),
        *("**/.tugboat", "**/.fly/**", "**/.config/heroku/**", "**/.heroku/**", "**/.wrangler/config/**"),
        *("**/.config/.wrangler/**", "**/.config/netlify/**", "**/.netlify/config.json", "**/.config/configstore/**"),
        *("**/.vercel/auth.json", "**/.local/share/com.vercel.cli/**", "**/.railway/**", "**/.config/rclone/**"),
        *("**/rclone.conf", "**/.rclone.conf", "**/.databrickscfg", "**/.snowsql/**", "**/.snowflake/**"),
        *("**/.dbt/**", "**/.aliyun/**", "**/.tccli/**", "**/.hcloud/**", "**/.boto3/**", "**/.mc/**"),
        *("**/.kaggle/**", "**/.huggingface/**", "**/huggingface/token", "**/huggingface/stored_tokens"),
        *("**/.openai/**", "**/.anthropic/**", "**/.config/openai/**", "**/.replicate/**", "**/.modal.toml"),
        *("**/.wandb/**", "**/.config/wandb/**", "**/.ollama/id_*", "**/.config/github-copilot/**"),
        *("**/.codex/auth.json", "**/.gemini/oauth_creds.json", "**/.qwen/oauth_creds.json"),
        *("**/.config/io.datasette.llm/keys.json", "**/.local/share/opencode/auth.json"),
    ),
    *sealed(
        "keys for containers and clusters",
        *("**/.docker/**", "**/.dockercfg", "**/.config/containers/**", "**/containers/auth.json", "**/.kube/**"),
        *("**/.helm/**", "**/.config/helm/**", "**/.minikube/**", "**/.talos/**", "**/.config/argocd/**"),
        *("**/.config/k9s/**", "**/.rancher/**", "**/.nomad/**", "**/.config/flyctl/**"),
    ),
    *sealed(
        "tokens for a code host or a registry",
        *("**/.netrc", "**/_netrc", "**/.authinfo", "**/.authinfo.gpg", "**/.git-credentials", "**/.gitcookies"),
        *("**/.git/credentials", "**/.config/git/credentials", "**/.config/gh/**", "**/.config/hub"),
        *("**/.config/glab-cli/**", "**/.config/tea/**", "**/.config/gitlab/**", "**/.python-gitlab.cfg"),
        *("**/.circleci/cli.yml", "**/.travis/**", "**/.sentryclirc", "**/.config/sentry/**", "**/.npmrc"),
        *(
            "**/.pypirc",
            "**/.pip/pip.conf",
            "~/**/pip.conf",
            "/home/**/pip.conf",
            "/tmp/**/pip.conf",  # noqa: S108  a pattern
            "/srv/**/pip.conf",
            "**/.config/pypoetry/auth.toml",
            "**/.gem/credentials",
        ),
        *("**/.cargo/credentials", "**/.cargo/credentials.toml", "**/.composer/**", "**/.config/composer/**"),
        *(
            "**/.m2/settings.xml",
            "**/.m2/settings-security.xml",
            "**/sentry.properties",
            "**/.gradle/gradle.properties",
            "**/.ivy2/.credentials",
        ),
        *("**/.sbt/.credentials", "**/.bintray/**", "**/.nuget/NuGet/**", "**/.config/NuGet/**", "**/.hex/hex.config"),
        *("**/.pub-cache/credentials.json", "**/.config/dart/**", "**/.condarc", "**/.config/yarn/**", "**/.arcrc"),
        *("**/.config/pulse/cookie", "**/.jira.d/**", "**/.config/.jira/**", "**/.expo/state.json"),
    ),
    *sealed(
        "passwords of data bases",
        *("**/.pgpass", "**/pgpass.conf", "**/.pg_service.conf", "**/.my.cnf", "**/.mylogin.cnf", "**/.mongorc.js"),
        *("**/.mongodb/**", "**/.dbshell", "**/.redisclirc", "**/.rediscli_auth", "**/.cassandra/**"),
        *("**/.config/pgcli/**", "**/.myclirc", "**/.mssql*", "**/.local/share/DBeaverData/**", "**/.dbvis/**"),
        *("**/.squirrel-sql/**", "**/.3T/**", "**/.influxdbv2/**", "**/.trino_config"),
    ),
    *sealed(
        "mail, and the passwords for it",
        *("~/Maildir/**", "~/Mail/**", "~/mail/**", "~/mbox", "**/.thunderbird/**", "**/.mutt/**", "**/.muttrc"),
        *("**/.neomuttrc", "**/.config/mutt/**", "**/.config/neomutt/**", "**/.config/aerc/**", "**/.msmtprc"),
        *("**/.esmtprc", "**/.config/msmtp/**", "**/.fetchmailrc", "**/.getmail/**", "**/.getmailrc"),
        *("**/.offlineimaprc", "**/.config/offlineimap/**", "**/.mbsyncrc", "**/.isyncrc", "**/.mailrc"),
        *("**/.local/share/evolution/**", "**/.config/evolution/**", "**/.mailcow", "**/.config/himalaya/**"),
    ),
    *sealed(
        "what a browser keeps: passwords, cookies, history",
        *("**/.mozilla/**", "**/.config/google-chrome*/**", "**/.config/chromium/**", "**/.config/BraveSoftware/**"),
        *("**/.config/microsoft-edge*/**", "**/.config/vivaldi/**", "**/.config/opera/**", "**/.librewolf/**"),
        *("**/.waterfox/**", "**/.config/epiphany/**", "**/.local/share/epiphany/**", "**/.config/qutebrowser/**"),
        *("**/.local/share/qutebrowser/**", "**/.cache/mozilla/**", "**/.cache/google-chrome/**", "**/.w3m/**"),
        *("**/logins.json", "**/logins-backup.json", "**/key3.db", "**/key4.db", "**/cert9.db", "**/signons.sqlite"),
        *("**/cookies.sqlite", "**/places.sqlite", "**/Login Data", "**/Login Data For Account"),
        *("**/Web Data", "**/cookies.txt", "**/Local State"),
    ),
    *sealed("what programs in packages of their own keep, browsers among them", "~/snap/**", "~/.var/app/**"),
    *sealed(
        "private conversations, and the keys to them",
        *("**/.purple/**", "**/.weechat/**", "**/.config/weechat/**", "**/.irssi/**", "**/.config/hexchat/**"),
        *("**/.xchat2/**", "**/.config/Slack/**", "**/.config/discord/**", "**/.config/Signal/**"),
        *(
            "**/.local/share/TelegramDesktop/**",
            "**/.config/Element/**",
            "**/.config/teams/**",
            "**/.config/skypeforlinux/**",
        ),
        *("**/.config/zoomus.conf", "**/.zoom/**", "**/otr.private_key", "**/.local/share/signal-cli/**"),
    ),
    *sealed(
        "what was typed, passwords among it",
        *("**/.*_history", "**/.history", "**/.zhistory", "**/.histfile", "**/.sh_history", "**/.lesshst"),
        *("**/.viminfo", "**/fish_history", "**/.local/share/atuin/**", "**/.wget-hsts", "**/.local/share/mc/history"),
        *("**/.recently-used*", "**/recently-used.xbel", "**/.xsession-errors*", "**/.ICEauthority", "**/.Xauthority"),
    ),
    *sealed(
        "passwords of a shared folder or another machine",
        *("**/.smbcredentials", "**/.smbcred*", "**/.cifs*", "**/.credentials-smb", "**/.davfs2/**", "**/.ecryptfs/**"),
        *("**/.Private/**", "**/.encfs*.xml", "**/.config/syncthing/**", "**/.config/borg/**", "**/.borgmatic/**"),
        *("**/.config/restic/**", "**/.restic*", "**/.duplicity/**", "**/.config/Nextcloud/**", "**/.dropbox/**"),
        *("**/.config/freerdp/**", "**/.krb5/**", "**/krb5cc_*", "**/.k5login", "**/.rhosts", "**/.config/nordvpn/**"),
        *("**/.config/monitoring-plugins.ini", "**/.irods/**", "**/.globusonline/**", "**/.config/rbw/**"),
    ),
)

SECRETS: Final = (*_KEYS, *_PROJECTS, *_PROGRAMS)
