"""Stores to test against: SQLite always, PostgreSQL from Debian's binaries where they are."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from echo_sglang.service.store import Store, open_store

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server of its own in a temporary folder; the URL of its maintenance database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    binaries = found[-1].parent
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="echo-pg-"))
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    run_as = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "echo", "--auth=trust", "--no-sync", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd=folder,
        **run_as,
    )
    port = _free_port()
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **run_as,
    )
    url = f"postgresql://echo@127.0.0.1:{port}/postgres"
    try:
        _wait_until_it_answers(url, server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """An SQLAlchemy URL of an empty database for one test."""
    name = f"echo_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    server = postgres_url.removeprefix("postgresql://").removesuffix("/postgres")
    yield f"postgresql+psycopg://{server}/{name}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's S3 on a free loopback port."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An fsspec URL in a bucket of one test."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", s3_endpoint),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{next(_numbers)}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/batches"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, once on each database."""
    url = request.getfixturevalue("postgres_database") if request.param == "postgres" else None
    opened = open_store(tmp_path / "data", url, events=True)
    yield opened
    opened.close()


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL, which refuses root; None: whoever we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses to run as root, and there is no user to run it as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended with {server.returncode}")
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise RuntimeError("PostgreSQL does not answer within 10 s")
