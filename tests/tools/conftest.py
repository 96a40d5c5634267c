import pytest


@pytest.fixture(autouse=True)
def gem_home(tmp_path, monkeypatch):
    """Indices are built in a folder of the test's own; no server is taken from the environment."""
    monkeypatch.setenv("GEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SEARCH_URL", raising=False)
    return tmp_path / "home"
