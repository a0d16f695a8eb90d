import pytest

from jobrunner.known_secrets import MASK, without_secrets
from jobrunner.redaction import find_secret, looks_secret, mask_url, mask_value, remember_secrets


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "db_password",
        "DB_PASSWORD_PROD",
        "PGPASSWORD",
        "MYSQL_PWD",
        "passwd",
        "passphrase",
        "secret",
        "client_secret",
        "clientSecret",
        "CLIENT-SECRET",
        "aws_secret_access_key",
        "AWS_SESSION_TOKEN",
        "token",
        "accessToken",
        "accesstoken",
        "GITHUB_TOKEN_2",
        "api_key",
        "apikey",
        "apiKey",
        "APIKey",
        "X-API-Key",
        "access_key",
        "accesskey",
        "private_key",
        "privateKey",
        "ssh_key",
        "credential",
        "credentials",
        "auth",
        "basic_auth",
        "_auth",
        "Authorization",
        "bearer",
        "spec.db.password",
        "sasl.password",
        "--password",
    ],
)
def test_a_name_of_a_secret_is_known(key: str) -> None:
    assert looks_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "author",
        "authors",
        "secretary",
        "keyboard",
        "tokens_per_minute",
        "max_tokens",
        "token_count",
        "token_url",
        "tokenizer",
        "key",
        "keys",
        "name",
        "public_key",
        "primary_key",
        "partition_key",
        "secret_arn",
        "secretName",
        "password_file",
        "passwordPath",
        "AWS_ACCESS_KEY_ID",
        "authenticated",
        "auth_type",
        "monkey",
        "compass",
        "bypass",
        "passing",
        "image_pull_secrets_names",
        "secret_id",
        "PATH",
        "url",
        "2",
    ],
)
def test_a_harmless_name_is_left_alone(key: str) -> None:
    assert not looks_secret(key)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("postgresql+psycopg://me:p/w@db/x", "postgresql+psycopg://me:***@db/x"),
        ("postgresql://me:p#w?@db/x", "postgresql://me:***@db/x"),
        ("redis://:pw@cache", "redis://:***@cache"),
        ("postgresql://me:p@w@db/x", "postgresql://me:***@db/x"),
        (
            "postgresql://db/x?user=me&password=pw&sslmode=on",
            "postgresql://db/x?user=me&password=***&sslmode=on",
        ),
        ("postgresql://db:5432/x?user=me&password=p@w", "postgresql://db:***@***"),
        ("postgresql://me:p?w@db/x", "postgresql://me:***@db/x"),
        ("http://host:8000/a@b", "http://host:8000/a@b"),
        ("http://host:8000/api?page=2", "http://host:8000/api?page=2"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("sqlite:////home/me/jobs.db", "sqlite:////home/me/jobs.db"),
        ("postgresql://me:${env:PW}@db/x", "postgresql://me:${env:PW}@db/x"),
        ("cannot reach postgresql://me:pw@db/x: refused", "cannot reach postgresql://me:***@db/x: refused"),
        ("host=db user=me password='a b' dbname=x", "host=db user=me password=*** dbname=x"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("host=db password = hunter2 user=me", "host=db password = *** user=me"),
        ("password='it\\'s hunter2' host=db", "password=*** host=db"),
        ("password=a\\ hunter2 host=db", "password=*** host=db"),
        ("host=db password=a;hunter2&more", "host=db password=***"),
        ("password='hunter2 and no end", "password=***"),
        ("host=db password='p@hunter2'", "host=db password=***"),
        ("host=db\npassword=hunter2", "host=db\npassword=***"),
    ],
)
def test_a_url_in_the_other_form_of_libpq_is_shown_without_its_password(words: str, shown: str) -> None:
    assert mask_value("database_url", words) == shown


def test_a_value_is_masked_by_its_key_or_its_own_form() -> None:
    assert mask_value("client_secret", "x") == "***"
    assert mask_value("client_secret", "${env:X}") == "${env:X}"
    assert mask_value("client_secret", None) == ""
    assert mask_value("url", "http://a:b@c") == "http://a:***@c"
    assert mask_value("pem", "-----BEGIN RSA PRIVATE KEY-----\nabc") == "***"
    assert mask_value("heartrate", 5.0) == "5.0"
    assert (
        mask_value("a", {"b": [{"token": "x", "c": 1}, "http://a:b@c"]})
        == "{b: [{token: ***, c: 1}, http://a:***@c]}"
    )


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"password": "x"}, "password"),
        ({"a": [{"b": {"apiKey": "x"}}]}, "a[0].b.apiKey"),
        ({"env": [{"name": "A", "value": "x"}, {"name": "DB_PASSWORD", "value": "x"}]}, "env[1].value"),
        ({"env": [{"Name": "DB_PASSWORD", "Value": "x"}]}, "env[0].Value"),
        ({"tags": [{"key": "token", "value": "x"}]}, "tags[0].value"),
        ({"env": {"DB_PASSWORD": "x"}}, "env.DB_PASSWORD"),
        ({"command": ["run", "--password=x"]}, "command[1]"),
        ({"command": ["run", "--password", "x"]}, "command[2]"),
        ({"command": ["sh", "-c", "PASSWORD=x ./run"]}, "command[2]"),
        ({"command": "run --db-password 'x' --api-key=y"}, "command"),
        ({"command": ["curl", "-H", "Authorization: Bearer abc"]}, "command[2]"),
        ({"url": "postgresql://me:pw@db/x"}, "url"),
        ({"url": "https://x/?a=1&access_token=y"}, "url"),
        ({"files": {"id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----\n…"}}, "files.id_rsa"),
        ("PASSWORD=x", "(top)"),
    ],
)
def test_a_secret_in_a_spec_is_found(spec: object, path: str) -> None:
    assert find_secret(spec) == path


@pytest.mark.parametrize(
    "spec",
    [
        {"password": ""},
        {"password": None},
        {"password": "${env:PW}"},
        {"max_token": 4096},
        {"env": [{"name": "DB_PASSWORD", "valueFrom": "arn:aws:secretsmanager:…"}]},
        {"env": [{"name": "DB_PASSWORD", "value": "${env:PW}"}]},
        {"env": [{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}]},
        {"secrets": [{"name": "PW", "valueFrom": "arn"}]},
        {"imagePullSecrets": [{"name": "registry"}]},
        {
            "command": [
                "run",
                "--password-file",
                "/x",
                "--password=$PASSWORD",
                "--token",
                "${env:T}",
                "--token",
            ]
        },
        {"command": ["sh", "-c", 'PASSWORD="$(cat /run/pw)" ./run --author=me', "--tokens-per-minute", "5"]},
        {"command": ["run", "--auth", "--verbose"]},
        {
            "url": "postgresql://me@db/x",
            "other": "http://host:80/a@b",
            "third": "postgresql://me:${env:PW}@db/x",
        },
        {"note": "the password is in the vault", "count": 3, "ok": True, "ratio": 0.5, "none": None},
        [],
        None,
    ],
)
def test_a_spec_without_secrets_passes(spec: object) -> None:
    assert find_secret(spec) is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/user:hunter2@host/db",
        "postgresql:///user:hunter2@host/db",
        "postgresql:////user:hunter2@host/db",
        "postgresqluser:hunter2@host/db",
        "user:hunter2@host/db",
        "sqlite:///x?mode=ro?password=hunter2",
        "user:hunter2@host?password=hunter2",
    ],
)
def test_a_mistyped_url_shows_its_password_no_more_than_a_right_one(url: str) -> None:
    shown = mask_value("database_url", url)
    assert "hunter2" not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "table",
    [
        '{"url": "http://a", "client_secret": "hunter2/Horse"',
        "{'client_secret': 'hunter2/Horse'}",
        '{client_secret: "hunter2/Horse"}',
        "{token: hunter2/Horse}",
        '[{"name": "DB_PASSWORD", "value": "hunter2/Horse"}]',
        '["Authorization: Bearer hunter2/Horse"]',
        '"token": "hunter2/Horse"',
    ],
)
def test_a_secret_in_a_table_where_a_path_is_wanted_is_masked_and_repeated_by_no_message(table: str) -> None:
    assert mask_value("data_dir", table) == MASK
    assert mask_value("token_file", table) == MASK
    remember_secrets({"token_file": table})
    assert "hunter2" not in without_secrets(f"there is no file /srv/{table.replace('//', '/')}")


@pytest.mark.parametrize(
    "text", ["/srv/token.d/x", "auth:8000", '{"name": "LEVEL", "value": "info"}', "a: b"]
)
def test_what_names_no_secret_is_shown(text: str) -> None:
    assert mask_value("data_dir", text) == text
