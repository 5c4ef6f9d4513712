import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Keep indexes of tests out of the user's cache folder."""
    monkeypatch.setenv("LIT_ROBUST_CACHE", str(tmp_path / "user-cache"))
