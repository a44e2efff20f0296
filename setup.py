"""Packaging of echo_sglang; the pins are the ones the patch set was made for."""

from setuptools import find_packages, setup

setup(
    name="echo-sglang",
    version="0.1.0",
    description="Online and offline LLM requests on one SGLang server, online SLOs kept",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["echo_sglang", "echo_sglang.*"]),
    package_data={"echo_sglang": ["py.typed"]},
    install_requires=[
        "sglang==0.5.23",
        "numpy",
        "scipy>=1.12",
        "sortedcontainers",
        "prometheus-client",
        "httpx",
        "psutil",
        "pyzmq",
        "requests",
        "rich",
        "typer",
        "uvicorn",
        "alembic",
        "fsspec",
        "orjson",
        "python-multipart",
        "sqlalchemy>=2.1",
        "standardwebhooks",
    ],
    extras_require={
        "postgres": ["psycopg[binary]"],
        "s3": ["s3fs"],
        "plot": ["matplotlib"],
        "eval": ["httpx", "matplotlib", "pandas"],
        "test": ["pytest", "hypothesis", "httpx", "moto[s3,server]", "pandas"],
        "dev": ["ruff", "mypy", "import-linter", "pytest", "hypothesis"],
    },
    entry_points={
        "console_scripts": ["echo-sglang = echo_sglang.cli.main:app"],
        "sglang.srt.plugins": [
            "echo = echo_sglang.adapter.plugin:register",
            "echo_emulate = echo_sglang.sim.live:register",
        ],
        "sglang.srt.platforms": ["echo_cpu = echo_sglang.platform.cpu:activate"],
    },
)
