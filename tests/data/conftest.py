import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Indices of these tests stay out of the user's cache."""
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))
