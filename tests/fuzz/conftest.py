"""Hypothesis: the same few examples in `make test`, many new ones in `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Many of the drawn networks are invalid.
_SLOW = [
    HealthCheck.too_slow,
    HealthCheck.function_scoped_fixture,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
]
settings.register_profile(
    "short", max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "long", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile("short")


def pytest_configure(config: object) -> None:
    """Let --hypothesis-profile override the profile loaded above."""
    chosen = config.getoption("--hypothesis-profile", default=None)  # type: ignore[attr-defined]
    if chosen:
        settings.load_profile(chosen)
